package vsock

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// async runs f and returns a function that waits for its error.
func async(f func() error) (wait func() error) {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	return func() error { return <-ch }
}

// ended reports whether what async runs ends without anything else happening. Use it in a synctest bubble.
func ended(f func() error) (wait func() error, yes func() bool) {
	done := false
	w := async(func() error { err := f(); done = true; return err })
	return w, func() bool { synctest.Wait(); return done }
}

func read(c net.Conn) func() error {
	return func() error { _, err := c.Read(make([]byte, 10)); return err }
}

func write(c net.Conn) func() error {
	return func() error { _, err := c.Write(make([]byte, 10)); return err }
}

func dial(ctx context.Context, d *Device) func() error {
	return func() error { _, err := d.Dial(ctx, 1024); return err }
}

func TestDialBeforeDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := New(Config{GuestCID: guestCID})
		wait, done := ended(dial(t.Context(), dev))
		require.False(t, done())
		g := newGuest(t, dev, setup{listen: []uint32{1024}})
		require.NoError(t, wait())
		<-g.listeners[1024]
	})
}

func TestDialRefused(t *testing.T) {
	dev, _ := start(t, setup{})
	_, err := dev.Dial(t.Context(), 77)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.EqualError(t, err, "dial vsock 3:77: connection refused")
	conns, _ := dev.open()
	require.Zero(t, conns)
}

func TestDialCancelled(t *testing.T) {
	t.Run("before the driver", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.ErrorIs(t, dial(ctx, New(Config{GuestCID: guestCID}))(), context.DeadlineExceeded)
		})
	})
	t.Run("before the answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dev, g := start(t, setup{record: true})
			ctx, cancel := context.WithCancel(t.Context())
			wait := async(dial(ctx, dev))
			h := g.wait(op(opRequest))
			cancel()
			require.ErrorIs(t, wait(), context.Canceled)
			require.Equal(t, h.srcPort, g.wait(op(opRST)).srcPort)
			conns, _ := dev.open()
			require.Zero(t, conns)
		})
	})
	t.Run("before the request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dev, g := start(t, setup{record: true, starving: true})
			ctx, cancel := context.WithCancel(t.Context())
			wait, done := ended(dial(ctx, dev))
			require.False(t, done())
			cancel()
			require.ErrorIs(t, wait(), context.Canceled)
			g.feed(-1)
			synctest.Wait()
			require.Empty(t, g.recorded(), "the guest never heard of it")
		})
	})
	t.Run("at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dev, g := start(t, setup{record: true})
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(t, dial(ctx, dev)(), context.Canceled)
			synctest.Wait()
			require.Empty(t, g.recorded())
		})
	})
}

func TestDialAnsweredWrongly(t *testing.T) {
	for name, h := range map[string]header{
		"shutdown": {op: opShutdown, flags: shutdownBoth}, "half a shutdown": {op: opShutdown, flags: shutdownSend},
		"data": {op: opRW}, "credit": {op: opCreditUpdate}, "credit request": {op: opCreditRequest}, "unknown": {op: 99},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dev, g := start(t, setup{record: true})
				wait, done := ended(dial(t.Context(), dev))
				req := g.wait(op(opRequest))
				h.srcPort, h.dstPort = req.dstPort, req.srcPort
				g.send(h, nil)
				require.True(t, done())
				err := wait()
				require.ErrorIs(t, err, syscall.ECONNRESET)
				require.ErrorIs(t, err, ErrProtocol)
				g.wait(op(opRST))
			})
		})
	}
}

func TestBlockedWriteEnds(t *testing.T) {
	for name, end := range map[string]struct {
		end  func(*Conn, *guest, header)
		want error
	}{
		"close write":    {func(c *Conn, _ *guest, _ header) { _ = c.CloseWrite() }, syscall.EPIPE},
		"close":          {func(c *Conn, _ *guest, _ header) { _ = c.Close() }, net.ErrClosed},
		"deadline":       {func(c *Conn, _ *guest, _ header) { _ = c.SetWriteDeadline(time.Now().Add(time.Hour)) }, os.ErrDeadlineExceeded},
		"reset":          {func(_ *Conn, g *guest, h header) { g.send(h.as(opRST), nil) }, syscall.ECONNRESET},
		"device reset":   {func(_ *Conn, g *guest, _ header) { g.drv.SetStatus(0) }, syscall.ECONNRESET},
		"device close":   {func(_ *Conn, g *guest, _ header) { _ = g.drv.MMIO.Close() }, ErrDeviceReset},
		"device failure": {func(_ *Conn, g *guest, _ header) { shortPacket(g) }, virtio.ErrDriver},
		"guest reads no more": {func(_ *Conn, g *guest, h header) {
			h.flags = shutdownReceive
			g.send(h.as(opShutdown), nil)
		}, syscall.EPIPE},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dev, g := start(t, setup{record: true})
				c, h := rawPair(t, dev, g, 0)
				wait, done := ended(write(c))
				require.False(t, done())
				end.end(c, g, h)
				if name == "deadline" {
					time.Sleep(time.Hour)
				}
				require.True(t, done())
				require.ErrorIs(t, wait(), end.want)
			})
		})
	}
}

// shortPacket breaks the device: a packet shorter than its header.
func shortPacket(g *guest) {
	g.submit(txQueue, func(q *virtiotest.Queue) uint16 { return q.Chain(g.drv.Out(make([]byte, 10))) })
}

func TestBlockedReadEnds(t *testing.T) {
	for name, end := range map[string]struct {
		end  func(*Conn, *guest, header)
		want error
	}{
		"close read":     {func(c *Conn, _ *guest, _ header) { _ = c.CloseRead() }, io.EOF},
		"close":          {func(c *Conn, _ *guest, _ header) { _ = c.Close() }, net.ErrClosed},
		"deadline":       {func(c *Conn, _ *guest, _ header) { _ = c.SetReadDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		"reset":          {func(_ *Conn, g *guest, h header) { g.send(h.as(opRST), nil) }, syscall.ECONNRESET},
		"device reset":   {func(_ *Conn, g *guest, _ header) { g.drv.SetStatus(0) }, syscall.ECONNRESET},
		"device close":   {func(_ *Conn, g *guest, _ header) { _ = g.drv.MMIO.Close() }, ErrDeviceReset},
		"device failure": {func(_ *Conn, g *guest, _ header) { shortPacket(g) }, virtio.ErrDriver},
		"end": {func(_ *Conn, g *guest, h header) {
			h.flags = shutdownSend
			g.send(h.as(opShutdown), nil)
		}, io.EOF},
		"guest closes": {func(_ *Conn, g *guest, h header) {
			h.flags = shutdownBoth
			g.send(h.as(opShutdown), nil)
			g.wait(op(opRST))
		}, io.EOF},
		"data without credit": {func(_ *Conn, g *guest, h header) {
			for range maxWindow/(64<<10) + 1 {
				g.send(h.as(opRW), make([]byte, 64<<10))
			}
			g.wait(op(opRST))
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dev, g := start(t, setup{record: true})
				c, h := rawPair(t, dev, g, 0)
				wait, done := ended(read(c))
				require.False(t, done())
				end.end(c, g, h)
				require.True(t, done())
				require.ErrorIs(t, wait(), end.want)
			})
		})
	}
}

// TestDeadlineMovedBack has a write deadline pass and be lifted before the blocked Write sees it.
func TestDeadlineMovedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{listen: []uint32{1024}})
		c, gc := pair(t, dev, g)
		g.mu.Lock()
		g.starving = true
		g.mu.Unlock()
		var n int
		wait, done := ended(func() (err error) { n, err = c.Write(make([]byte, 2<<20)); return err })
		require.False(t, done())
		dev.mu.Lock()
		c.writeLimit.set(time.Now())
		dev.pump()
		c.writeLimit.set(time.Time{})
		dev.mu.Unlock()
		gc.discard = true
		g.mu.Lock()
		gc.consumed(len(gc.rx))
		g.mu.Unlock()
		g.feed(-1)
		require.True(t, done())
		require.NoError(t, wait())
		require.Equal(t, 2<<20, n)
	})
}

func TestCloseTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		c, _ := rawPair(t, dev, g, 0)
		require.NoError(t, c.Close())
		require.ErrorIs(t, c.Close(), net.ErrClosed)
		require.EqualValues(t, shutdownBoth, g.wait(op(opShutdown)).flags)
		synctest.Wait()
		require.Empty(t, g.recorded())
		time.Sleep(closeTimeout)
		g.wait(op(opRST))
		conns, _ := dev.open()
		require.Zero(t, conns)
	})
}

func TestHalfClose(t *testing.T) {
	dev, g := start(t, setup{})
	t.Run("host first", func(t *testing.T) {
		c, gc := pair(t, dev, g)
		require.NoError(t, c.CloseWrite())
		require.ErrorIs(t, write(c)(), syscall.EPIPE)
		_, err := gc.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
		_, err = gc.Write([]byte("answer"))
		require.NoError(t, err)
		gc.shutdown(shutdownSend)
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "answer", string(b))
		require.NoError(t, c.Close())
	})
	t.Run("guest first", func(t *testing.T) {
		c, gc := pair(t, dev, g)
		_, err := gc.Write([]byte("question"))
		require.NoError(t, err)
		gc.shutdown(shutdownSend)
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "question", string(b))
		_, err = c.Write([]byte("answer"))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		b, err = io.ReadAll(gc)
		require.NoError(t, err)
		require.Equal(t, "answer", string(b))
	})
	t.Run("host reads no more", func(t *testing.T) {
		c, gc := pair(t, dev, g)
		_, err := gc.Write([]byte("unread"))
		require.NoError(t, err)
		require.NoError(t, c.CloseRead())
		require.Equal(t, io.EOF, read(c)())
		gc.waitFor(func() bool { return gc.peerFlags == shutdownReceive })
		_, err = c.Write([]byte("on"))
		require.NoError(t, err)
		_, err = io.ReadFull(gc, make([]byte, 2))
		require.NoError(t, err)
	})
}

func TestCloseKeepsWhatWasSent(t *testing.T) {
	dev, g := start(t, setup{})
	t.Run("by the host", func(t *testing.T) {
		c, gc := pair(t, dev, g)
		_, err := gc.Write([]byte("never read"))
		require.NoError(t, err)
		_, err = c.Write(make([]byte, 100<<10))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		b, err := io.ReadAll(gc)
		require.NoError(t, err)
		require.Len(t, b, 100<<10)
	})
	t.Run("by the guest", func(t *testing.T) {
		c, gc := pair(t, dev, g)
		_, err := c.Write([]byte("never read"))
		require.NoError(t, err)
		_, err = gc.Write(make([]byte, 100<<10))
		require.NoError(t, err)
		require.NoError(t, gc.Close())
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Len(t, b, 100<<10)
		require.ErrorIs(t, write(c)(), syscall.EPIPE)
		require.NoError(t, c.Close())
	})
}

// TestReadNoMoreGivesCredit has a guest send on after CloseRead, which it may until it knows.
func TestReadNoMoreGivesCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		c, h := rawPair(t, dev, g, 0)
		require.NoError(t, c.CloseRead())
		for i := range uint32(16) {
			g.send(h.as(opRW), make([]byte, 64<<10))
			synctest.Wait()
			for _, p := range g.recorded() {
				h.fwdCnt = p.fwdCnt // what the guest knows
			}
			require.Less(t, (i+1)*64<<10-h.fwdCnt, uint32(maxWindow))
		}
	})
}

func TestDeviceCloseEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		l, err := dev.Listen(5)
		require.NoError(t, err)
		accepted, done := ended(func() error { _, err := l.Accept(); return err })
		dialled, dialDone := ended(dial(t.Context(), dev))
		require.False(t, done() || dialDone())
		require.NoError(t, g.drv.MMIO.Close())
		require.True(t, done() && dialDone())
		require.ErrorIs(t, accepted(), net.ErrClosed)
		require.ErrorIs(t, dialled(), ErrDeviceReset)
		require.ErrorIs(t, dial(t.Context(), dev)(), net.ErrClosed)
		_, err = dev.Listen(6)
		require.ErrorIs(t, err, net.ErrClosed)
		require.NoError(t, dev.Close(), "a second time")
	})
}

func TestDialAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		shortPacket(g)
		require.ErrorIs(t, g.drv.MMIO.Failure(), virtio.ErrDriver)
		wait, done := ended(dial(t.Context(), dev))
		require.True(t, done())
		require.ErrorIs(t, wait(), virtio.ErrDriver)
		g.drv.SetStatus(0)
		ctx, cancel := context.WithCancel(t.Context())
		wait, done = ended(dial(ctx, dev))
		require.False(t, done(), "a new driver may come")
		cancel()
		require.ErrorIs(t, wait(), context.Canceled)
	})
}
