package fs

import (
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// server makes sessions that answer with what they were sent, in capitals.
type server struct {
	made, closed atomic.Int32
	handling     atomic.Int32
	most         atomic.Int32
	gate         chan struct{} // if there is one, requests that begin with "wait" take a token
}

type session struct{ *server }

func (s *server) NewSession() Handler {
	s.made.Add(1)
	return session{s}
}

func (s session) Close() {
	if s.handling.Load() != 0 {
		panic("closed while a request is served")
	}
	s.closed.Add(1)
}

func (s session) Handle(in, out [][]byte) (n int) {
	now := s.handling.Add(1)
	defer s.handling.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	var msg []byte
	for _, b := range in {
		msg = append(msg, b...)
	}
	if s.gate != nil && strings.HasPrefix(string(msg), "wait") {
		<-s.gate
	}
	if string(msg) == "lie" {
		return 1 << 40
	}
	if string(msg) == "negative" {
		return -5
	}
	msg = []byte(strings.ToUpper(string(msg)))
	for _, b := range out {
		n += copy(b, msg[n:])
	}
	return n
}

func start(t testing.TB, s *server) (*virtiotest.Driver, *Device) {
	dev, err := New(Config{Tag: "work", NewSession: s.NewSession})
	require.NoError(t, err)
	return virtiotest.Start(t, dev, 0), dev
}

func TestConfig(t *testing.T) {
	d, _ := start(t, &server{})
	require.EqualValues(t, 26, d.Read32(virtiotest.RegDeviceID))
	cfg := d.Config(0, configBytes+4)
	require.Equal(t, "work"+strings.Repeat("\x00", 32), string(cfg[:TagSize]))
	require.EqualValues(t, 1, binary.LittleEndian.Uint32(cfg[36:]))
	require.Zero(t, binary.LittleEndian.Uint64(cfg[40:]))
	require.Len(t, d.Queues, 2)
	require.GreaterOrEqual(t, d.Queues[requestQueue].Size(), 256+4, "requests of 1 MiB")
}

func TestTags(t *testing.T) {
	for _, tag := range []string{"", strings.Repeat("x", 37), "a\x00b", "\xff\xfe"} {
		_, err := New(Config{Tag: tag})
		require.Error(t, err, tag)
	}
	for _, tag := range []string{"x", strings.Repeat("x", 36), strings.Repeat("é", 18)} {
		dev, err := New(Config{Tag: tag})
		require.NoError(t, err)
		require.Equal(t, tag, dev.Tag())
	}
}

func TestRequests(t *testing.T) {
	d, _ := start(t, &server{})
	for queue := range 2 {
		q := d.Queues[queue]
		a, b := d.In(4), d.In(100)
		q.Submit(d.Out([]byte("hel")), d.Out([]byte("lo, world")), a, b)
		require.EqualValues(t, 12, q.Wait().Written)
		require.Equal(t, "HELL", string(a.Bytes))
		require.Equal(t, "O, WORLD", string(b.Bytes[:8]))
		q.Submit(d.Out([]byte("no reply"))) // as FORGET
		require.Zero(t, q.Wait().Written)
		q.Submit(d.In(100)) // nothing to read
		require.Zero(t, q.Wait().Written)
		q.Submit(d.Out([]byte("lie")), d.In(10))
		require.EqualValues(t, 10, q.Wait().Written)
		q.Submit(d.Out([]byte("negative")), d.In(10))
		require.Zero(t, q.Wait().Written)
	}
	require.NoError(t, d.MMIO.Failure())
}

// TestParallel: of requests that come together, one that waits does not hold up the others, and no more are served at once than there are workers.
func TestParallel(t *testing.T) {
	s := &server{gate: make(chan struct{})}
	d, _ := start(t, s)
	q := d.Queues[requestQueue]
	slow := q.Chain(d.Out([]byte("wait")), d.In(4))
	d.MMIO.Pause() // so that they come together
	q.Offer(slow)
	q.Offer(q.Chain(d.Out([]byte("quick")), d.In(5)))
	d.MMIO.Resume()
	require.EqualValues(t, 5, q.Wait().Written)
	s.gate <- struct{}{}
	used := q.Wait()
	require.Equal(t, virtiotest.Used{Head: slow, Written: 4}, used)

	const n = 3 * maxWorkers
	d.MMIO.Pause()
	for range n {
		q.Offer(q.Chain(d.Out([]byte("wait")), d.In(4)))
	}
	d.MMIO.Resume()
	require.Eventually(t, func() bool { return s.most.Load() > 1 }, virtiotest.Timeout, time.Millisecond)
	for range n {
		s.gate <- struct{}{}
	}
	for range n {
		require.EqualValues(t, 4, q.Wait().Written)
	}
	require.LessOrEqual(t, s.most.Load(), int32(maxWorkers+1))
}

// TestSlowAlone: a request that may take a disk's time never is served in Notify.
func TestSlowAlone(t *testing.T) {
	s := &server{gate: make(chan struct{})}
	d, _ := start(t, s)
	q := d.Queues[requestQueue]
	q.Submit(d.Out([]byte("wait\x14\x00\x00\x00")), d.In(8)) // FSYNC; Submit would not return
	q.Submit(d.Out([]byte("quick")), d.In(5))
	require.EqualValues(t, 5, q.Wait().Written)
	s.gate <- struct{}{}
	require.EqualValues(t, 8, q.Wait().Written)
}

func TestPauseAndResetWait(t *testing.T) {
	s := &server{gate: make(chan struct{})}
	d, _ := start(t, s)
	q := d.Queues[requestQueue]
	for _, rest := range []func(){func() { d.MMIO.Pause() }, func() { d.SetStatus(0) }} {
		q.Submit(d.Out([]byte("wait\x14\x00\x00\x00")), d.In(8))
		rested := make(chan struct{})
		go func() {
			rest()
			require.Zero(t, s.handling.Load())
			close(rested)
		}()
		select {
		case <-rested:
			require.Fail(t, "at rest while a request is served")
		case s.gate <- struct{}{}:
		}
		<-rested
		d.MMIO.Resume()
		if d.Status() != 0 {
			require.EqualValues(t, 8, q.Wait().Written)
		}
	}
	require.EqualValues(t, 1, s.closed.Load())
}

func TestResetMakesNewSession(t *testing.T) {
	s := &server{}
	d, _ := start(t, s)
	require.EqualValues(t, 1, s.made.Load())
	d.Up(d.Offered())
	require.EqualValues(t, 2, s.made.Load())
	require.EqualValues(t, 1, s.closed.Load())
	d.SetStatus(0)
	d.SetStatus(0)
	require.EqualValues(t, 2, s.made.Load())
	require.EqualValues(t, 2, s.closed.Load())
}

func TestBrokenDriver(t *testing.T) {
	for queue := range 2 {
		d, _ := start(t, &server{})
		d.Queues[queue].SetAvailIdx(2000)
		d.Queues[queue].Kick()
		require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
	}
}

func TestSaveRestore(t *testing.T) {
	s := &server{}
	d, dev := start(t, s)
	d.MMIO.Pause()
	d.Queues[requestQueue].Submit(d.Out([]byte("hello")), d.In(5))
	state, err := d.MMIO.Save()
	require.NoError(t, err)
	n, err := New(Config{Tag: "work", NewSession: s.NewSession})
	require.NoError(t, err)
	r := d.Reattach(n, d.CopyMemory())
	require.NoError(t, r.MMIO.Restore(state))
	r.MMIO.Resume()
	require.EqualValues(t, 5, r.Queues[requestQueue].Wait().Written)
	require.EqualValues(t, 2, s.made.Load(), "a session of its own")

	other, err := New(Config{Tag: "other", NewSession: s.NewSession})
	require.NoError(t, err)
	r = d.Reattach(other, d.CopyMemory())
	var e *virtio.StateError
	require.True(t, errors.As(r.MMIO.Restore(state), &e))
	require.Error(t, dev.RestoreState([]byte("garbage")))
}

// TestStorm has many requests of both queues at once, with pauses between.
func TestStorm(t *testing.T) {
	s := &server{}
	d, _ := start(t, s)
	var wg sync.WaitGroup
	type batch struct {
		q     *virtiotest.Queue
		heads []uint16
	}
	var batches []batch
	for queue := range 2 {
		b := batch{q: d.Queues[queue]}
		for range 30 {
			b.heads = append(b.heads, b.q.Chain(d.Out([]byte("hello")), d.In(5)))
		}
		batches = append(batches, b)
	}
	for _, b := range batches {
		wg.Go(func() {
			for range 40 {
				for _, h := range b.heads {
					b.q.Offer(h)
				}
				b.q.Kick()
				for got := 0; got < len(b.heads); {
					if u, ok := b.q.Take(); ok {
						if u.Written != 5 {
							panic("a wrong answer")
						}
						got++
					} else if b.q.WantsKick() {
						b.q.Kick() // after a pause the transport does this by itself
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			require.NoError(t, d.MMIO.Failure())
			return
		default:
			d.MMIO.Pause()
			_, err := d.MMIO.Save()
			require.NoError(t, err)
			d.MMIO.Resume()
		}
	}
}

// FuzzRequest offers chains of arbitrary descriptors on both queues.
func FuzzRequest(f *testing.F) {
	f.Add([]byte{}, uint16(1), false)
	table := make([]byte, 48)
	virtiotest.PutDesc(table, 0, virtiotest.Desc{Addr: virtiotest.Base + 0x10000, Len: 64, Flags: virtiotest.Next, Next: 1})
	virtiotest.PutDesc(table, 1, virtiotest.Desc{Addr: virtiotest.Base, Len: 1 << 15, Flags: virtiotest.Write})
	virtiotest.PutDesc(table, 2, virtiotest.Desc{Addr: virtiotest.Base, Len: 48, Flags: virtiotest.Indirect})
	f.Add(table, uint16(3), true)
	f.Fuzz(func(t *testing.T, table []byte, idx uint16, hiprio bool) {
		dev, err := New(Config{Tag: "fuzz", NewSession: new(server).NewSession})
		require.NoError(t, err)
		d := virtiotest.New(t, dev, 256<<10)
		d.Up(d.Offered())
		q := d.Queues[requestQueue]
		if hiprio {
			q = d.Queues[hiprioQueue]
		}
		copy(q.Table(), table)
		for i := range uint16(8) {
			q.SetAvail(i, i)
		}
		q.SetAvailIdx(idx)
		q.Kick()
		q.SetAvailIdx(idx + 1)
		q.Kick()
	})
}

func BenchmarkRequest(b *testing.B) {
	d, _ := start(b, &server{})
	q := d.Queues[requestQueue]
	head := q.Chain(d.Out([]byte("hello")), d.In(5))
	b.ReportAllocs()
	for b.Loop() {
		q.Offer(head)
		q.Kick()
		if _, ok := q.Take(); !ok {
			b.Fatal(d.MMIO.Failure())
		}
	}
}
