package balloon

import (
	"context"
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// stat appends one entry of a driver's buffer.
func stat(b []byte, tag uint16, value uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(b, tag), value)
}

// statsDriver answers like Linux: one buffer, filled anew with a counter as free memory whenever the device has used it.
type statsDriver struct {
	g      *guest
	q      *virtiotest.Queue
	buffer virtiotest.Buffer
	count  uint64
}

// startStats brings the driver up, with its first buffer in the queue.
func startStats(g *guest) *statsDriver {
	s := &statsDriver{g: g, q: g.Queues[statsQueue], buffer: g.Out(make([]byte, statBytes))}
	s.refill()
	return s
}

func (s *statsDriver) refill() {
	s.count++
	copy(s.buffer.Bytes, stat(nil, 4, s.count))
	s.q.Submit(s.buffer)
}

// answer refills the buffer if the device has used it.
func (s *statsDriver) answer() bool {
	if _, ok := s.q.Poll(); !ok {
		return false
	}
	s.refill()
	return true
}

// asking calls Stats on another goroutine.
func asking(t testing.TB, d *Device) <-chan answer {
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Timeout)
	t.Cleanup(cancel)
	c := make(chan answer, 1)
	go func() {
		s, err := d.Stats(ctx)
		c <- answer{s, err}
	}()
	return c
}

// asked waits until a request has begun.
func asked(t testing.TB, d *Device) {
	t.Helper()
	require.Eventually(t, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.stats.waiting != nil
	}, virtiotest.Timeout, time.Millisecond)
}

// get carries a whole request out.
func (s *statsDriver) get(t testing.TB) Stats {
	t.Helper()
	c := asking(t, s.g.dev)
	for deadline := time.Now().Add(virtiotest.Timeout); ; {
		s.answer()
		select {
		case a := <-c:
			require.NoError(t, a.err)
			return a.stats
		case <-time.After(time.Millisecond):
			require.True(t, time.Now().Before(deadline))
		}
	}
}

// timeout begins a request that nobody answers.
func timeout(t testing.TB, d *Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	_, err := d.Stats(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestStatsAreFresh(t *testing.T) {
	for _, without := range []uint64{0, virtio.FeatureEventIdx, FeatureReporting} {
		g := boot(t, without)
		s := startStats(g)
		for i := range 5 {
			require.EqualValues(t, i+2, s.get(t).Free, "one buffer for each request, filled after it")
		}
		require.EqualValues(t, 6, s.count)
		require.NoError(t, g.MMIO.Failure())
	}
}

func TestStatsTags(t *testing.T) {
	var all []byte
	for tag := range uint16(10) {
		all = stat(all, tag, 1000+uint64(tag))
	}
	full := Stats{
		SwapIn: 1000, SwapOut: 1001, MajorFaults: 1002, MinorFaults: 1003, Free: 1004, Total: 1005, Available: 1006, Caches: 1007,
		HugePagesAllocated: 1008, HugePagesFailed: 1009,
	}
	for _, tt := range []struct {
		name string
		cuts []int // where descriptors end
		data []byte
		want Stats
	}{
		{"all", nil, all, full},
		{"in pieces", []int{1, 2, 13, 50}, all, full},
		{"unknown tags", nil, stat(stat(stat(nil, 10, 1), 5, 2), 0xffff, 3), Stats{Total: 2}},
		{"the last counts", nil, stat(stat(nil, 4, 1), 4, 2), Stats{Free: 2}},
		{"too large", nil, stat(stat(nil, 4, math.MaxUint64), 5, 1<<63-1), Stats{Free: math.MaxInt64, Total: math.MaxInt64}},
		{"half an entry", nil, stat(stat(nil, 5, 7), 4, 1)[:19], Stats{Total: 7}},
		{"one byte", nil, []byte{4}, Stats{}},
		{"very long", nil, append(stat(make([]byte, maxStatBytes-statBytes), 6, 5), stat(make([]byte, 1<<20-1), 4, 9)...), Stats{Available: 5}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, 0)
			q := g.Queues[statsQueue]
			c := asking(t, g.dev) // before the driver's first buffer, which then is the answer
			asked(t, g.dev)
			var bufs []virtiotest.Buffer
			from := 0
			for _, to := range append(tt.cuts, len(tt.data)) {
				bufs = append(bufs, g.Out(tt.data[from:to]))
				from = to
			}
			q.Submit(bufs...)
			a := <-c
			require.NoError(t, a.err)
			require.Equal(t, tt.want, a.stats)
		})
	}
}

func TestStatsWithoutDriver(t *testing.T) {
	g := attach(t, virtiotest.NewMemory(t, memorySize))
	_, err := g.dev.Stats(context.Background())
	require.ErrorIs(t, err, ErrNoStats)
	g.Up(g.Offered() &^ FeatureStats)
	_, err = g.dev.Stats(context.Background())
	require.ErrorIs(t, err, ErrNoStats)
	g.Up(g.Offered())
	c := asking(t, g.dev)
	asked(t, g.dev)
	g.SetStatus(0)
	require.ErrorIs(t, (<-c).err, ErrNoStats)
	_, err = g.dev.Stats(context.Background())
	require.ErrorIs(t, err, ErrNoStats)
	g.Up(g.Offered())
	require.EqualValues(t, 2, startStats(g).get(t).Free, "and again after a reset")
}

func TestStatsUnanswered(t *testing.T) {
	g := boot(t, 0)
	timeout(t, g.dev) // no buffer at all
	s := startStats(g)
	require.Zero(t, s.q.UsedIdx(), "nobody waits any more")
	timeout(t, g.dev)
	require.EqualValues(t, 1, s.q.UsedIdx())
	timeout(t, g.dev) // the driver has the buffer
	require.EqualValues(t, 1, s.q.UsedIdx())
	require.True(t, s.answer()) // late
	require.EqualValues(t, 3, s.get(t).Free, "not the late answer")

	gone, cancel := context.WithCancelCause(context.Background())
	cancel(context.Canceled)
	_, err := g.dev.Stats(gone)
	require.ErrorIs(t, err, context.Canceled)

	// One that waits for its turn gives up as well.
	asking(t, g.dev)
	asked(t, g.dev)
	timeout(t, g.dev)
}

func TestStatsDuringPause(t *testing.T) {
	g := boot(t, 0)
	s := startStats(g)
	require.EqualValues(t, 2, s.get(t).Free) // the device holds the buffer
	require.EqualValues(t, 1, s.q.UsedIdx())
	g.MMIO.Pause()
	require.EqualValues(t, 2, s.q.UsedIdx(), "a paused device holds nothing")
	c := asking(t, g.dev)
	asked(t, g.dev)
	g.save(t)
	require.True(t, s.answer()) // as if by a vCPU that runs up to the end of the pause
	g.MMIO.Resume()
	for !s.answer() {
		g.WaitInterrupt()
	}
	a := <-c
	require.NoError(t, a.err)
	require.EqualValues(t, 4, a.stats.Free, "what was filled before the pause ended is old")
}

// TestStatsAcrossRestore saves at each point of a request.
func TestStatsAcrossRestore(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(*testing.T, *statsDriver)
	}{
		{"no request yet", func(*testing.T, *statsDriver) {}},
		{"after a request", func(t *testing.T, s *statsDriver) { s.get(t) }},
		{"the driver has the buffer", func(t *testing.T, s *statsDriver) { timeout(t, s.g.dev) }},
		{"a late answer", func(t *testing.T, s *statsDriver) { timeout(t, s.g.dev); s.answer() }},
		{"while it waits", func(t *testing.T, s *statsDriver) { asking(t, s.g.dev); asked(t, s.g.dev) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, 0)
			s := startStats(g)
			tt.prepare(t, s)
			g.MMIO.Pause()
			n := g.restore(t, g.save(t))
			n.MMIO.Resume()
			buffer := s.buffer
			buffer.Bytes, _ = n.Mem.Slice(buffer.Addr, uint64(len(buffer.Bytes)))
			restored := &statsDriver{n, n.Queues[statsQueue], buffer, s.count + 100}
			for range 3 {
				require.Greater(t, restored.get(t).Free, int64(100))
			}
			require.NoError(t, n.MMIO.Failure())

			g.MMIO.Resume()
			s.count += 200
			for range 3 {
				if tt.name == "while it waits" {
					break // there is one whose answer nobody reads
				}
				require.Greater(t, s.get(t).Free, int64(200))
			}
		})
	}
}

// TestStatsQueueDisabled takes the queue from under a device that holds a buffer.
func TestStatsQueueDisabled(t *testing.T) {
	g := boot(t, 0)
	s := startStats(g)
	s.get(t)
	g.Write32(virtiotest.RegQueueSel, statsQueue)
	g.Write32(virtiotest.RegQueueReady, 0)
	timeout(t, g.dev)
	g.MMIO.Pause()
	g.save(t)
	g.MMIO.Resume()
	require.NoError(t, g.MMIO.Failure())
}

// TestManyStatsBuffers: a driver may make one buffer available, this one makes as many as there are.
func TestManyStatsBuffers(t *testing.T) {
	g := boot(t, 0)
	q := g.Queues[statsQueue]
	for range queueSize {
		q.Offer(q.Chain(g.Out(stat(nil, 5, 1))))
	}
	q.Kick()
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Timeout)
	defer cancel()
	for i := range 5 {
		s, err := g.dev.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, Stats{Total: 1}, s)
		require.EqualValues(t, i+1, q.UsedIdx())
	}
	g.MMIO.Pause()
	g.save(t)
}

// TestEverythingAtOnce has all callers and a driver at work through pauses, saves and resets, mostly for the race detector.
func TestEverythingAtOnce(t *testing.T) {
	g := boot(t, 0)
	var stop atomic.Bool
	var group sync.WaitGroup
	var answers atomic.Int64
	loop := func(f func(i int)) {
		group.Go(func() {
			for i := 0; !stop.Load(); i++ {
				f(i)
				time.Sleep(10 * time.Microsecond) // for one CPU to serve all
			}
		})
	}
	for range 2 {
		loop(func(int) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if _, err := g.dev.Stats(ctx); err == nil {
				answers.Add(1)
			}
		})
	}
	loop(func(i int) { g.dev.SetTarget(int64(i%64) * PageSize) })
	loop(func(int) { _, _, _, _ = g.dev.Actual(), g.dev.Target(), g.dev.Reclaimed(), g.dev.Err() })
	loop(func(i int) {
		g.MMIO.Pause()
		if i%8 == 0 {
			_, err := g.MMIO.Save()
			if err != nil {
				t.Error(err)
			}
		}
		g.MMIO.Resume()
		time.Sleep(time.Millisecond)
	})
	for _, queue := range []int{inflateQueue, reportingQueue} {
		q := g.Queues[queue]
		buf := g.Out(pfnBuffer(0x200, 0x201, 0x300))
		if queue == reportingQueue {
			buf = g.in(virtiotest.Base+4<<20, 2<<20)
		}
		loop(func(i int) {
			q.Submit(buf)
			for {
				if _, ok := q.Poll(); ok || stop.Load() {
					break
				}
				time.Sleep(10 * time.Microsecond)
			}
			g.Write32(virtiotest.RegConfig+4, uint32(i))
		})
	}
	s := startStats(g)
	loop(func(int) { s.answer() })
	require.Eventually(t, func() bool { return answers.Load() >= 20 }, virtiotest.Timeout, time.Millisecond)
	stop.Store(true)
	group.Wait()
	require.NoError(t, g.MMIO.Failure())
	require.Positive(t, g.dev.Reclaimed())
}
