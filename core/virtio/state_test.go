package virtio_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// saved pauses the device of d and returns its state after a round trip through msgpack.
func saved(t *testing.T, d *virtiotest.Driver) virtio.State {
	d.MMIO.Pause()
	s, err := d.MMIO.Save()
	require.NoError(t, err)
	b, err := msgpack.Marshal(s)
	require.NoError(t, err)
	var back virtio.State
	require.NoError(t, msgpack.Unmarshal(b, &back))
	require.Equal(t, s, back)
	return back
}

func TestSaveNeedsPause(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	_, err := d.MMIO.Save()
	require.ErrorIs(t, err, virtio.ErrNotPaused)
}

func TestSaveRefusesChainsInFlight(t *testing.T) {
	d, dq, q := pull(t, 0)
	dq.Offer(dq.Chain(d.In(1)))
	c, _, err := q.Pop()
	require.NoError(t, err)
	d.MMIO.Pause()
	_, err = d.MMIO.Save()
	require.ErrorContains(t, err, "1 chains in flight")
	q.Push(c.Head, 0)
	_, err = d.MMIO.Save()
	require.ErrorContains(t, err, "1 not flushed")
	q.Flush()
	_, err = d.MMIO.Save()
	require.NoError(t, err)
}

func TestRestoreGoesOn(t *testing.T) {
	for name, without := range map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			d := virtiotest.Start(t, &echo{state: []byte("mine")}, without)
			for range 20 {
				in := d.In(1)
				d.Queues[1].Submit(d.Out([]byte("a")), in)
				d.Queues[1].Wait()
			}
			d.MMIO.Pause()
			// Announced during the pause: one with a notification, which is lost with the process, and one without.
			in1, in2 := d.In(5), d.In(5)
			d.Queues[1].Submit(d.Out([]byte("first")), in1)
			d.Queues[0].Offer(d.Queues[0].Chain(d.Out([]byte("other")), in2))
			_, ok := d.Queues[1].Poll()
			require.False(t, ok, "paused")
			s := saved(t, d)

			dev := &echo{}
			n := d.Reattach(dev, d.CopyMemory())
			require.NoError(t, n.MMIO.Restore(s))
			require.Equal(t, "mine", string(dev.state))
			require.Equal(t, d.Status(), n.Status())
			again, err := n.MMIO.Save()
			require.NoError(t, err)
			require.Equal(t, s, again)
			n.MMIO.Resume()
			require.EqualValues(t, 5, n.Queues[1].Wait().Written)
			require.EqualValues(t, 5, n.Queues[0].Wait().Written)
			in := n.In(2)
			n.Queues[1].Submit(n.Out([]byte("go")), in)
			n.Queues[1].Wait()
			require.Equal(t, "go", string(in.Bytes))

			// The original goes on as well, untouched by its copy.
			d.MMIO.Resume()
			require.EqualValues(t, 5, d.Queues[1].Wait().Written)
			require.Equal(t, "first", string(in1.Bytes))
		})
	}
}

func TestRestoreRaisesPendingInterrupt(t *testing.T) {
	dev := &echo{}
	d := virtiotest.Start(t, dev, 0)
	dev.env.Interrupt()
	s := saved(t, d)
	n := d.Reattach(&echo{}, d.CopyMemory())
	require.NoError(t, n.MMIO.Restore(s))
	require.Zero(t, n.Interrupts())
	n.MMIO.Resume()
	require.EqualValues(t, 1, n.WaitInterrupt())
}

func TestRestoreBeforeDriver(t *testing.T) {
	d := virtiotest.New(t, &echo{}, 1<<20)
	d.SetStatus(ack | driver)
	s := saved(t, d)
	n := virtiotest.New(t, &echo{}, 16<<20)
	require.NoError(t, n.MMIO.Restore(s))
	n.MMIO.Resume()
	require.Equal(t, ack|driver, n.Status())
	n.Up(n.Offered())
	in := n.In(1)
	n.Queues[0].Submit(n.Out([]byte("x")), in)
	require.EqualValues(t, 1, n.Queues[0].Wait().Written)
}

func TestRestoreBrokenDevice(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	d.Queues[0].SetAvailIdx(99)
	d.Queues[0].Kick()
	s := saved(t, d)
	n := d.Reattach(&echo{}, d.CopyMemory())
	require.NoError(t, n.MMIO.Restore(s))
	n.MMIO.Resume()
	require.EqualError(t, n.MMIO.Failure(), d.MMIO.Failure().Error())
	require.NotZero(t, n.Status()&needs)
	n.Up(n.Offered())
	require.NoError(t, n.MMIO.Failure())
}

func TestRestoreRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*virtio.State)
		want   string
	}{
		{"other device", func(s *virtio.State) { s.DeviceID = 2 }, "of a device 2"},
		{"fewer queues", func(s *virtio.State) { s.Queues = s.Queues[:1] }, "1 queues"},
		{"no queues", func(s *virtio.State) { s.Queues = nil }, "0 queues"},
		{"unknown status", func(s *virtio.State) { s.Status |= 16 }, "unknown status"},
		{"unknown interrupt", func(s *virtio.State) { s.InterruptStatus = 4 }, "unknown status"},
		{"not agreed", func(s *virtio.State) { s.Status &^= agreed }, "without agreed"},
		{"ready, not agreed", func(s *virtio.State) { s.Status = ack }, "without agreed"},
		{"features not offered", func(s *virtio.State) { s.DriverFeatures |= 1 << 50 }, "not offered"},
		{"legacy", func(s *virtio.State) { s.DriverFeatures &^= virtio.FeatureVersion1 }, "not offered"},
		{"broken without reason", func(s *virtio.State) { s.Status |= needs }, "without a reason"},
		{"queue too large", func(s *virtio.State) { s.Queues[0].Size = 32 }, "queue 0"},
		{"queue size 0", func(s *virtio.State) { s.Queues[0].Size = 0 }, "queue 0"},
		{"ring outside memory", func(s *virtio.State) { s.Queues[1].Driver = 1 << 40 }, "queue 1"},
		{"ring unaligned", func(s *virtio.State) { s.Queues[1].Desc++ }, "queue 1"},
		{"device state", func(s *virtio.State) { s.Device = []byte("bad") }, "bad state"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := virtiotest.Start(t, &echo{}, 0)
			s := saved(t, d)
			tt.change(&s)
			n := d.Reattach(&echo{}, d.CopyMemory())
			err := n.MMIO.Restore(s)
			var se *virtio.StateError
			require.ErrorAs(t, err, &se)
			require.ErrorContains(t, err, tt.want)
		})
	}
	t.Run("device in use", func(t *testing.T) {
		d := virtiotest.Start(t, &echo{}, 0)
		require.ErrorContains(t, d.MMIO.Restore(saved(t, d)), "in use")
	})
	t.Run("device does not start", func(t *testing.T) {
		d := virtiotest.Start(t, &echo{}, 0)
		n := d.Reattach(&echo{activateErr: errors.New("no disk")}, d.CopyMemory())
		require.ErrorContains(t, n.MMIO.Restore(saved(t, d)), "no disk")
	})
	t.Run("hostile available index", func(t *testing.T) {
		d := virtiotest.Start(t, &echo{}, 0)
		s := saved(t, d)
		s.Queues[0].LastAvail = 500
		n := d.Reattach(&echo{}, d.CopyMemory())
		require.NoError(t, n.MMIO.Restore(s))
		n.MMIO.Resume()
		n.WaitInterrupt()
		require.ErrorIs(t, n.MMIO.Failure(), virtio.ErrDriver)
	})
}

func TestPauseWaitsForNotify(t *testing.T) {
	dev := &echo{}
	entered, leave := make(chan struct{}), make(chan struct{})
	dev.before = func(queue int) {
		if queue == 1 {
			entered <- struct{}{}
			<-leave
		}
	}
	d := virtiotest.New(t, dev, 1<<20)
	started := make(chan struct{})
	go func() { <-entered; leave <- struct{}{}; close(started) }() // the look at the queue that follows DRIVER_OK
	d.Up(d.Offered())
	<-started

	d.Queues[1].Offer(d.Queues[1].Chain(d.Out([]byte("x")), d.In(1)))
	go d.Queues[1].Kick()
	<-entered
	var paused atomic.Bool
	done := make(chan struct{})
	go func() { d.MMIO.Pause(); paused.Store(true); close(done) }()
	// The registers that a running driver uses answer while the transport waits for the device.
	d.Read32(virtiotest.RegInterruptStatus)
	d.Write32(virtiotest.RegInterruptACK, 1)
	require.NotZero(t, d.Status())
	require.False(t, paused.Load())
	close(leave)
	<-done
	dev.before = nil
	d.MMIO.Resume()
	require.EqualValues(t, 1, d.Queues[1].Wait().Written)
}

func TestStopsWhileDriverKeepsFeeding(t *testing.T) {
	// A driver on one vCPU that never stops adding work must not keep another's reset, or the host's pause, waiting.
	dev := &echo{}
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[0]
	head := q.Chain(d.Out([]byte("x")), d.In(1))
	stop := make(chan struct{})
	var feeding sync.WaitGroup
	feeding.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			q.Offer(head)
			q.Kick()
			q.Take()
		}
	})
	for range 50 {
		d.MMIO.Pause()
		_, err := d.MMIO.Save()
		require.NoError(t, err)
		d.MMIO.Resume()
	}
	close(stop)
	feeding.Wait()
	d.SetStatus(0)
	require.Zero(t, d.Status())
}

// TestManyThreads runs what happens at once in a machine: vCPUs on registers, doorbells of both queues, pauses.
func TestManyThreads(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	const rounds = 2000
	var all sync.WaitGroup
	errs := make(chan error, 2)
	for _, q := range d.Queues {
		head := q.Chain(d.Out([]byte("x")), d.In(1))
		all.Go(func() {
			for i := range rounds {
				q.Offer(head)
				q.Kick()
				for ok := false; !ok; _, ok = q.Take() {
					if d.MMIO.Failure() != nil {
						errs <- fmt.Errorf("round %d: %w", i, d.MMIO.Failure())
						return
					}
				}
			}
		})
	}
	all.Go(func() {
		for range 200 {
			d.MMIO.Pause()
			d.MMIO.Resume()
		}
	})
	all.Go(func() {
		for range rounds {
			d.Write32(virtiotest.RegInterruptACK, d.Read32(virtiotest.RegInterruptStatus))
			d.Config(0, 8)
			d.Offered()
		}
	})
	all.Wait()
	select {
	case err := <-errs:
		require.NoError(t, err)
	default:
	}
}

// TestNothingIsLost has driver and device on threads of their own that wake each other only when asked to: a doorbell that
// rings when the device wants a notification, an interrupt when the driver wants one. A lost one would be waited for in vain.
func TestNothingIsLost(t *testing.T) {
	for name, without := range map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			d := virtiotest.Start(t, &echo{}, without)
			doorbell := make(chan struct{}, 1) // like an eventfd
			var device sync.WaitGroup
			device.Go(func() {
				for range doorbell {
					d.MMIO.Notify(0)
				}
			})
			q := d.Queues[0]
			out, in := d.Out([]byte("x")), d.In(1)
			kicks := 0
			for range 20000 {
				for range 1 + kicks%3 {
					q.Offer(q.Chain(out, in))
				}
				if q.WantsKick() {
					kicks++
					select {
					case doorbell <- struct{}{}:
					default:
					}
				}
				q.Kicked()
				for q.Free() < q.Size() {
					q.Wait()
				}
			}
			close(doorbell)
			device.Wait()
			require.NoError(t, d.MMIO.Failure())
			require.Positive(t, kicks)
		})
	}
}
