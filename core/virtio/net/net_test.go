package net

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

var testMAC = MAC{2, 0, 0, 0, 0, 1}

// cable is a link that keeps what it gets.
type cable struct {
	deliver func([][]byte) bool
	onSend  func([]byte)

	mu   sync.Mutex
	sent [][]byte
	more chan struct{} // holds a token after each frame
}

func newCable() *cable { return &cable{more: make(chan struct{}, 1)} }

func (c *cable) Attach(deliver func([][]byte) bool) { c.deliver = deliver }

func (c *cable) Send(parts [][]byte) {
	f := bytes.Join(parts, nil)
	c.mu.Lock()
	c.sent = append(c.sent, f)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
	if c.onSend != nil {
		c.onSend(f)
	}
}

func (c *cable) frames() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte(nil), c.sent...)
}

func (c *cable) one(f []byte) bool { return c.deliver([][]byte{f}) }

func newDevice(t testing.TB, c Config) (*Device, *cable) {
	l := newCable()
	c.Link, c.MAC = l, testMAC
	d, err := New(c)
	require.NoError(t, err)
	return d, l
}

// frame returns n bytes that tell frames apart.
func frame(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7)
	}
	return b
}

func withHeader(f []byte) []byte { return append(make([]byte, headerBytes), f...) }

func TestConfig(t *testing.T) {
	dev, _ := newDevice(t, Config{MTU: 9000})
	d := virtiotest.Start(t, dev, 0)
	require.EqualValues(t, 1, dev.ID())
	require.Equal(t, testMAC[:], d.Config(0, 6))
	require.EqualValues(t, 9000, binary.LittleEndian.Uint16(d.Config(10, 2)))
	require.Equal(t, make([]byte, 4), d.Config(12, 4))
	for _, c := range []Config{
		{MAC: MAC{}}, {MAC: MAC{1}}, {MAC: testMAC, MTU: 67}, {MAC: testMAC, MTU: MaxMTU + 1}, {MAC: testMAC, QueueBytes: 100},
		{MAC: testMAC, FromGuest: -1},
	} {
		c.Link = newCable()
		_, err := New(c)
		require.Error(t, err, "%+v", c)
	}
	_, err := New(Config{MAC: testMAC})
	require.ErrorContains(t, err, "no link")
	require.Equal(t, "02:00:00:00:00:01", testMAC.String())
}

func TestTransmit(t *testing.T) {
	dev, l := newDevice(t, Config{})
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[txQueue]
	small, large := frame(60, 1), frame(MaxMTU+ethernetBytes, 2)
	q.Submit(d.Out(withHeader(small)))
	require.Zero(t, q.Wait().Written)
	// Framing is free: the header in a buffer of its own, or split.
	q.Submit(d.Out(make([]byte, headerBytes)), d.Out(small[:1]), d.Out(small[1:]))
	q.Wait()
	q.Submit(d.Out(make([]byte, 5)), d.Out(withHeader(small)[5:]))
	q.Wait()
	head := q.ChainIndirect(d.Out(withHeader(large[:40000])), d.Out(large[40000:]))
	q.Offer(head)
	q.Kick()
	q.Wait()
	require.Equal(t, [][]byte{small, small, small, large}, l.frames())
	require.Equal(t, Stats{PacketsFromGuest: 4, BytesFromGuest: uint64(3*60 + MaxMTU + ethernetBytes)}, dev.Stats())
}

func TestTransmitOfHostileFrames(t *testing.T) {
	dev, l := newDevice(t, Config{MTU: 1500})
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[txQueue]
	tso := withHeader(frame(60, 1))
	tso[1] = 1 // VIRTIO_NET_HDR_GSO_TCPV4, which was not offered
	for _, b := range [][]byte{make([]byte, headerBytes), withHeader(frame(13, 1)), withHeader(frame(1515, 1)), withHeader(frame(70000, 1)), tso} {
		q.Submit(d.Out(b))
		q.Wait()
	}
	require.NoError(t, d.MMIO.Failure())
	require.Empty(t, l.frames())
	require.EqualValues(t, 5, dev.Stats().DroppedFromGuest)
	q.Submit(d.Out(withHeader(frame(1514, 1))))
	q.Wait()
	require.Len(t, l.frames(), 1)

	q.Submit(d.Out(make([]byte, headerBytes-1)))
	q.Wait()
	require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
	require.EqualValues(t, 1, dev.Stats().PacketsFromGuest)
	d.Up(d.Offered()) // and works again after a reset
	d.Queues[txQueue].Submit(d.Out(withHeader(frame(60, 1))))
	d.Queues[txQueue].Wait()
	require.Len(t, l.frames(), 2)
}

// received puts the buffers of a frame together. It checks the header.
func received(t *testing.T, q *virtiotest.Queue, bufs map[uint16]virtiotest.Buffer, flags byte) []byte {
	t.Helper()
	u := q.Wait()
	b := bufs[u.Head].Bytes[:u.Written]
	n := binary.LittleEndian.Uint16(b[10:])
	require.Equal(t, flags, b[0])
	require.Equal(t, make([]byte, 9), b[1:10])
	f := bytes.Clone(b[headerBytes:])
	for range n - 1 {
		u := q.Wait()
		f = append(f, bufs[u.Head].Bytes[:u.Written]...)
	}
	return f
}

func TestReceive(t *testing.T) {
	dev, l := newDevice(t, Config{})
	require.False(t, l.one(frame(60, 1)), "nobody is there")
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[rxQueue]
	bufs := map[uint16]virtiotest.Buffer{}
	offer := func(n int) {
		b := d.In(n)
		bufs[q.Submit(b)] = b
	}
	offer(1600)
	require.True(t, l.deliver([][]byte{frame(60, 1)[:14], frame(60, 1)[14:]}))
	require.Equal(t, frame(60, 1), received(t, q, bufs, flagDataValid))

	// A frame of many buffers, which come while it waits.
	large := frame(MaxMTU+ethernetBytes, 3)
	for range 10 {
		offer(1600)
	}
	require.True(t, l.one(large))
	_, ok := q.Poll()
	require.False(t, ok)
	for range 40 {
		offer(1600)
	}
	require.Equal(t, large, received(t, q, bufs, flagDataValid))
	require.True(t, l.one(frame(100, 4)), "what was left of the buffers")
	require.Equal(t, frame(100, 4), received(t, q, bufs, flagDataValid))
	require.False(t, l.one(frame(13, 0)))
	require.False(t, l.one(frame(MaxMTU+ethernetBytes+1, 0)))
	require.EqualValues(t, 3, dev.Stats().DroppedToGuest)
	require.EqualValues(t, 3, dev.Stats().PacketsToGuest)
	require.EqualValues(t, 160+MaxMTU+ethernetBytes, dev.Stats().BytesToGuest)
}

func TestReceiveWithoutFeatures(t *testing.T) {
	dev, l := newDevice(t, Config{})
	d := virtiotest.Start(t, dev, FeatureMergeBuffers|FeatureGuestChecksum)
	q := d.Queues[rxQueue]
	bufs := map[uint16]virtiotest.Buffer{}
	b := d.In(1526)
	bufs[q.Submit(b)] = b
	require.True(t, l.one(frame(1515, 1)), "larger than the buffer: dropped, and the buffer stays")
	_, ok := q.Poll()
	require.False(t, ok)
	require.EqualValues(t, 1, dev.Stats().DroppedToGuest)
	require.True(t, l.one(frame(1514, 2)))
	require.Equal(t, frame(1514, 2), received(t, q, bufs, 0))
}

func TestReceiveQueueIsBounded(t *testing.T) {
	dev, l := newDevice(t, Config{MTU: 1500, QueueBytes: 20 * (1000 + frameOverhead)})
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[rxQueue]
	for i := range 30 {
		require.Equal(t, i < 20, l.one(frame(1000, byte(i))), i)
	}
	require.EqualValues(t, 10, dev.Stats().DroppedToGuest)
	bufs := map[uint16]virtiotest.Buffer{}
	for i := range 20 {
		b := d.In(1600)
		head := q.Chain(b)
		bufs[head] = b
		q.Offer(head)
		if i == 0 {
			require.True(t, q.WantsKick(), "the device waits for buffers")
		}
	}
	q.Kick()
	for i := range 20 {
		require.Equal(t, frame(1000, byte(i)), received(t, q, bufs, flagDataValid), "in order")
	}
	require.True(t, l.one(frame(1000, 0)), "there is room again")
	d.SetStatus(0)
	require.EqualValues(t, 11, dev.Stats().DroppedToGuest, "a reset drops what waits")
	require.True(t, dev.rx.waiting.empty())
}

func TestReceiveBuffersOfHostileDrivers(t *testing.T) {
	t.Run("without header", func(t *testing.T) {
		dev, l := newDevice(t, Config{})
		d := virtiotest.Start(t, dev, 0)
		d.Queues[rxQueue].Submit(d.In(headerBytes - 1))
		l.one(frame(60, 1))
		require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
		require.False(t, l.one(frame(60, 1)))
		d.Up(d.Offered())
		require.True(t, l.one(frame(60, 1)), "after a reset")
	})
	t.Run("while frames wait", func(t *testing.T) {
		dev, l := newDevice(t, Config{})
		d := virtiotest.Start(t, dev, 0)
		for range 3 {
			require.True(t, l.one(frame(60, 1)))
		}
		d.Queues[rxQueue].Submit(d.Out(make([]byte, 2000)))
		require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
		require.EqualValues(t, 3, dev.Stats().DroppedToGuest)
		require.False(t, l.one(frame(60, 1)))
	})
	t.Run("all too small", func(t *testing.T) {
		dev, l := newDevice(t, Config{})
		d := virtiotest.Start(t, dev, 0)
		q := d.Queues[rxQueue]
		for q.Free() > 0 {
			q.Offer(q.Chain(d.In(headerBytes)))
		}
		l.one(frame(60000, 1))
		require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
		d.MMIO.Pause()
		d.MMIO.Resume()
	})
	t.Run("readable", func(t *testing.T) {
		dev, l := newDevice(t, Config{})
		d := virtiotest.Start(t, dev, 0)
		d.Queues[rxQueue].Submit(d.Out(make([]byte, 2000)))
		l.one(frame(60, 1))
		require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
	})
}

// TestAnswers has a link that answers within Send.
func TestAnswers(t *testing.T) {
	dev, l := newDevice(t, Config{})
	l.onSend = func(f []byte) { l.one(f) }
	d := virtiotest.Start(t, dev, 0)
	bufs := map[uint16]virtiotest.Buffer{}
	b := d.In(2000)
	bufs[d.Queues[rxQueue].Submit(b)] = b
	d.Queues[txQueue].Submit(d.Out(withHeader(frame(99, 1))))
	require.Equal(t, frame(99, 1), received(t, d.Queues[rxQueue], bufs, flagDataValid))
}

func TestSaveRestore(t *testing.T) {
	dev, l := newDevice(t, Config{})
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[rxQueue]
	bufs := map[uint16]virtiotest.Buffer{}
	for range 3 {
		b := d.In(2000)
		bufs[q.Submit(b)] = b
	}
	require.True(t, l.one(frame(7000, 1)), "needs four buffers: three are held")
	d.MMIO.Pause()
	require.True(t, l.one(frame(100, 2)))
	d.Queues[txQueue].Submit(d.Out(withHeader(frame(99, 3))))
	require.Empty(t, l.frames(), "paused")
	s, err := d.MMIO.Save()
	require.NoError(t, err)
	raw, err := msgpack.Marshal(s)
	require.NoError(t, err)
	var back virtio.State
	require.NoError(t, msgpack.Unmarshal(raw, &back))

	// The copy has a link of its own; frames on the way are lost, nothing else.
	dev2, l2 := newDevice(t, Config{})
	n := d.Reattach(dev2, d.CopyMemory())
	require.NoError(t, n.MMIO.Restore(back))
	n.MMIO.Resume()
	n.Queues[txQueue].Wait()
	require.Equal(t, [][]byte{frame(99, 3)}, l2.frames())
	require.True(t, l2.one(frame(5000, 4)))
	var got []byte
	for range 3 {
		u := n.Queues[rxQueue].Wait()
		addr := bufs[u.Head].Addr
		b, ok := n.Mem.Slice(addr, uint64(u.Written))
		require.True(t, ok)
		got = append(got, b...)
	}
	require.Equal(t, frame(5000, 4), got[headerBytes:])

	// The original goes on too, with the frames that waited.
	b := d.In(2000)
	head := q.Chain(b)
	bufs[head] = b
	d.MMIO.Resume()
	q.Offer(head)
	q.Kick()
	require.Equal(t, frame(7000, 1), received(t, q, bufs, flagDataValid))

	other, err := New(Config{MAC: MAC{2, 2}, Link: newCable()})
	require.NoError(t, err)
	require.ErrorContains(t, other.RestoreState(back.Device), "02:00:00:00:00:01")
	require.Error(t, other.RestoreState([]byte("no msgpack")))
}

// TestRates measures both directions against the clock.
func TestRates(t *testing.T) {
	const rate, size, count = 4 << 20, 16 << 10, 96
	t.Run("from guest", func(t *testing.T) {
		dev, l := newDevice(t, Config{FromGuest: rate})
		d := virtiotest.Start(t, dev, 0)
		q := d.Queues[txQueue]
		begin := time.Now()
		out := d.Out(withHeader(frame(size, 1)))
		for range count {
			q.Offer(q.Chain(out))
		}
		q.Kick()
		for range count {
			q.Wait()
		}
		checkRate(t, begin, rate, size*count)
		require.Len(t, l.frames(), count)
	})
	t.Run("to guest", func(t *testing.T) {
		dev, l := newDevice(t, Config{ToGuest: rate})
		d := virtiotest.Start(t, dev, 0)
		q := d.Queues[rxQueue]
		in := d.In(size + headerBytes)
		for range count {
			q.Offer(q.Chain(in))
		}
		begin := time.Now()
		for range count {
			require.True(t, l.one(frame(size, 1)))
		}
		for range count {
			q.Wait()
		}
		checkRate(t, begin, rate, size*count)
		require.EqualValues(t, count, dev.Stats().PacketsToGuest)
	})
	t.Run("paused and reset while it waits", func(t *testing.T) {
		dev, l := newDevice(t, Config{FromGuest: 1, ToGuest: 1})
		d := virtiotest.Start(t, dev, 0)
		for range 3 {
			d.Queues[rxQueue].Submit(d.In(40000))
			d.Queues[txQueue].Submit(d.Out(withHeader(frame(40000, 1))))
			l.one(frame(40000, 1))
		}
		require.Len(t, l.frames(), 2, "the burst and a debt")
		d.MMIO.Pause()
		d.MMIO.Resume()
		require.Eventually(t, func() bool {
			dev.tx.Lock()
			defer dev.tx.Unlock()
			return dev.tx.timer != nil
		}, virtiotest.Timeout, time.Millisecond)
		d.SetStatus(0)
		require.Nil(t, dev.tx.timer)
		require.Nil(t, dev.rx.timer)
	})
}

// checkRate fails if n bytes were moved much faster or slower than the rate says, less the burst.
func checkRate(t *testing.T, begin time.Time, rate, n float64) {
	t.Helper()
	took := time.Since(begin)
	ideal := time.Duration((n - rate*(50*time.Millisecond).Seconds()) / rate * float64(time.Second))
	require.Greater(t, took, ideal*9/10)
	require.Less(t, took, ideal*3+time.Second)
}

// TestStorm has frames in both directions while the machine pauses.
func TestStorm(t *testing.T) {
	const count = 2000
	dev, l := newDevice(t, Config{})
	d := virtiotest.Start(t, dev, 0)
	rx, tx := d.Queues[rxQueue], d.Queues[txQueue]
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for i := range count {
				for !l.one(frame(14+i%5000, byte(i))) {
				}
			}
		})
	}
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				d.MMIO.Pause()
				d.MMIO.Resume()
			}
		}
	})
	in, out := d.In(1600), d.Out(withHeader(frame(1000, 1)))
	for range 100 {
		rx.Submit(in)
	}
	got, sent, next := 0, 0, 0
	for got < 2*count || sent < count {
		if next < count && tx.Free() > 0 {
			tx.Submit(out)
			next++
		}
		if _, ok := tx.Poll(); ok {
			sent++
		}
		for u, ok := rx.Poll(); ok; u, ok = rx.Poll() {
			_ = u
			rx.Submit(in)
		}
		got = int(dev.Stats().PacketsToGuest)
	}
	close(stop)
	all.Wait()
	require.NoError(t, d.MMIO.Failure())
	require.Len(t, l.frames(), count)
}

// FuzzQueues lets the device work on rings of arbitrary bytes, with frames under way.
func FuzzQueues(f *testing.F) {
	for _, flags := range []uint16{0, virtiotest.Write, virtiotest.Indirect, virtiotest.Next} {
		table := make([]byte, 32)
		virtiotest.PutDesc(table, 0, virtiotest.Desc{Addr: virtiotest.Base + 0x10000, Len: 100, Flags: flags, Next: 1})
		virtiotest.PutDesc(table, 1, virtiotest.Desc{Addr: virtiotest.Base + 0x10000, Len: 70000, Flags: flags &^ virtiotest.Next})
		f.Add(table, uint16(1), uint64(0), uint16(60))
		f.Add(table, uint16(2), FeatureMergeBuffers, uint16(60000))
	}
	f.Fuzz(func(t *testing.T, table []byte, idx uint16, without uint64, size uint16) {
		dev, l := newDevice(t, Config{QueueBytes: 200 << 10})
		l.onSend = func(f []byte) {
			if len(f) < ethernetBytes || len(f) > MaxMTU+ethernetBytes {
				t.Fatalf("a frame of %d bytes", len(f))
			}
			l.one(f)
		}
		d := virtiotest.New(t, dev, 256<<10)
		d.Up(d.Offered() &^ (without & (FeatureMergeBuffers | FeatureGuestChecksum)))
		for i, q := range d.Queues {
			copy(q.Table(), table)
			for head := range uint16(16) {
				q.SetAvail(head, head+uint16(i))
			}
			q.SetAvailIdx(idx)
			q.Kick()
		}
		for range 10 {
			l.one(frame(int(size), 1))
		}
		d.MMIO.Pause()
		d.MMIO.Resume()
		for _, q := range d.Queues {
			q.SetAvailIdx(idx + 1)
			q.Kick()
		}
		if dev.rx.waiting.bytes > 200<<10 {
			t.Fatalf("%d bytes wait", dev.rx.waiting.bytes)
		}
	})
}

// FuzzTransmit sends a frame of arbitrary bytes in arbitrary pieces.
func FuzzTransmit(f *testing.F) {
	f.Add(withHeader(frame(60, 1)), uint16(12), uint16(30))
	f.Add(withHeader(frame(60, 1)), uint16(3), uint16(3))
	f.Add([]byte{0, 1, 2}, uint16(1), uint16(2))
	f.Fuzz(func(t *testing.T, b []byte, i, j uint16) {
		if len(b) == 0 || len(b) > 128<<10 {
			return
		}
		dev, l := newDevice(t, Config{})
		d := virtiotest.Start(t, dev, 0)
		x, y := int(i)%len(b), int(j)%len(b)
		d.Queues[txQueue].Submit(d.Out(b[:min(x, y)]), d.Out(b[min(x, y):max(x, y)]), d.Out(b[max(x, y):]))
		sent, valid := l.frames(), len(b) >= headerBytes+ethernetBytes && len(b) <= headerBytes+ethernetBytes+MaxMTU && b[1] == 0
		if valid != (len(sent) == 1) || valid && !bytes.Equal(sent[0], b[headerBytes:]) {
			t.Fatalf("%d bytes in pieces at %d and %d: sent %d frames", len(b), x, y, len(sent))
		}
	})
}

func BenchmarkTransmit(b *testing.B) {
	dev, l := newDevice(b, Config{})
	d := virtiotest.Start(b, dev, 0)
	q := d.Queues[txQueue]
	head := q.Chain(d.Out(withHeader(frame(MaxMTU+ethernetBytes, 1))))
	b.SetBytes(MaxMTU)
	for b.Loop() {
		q.Offer(head)
		q.Kick()
		q.Take()
		l.sent = l.sent[:0]
	}
}

func BenchmarkReceive(b *testing.B) {
	dev, l := newDevice(b, Config{})
	d := virtiotest.Start(b, dev, 0)
	q := d.Queues[rxQueue]
	var heads []uint16
	for range 17 {
		heads = append(heads, q.Chain(d.In(4096)))
	}
	f := frame(MaxMTU+ethernetBytes, 1)
	b.SetBytes(MaxMTU)
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range heads {
			q.Offer(h)
		}
		if !l.one(f) {
			b.Fatal("dropped")
		}
		for range heads {
			q.Take()
		}
	}
}
