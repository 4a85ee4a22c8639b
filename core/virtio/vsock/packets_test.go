package vsock

import (
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// raw is a packet with n bytes of payload, of which the header claims h.len.
func raw(h header, n int) []byte {
	var b [headerSize]byte
	h.encode(&b)
	return append(b[:], make([]byte, n)...)
}

// split puts p into buffers of n bytes each.
func split(d *virtiotest.Driver, p []byte, n int) (bufs []virtiotest.Buffer) {
	for part := range slices.Chunk(p, n) {
		bufs = append(bufs, d.Out(part))
	}
	return bufs
}

func TestMalformedPackets(t *testing.T) {
	// What becomes of the device and of a connection after a packet; h is changed from a data packet of the connection.
	for name, c := range map[string]struct {
		change   func(h *header)
		payload  int
		cut      int // bytes of the header that are there
		breaks   bool
		ends     error
		resets   func(h header) bool // expected answer
		readable bool                // a buffer for the device to write instead
	}{
		"empty header":     {cut: -1, breaks: true},
		"short header":     {cut: 43, breaks: true},
		"writable only":    {readable: true, breaks: true},
		"claims too much":  {change: func(h *header) { h.len = 11 }, payload: 10, breaks: true},
		"claims 4 GiB":     {change: func(h *header) { h.len = 1<<32 - 1 }, payload: 10, breaks: true},
		"claims less":      {change: func(h *header) { h.len = 1 }, payload: 10},
		"empty":            {},
		"wrong source":     {change: func(h *header) { h.srcCID = 4 }},
		"source 2^32+3":    {change: func(h *header) { h.srcCID = 1<<32 + 3 }},
		"wrong target":     {change: func(h *header) { h.dstCID = 7 }, resets: func(h header) bool { return h.srcCID == 7 && h.kind == 1 }},
		"wrong type":       {change: func(h *header) { h.kind = 2 }, resets: func(h header) bool { return h.srcCID == 2 && h.kind == 2 }},
		"wrong type reset": {change: func(h *header) { h.kind, h.op = 2, opRST }},
		"unknown port":     {change: func(h *header) { h.srcPort = 9 }, resets: func(h header) bool { return h.dstPort == 9 }},
		"unknown port 2":   {change: func(h *header) { h.srcPort, h.op = 9, opResponse }, resets: func(h header) bool { return h.dstPort == 9 }},
		"no listener":      {change: func(h *header) { h.srcPort, h.op = 9, opRequest }, resets: func(h header) bool { return h.dstPort == 9 }},
		"reset of unknown": {change: func(h *header) { h.srcPort, h.op = 9, opRST }},
		"unknown op":       {change: func(h *header) { h.op = 8 }, ends: ErrProtocol, resets: func(h header) bool { return h.dstPort == 1024 }},
		"op 0":             {change: func(h *header) { h.op = 0 }, ends: ErrProtocol, resets: func(h header) bool { return h.dstPort == 1024 }},
		"second response":  {change: func(h *header) { h.op = opResponse }, ends: ErrProtocol, resets: func(h header) bool { return h.dstPort == 1024 }},
		"second request":   {change: func(h *header) { h.op = opRequest }, ends: syscall.ECONNRESET, resets: func(h header) bool { return h.dstPort == 1024 }},
		"no credit":        {change: func(h *header) { h.len = maxWindow + 1 }, payload: maxWindow + 1, ends: ErrProtocol, resets: func(h header) bool { return h.dstPort == 1024 }},
		"all credit":       {change: func(h *header) { h.len = maxWindow }, payload: maxWindow},
		"flags unknown":    {change: func(h *header) { h.op, h.flags = opShutdown, 0xfffffffc }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dev, g := start(t, setup{record: true})
				conn, h := rawPair(t, dev, g, 100)
				h.srcCID, h.dstCID, h.kind, h.op = guestCID, HostCID, typeStream, opRW
				if c.change != nil {
					c.change(&h)
				}
				p := raw(h, c.payload)
				if c.cut != 0 {
					p = p[:max(c.cut, 1)]
				}
				buf := g.drv.Out(p)
				buf.Writable = c.readable
				g.submit(txQueue, func(q *virtiotest.Queue) uint16 { return q.Chain(buf) })
				synctest.Wait()
				if c.breaks {
					require.ErrorIs(t, g.drv.MMIO.Failure(), virtio.ErrDriver)
					require.ErrorIs(t, write(conn)(), virtio.ErrDriver)
					g.drv.MMIO.Pause()
					_, err := g.drv.MMIO.Save()
					require.NoError(t, err, "a broken device is at rest")
					return
				}
				require.NoError(t, g.drv.MMIO.Failure())
				if c.resets != nil {
					require.True(t, c.resets(g.wait(op(opRST))))
				}
				require.Empty(t, g.recorded())
				require.ErrorIs(t, write(conn)(), c.ends)
			})
		})
	}
}

func TestPacketInPieces(t *testing.T) {
	for _, size := range []int{1, 7, 43, 44, 45, 300} {
		for _, indirect := range []bool{false, true} {
			dev, g := start(t, setup{record: true})
			c, h := rawPair(t, dev, g, 100)
			h.srcCID, h.dstCID, h.kind, h.op, h.len = guestCID, HostCID, typeStream, opRW, 100
			p := append(raw(h, 0), make([]byte, 100)...)
			for i := range 100 {
				p[headerSize+i] = byte(i)
			}
			g.submit(txQueue, func(q *virtiotest.Queue) uint16 {
				bufs := split(g.drv, p, size)
				if indirect {
					return q.ChainIndirect(bufs...)
				}
				return q.Chain(bufs...)
			})
			got := make([]byte, 100)
			n, err := c.Read(got)
			require.NoError(t, err)
			require.Equal(t, 100, n)
			require.Equal(t, p[headerSize:], got)
		}
	}
}

// TestReceiveBuffersInPieces has the guest offer chains of many small descriptors.
func TestReceiveBuffersInPieces(t *testing.T) {
	dev, g := start(t, setup{record: true, rxBufs: 2})
	c, _ := rawPair(t, dev, g, 1000)
	g.mu.Lock()
	g.starving = true // once the device has used its two buffers, there is only the chain
	g.mu.Unlock()
	var all []virtiotest.Buffer
	for range 40 {
		all = append(all, g.drv.In(3))
	}
	g.submit(rxQueue, func(q *virtiotest.Queue) uint16 { return q.Chain(all...) })
	for i := range 3 {
		_, err := c.Write([]byte{byte(i), 1, 2, 3, 4, 5, 6, 7})
		require.NoError(t, err)
	}
	var got []byte
	for _, b := range all {
		got = append(got, b.Bytes...)
	}
	require.Equal(t, []byte{2, 1, 2, 3, 4, 5, 6, 7}, got[headerSize:headerSize+8])
}

func TestReceiveBufferTooSmall(t *testing.T) {
	t.Run("for a header", func(t *testing.T) {
		dev, g := start(t, setup{record: true, rxBytes: headerSize - 1})
		require.ErrorIs(t, dial(t.Context(), dev)(), virtio.ErrDriver)
		require.ErrorIs(t, g.drv.MMIO.Failure(), virtio.ErrDriver)
	})
	t.Run("for data", func(t *testing.T) {
		dev, g := start(t, setup{record: true, rxBytes: headerSize})
		c, _ := rawPair(t, dev, g, 100)
		require.ErrorIs(t, write(c)(), virtio.ErrDriver)
	})
	t.Run("one byte", func(t *testing.T) {
		dev, g := start(t, setup{listen: []uint32{1024}, rxBytes: headerSize + 1})
		c, gc := pair(t, dev, g)
		echo(t, c, gc, 1000)
	})
}

func TestResetFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		c, h := rawPair(t, dev, g, 0)
		g.mu.Lock()
		g.starving = true
		g.mu.Unlock()
		for i := range uint32(5000) {
			g.send(header{op: opRW, srcPort: i + 5000, dstPort: 9}, nil)
		}
		g.send(h.as(99), nil) // the connection's reset is not lost in the flood
		require.ErrorIs(t, read(c)(), ErrProtocol)
		_, resets := dev.open()
		require.LessOrEqual(t, resets, maxResets+1)
		g.feed(-1)
		g.wait(func(p header) bool { return p.op == opRST && p.srcPort == h.dstPort })
		synctest.Wait()
		require.LessOrEqual(t, len(g.recorded()), maxResets+256)
		_, resets = dev.open()
		require.Zero(t, resets)
	})
}

// TestRequestFloodIsBounded connects from the same port again and again to a listener that accepts, without receive buffers.
func TestRequestFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true, starving: true})
		l, err := dev.Listen(9)
		require.NoError(t, err)
		accepting := async(func() error {
			for {
				if _, err := l.Accept(); err != nil {
					return err
				}
			}
		})
		for range 5000 {
			g.send(header{op: opRequest, srcPort: 5, dstPort: 9}, nil)
			synctest.Wait()
		}
		waiting := 0
		for c := dev.control.first; c != nil; c = c.places[controlLine].next {
			waiting++
		}
		require.Equal(t, 1, waiting)
		g.feed(-1)
		g.wait(op(opResponse))
		require.NoError(t, l.Close())
		require.Error(t, accepting())
	})
}

// TestBrokenConnectionsAreBounded ends connections faster than the guest takes the resets.
func TestBrokenConnectionsAreBounded(t *testing.T) {
	dev, g := start(t, setup{record: true, starving: true})
	l, err := dev.Listen(9)
	require.NoError(t, err)
	accepting := async(func() error {
		for {
			if _, err := l.Accept(); err != nil {
				return err
			}
		}
	})
	for range 2 * MaxConnections {
		g.send(header{op: opRequest, srcPort: 5, dstPort: 9}, nil)
		g.send(header{op: 99, srcPort: 5, dstPort: 9}, nil)
	}
	conns, resets := dev.open()
	require.LessOrEqual(t, conns+resets, MaxConnections+maxResets)
	require.NoError(t, l.Close())
	require.Error(t, accepting())
}

func TestCreditUpdatesAreWorthAPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		c, h := rawPair(t, dev, g, 256<<10)
		for range 4 {
			g.send(h.as(opRW), make([]byte, 64<<10))
		}
		synctest.Wait()
		for range 2000 {
			_, err := c.Read(make([]byte, 128))
			require.NoError(t, err)
		}
		synctest.Wait()
		require.InDelta(t, 3, len(g.recorded()), 1)
	})
}

func TestIdleConnectionKeepsNoBuffer(t *testing.T) {
	dev, g := start(t, setup{record: true})
	c, h := rawPair(t, dev, g, 0)
	for range 4 {
		g.send(h.as(opRW), make([]byte, 60<<10))
	}
	for left := 240 << 10; left > 0; {
		n, err := c.Read(make([]byte, left))
		require.NoError(t, err)
		left -= n
	}
	require.Empty(t, c.rx.b)
	kept := 0
	for _, class := range dev.spares {
		require.LessOrEqual(t, len(class), maxSpares)
		for _, b := range class {
			kept += len(b)
		}
	}
	require.LessOrEqual(t, kept, 2*maxWindow)
}
