package virtio_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// puller leaves chains to the test, which pops them itself: a device without a goroutine of its own.
type puller struct {
	virtiotest.Nothing
	env *virtio.Env
}

func (p *puller) Activate(env *virtio.Env) error { p.env = env; return nil }

// pull brings up a puller and returns the driver's and the device's side of its queue of 16.
func pull(t testing.TB, without uint64) (*virtiotest.Driver, *virtiotest.Queue, *virtio.Queue) {
	dev := &puller{}
	d := virtiotest.Start(t, dev, without)
	return d, d.Queues[0], dev.env.Queues[0]
}

func TestPopResolvesChains(t *testing.T) {
	d, dq, q := pull(t, 0)
	out1, out2, in1, in2 := d.Out([]byte("head")), d.Out([]byte("er")), d.In(10), d.In(1)
	for name, head := range map[string]uint16{
		"direct":   dq.Chain(out1, out2, in1, in2),
		"indirect": dq.ChainIndirect(out1, out2, in1, in2),
	} {
		dq.Offer(head)
		c, ok, err := q.Pop()
		require.NoError(t, err, name)
		require.True(t, ok, name)
		require.Equal(t, head, c.Head, name)
		require.Equal(t, [][]byte{[]byte("head"), []byte("er")}, c.Readable, name)
		require.Len(t, c.Writable, 2, name)
		require.Same(t, &in1.Bytes[0], &c.Writable[0][0], "%s: the slices are guest memory", name)
		require.EqualValues(t, 6, c.ReadLen, name)
		require.EqualValues(t, 11, c.WriteLen, name)
		_, ok, err = q.Pop()
		require.NoError(t, err, name)
		require.False(t, ok, name)
	}
}

func TestPopDirectThenIndirect(t *testing.T) {
	// §2.7.5.3.2: the device handles zero or more normal descriptors followed by one indirect, whose write flag it ignores.
	d, dq, q := pull(t, 0)
	out, in := d.Out([]byte("abc")), d.In(4)
	addr, table := d.Alloc(16)
	virtiotest.PutDesc(table, 0, virtiotest.Desc{Addr: in.Addr, Len: 4, Flags: virtiotest.Write})
	dq.SetDesc(3, virtiotest.Desc{Addr: out.Addr, Len: 3, Flags: virtiotest.Next, Next: 9})
	dq.SetDesc(9, virtiotest.Desc{Addr: addr, Len: 16, Flags: virtiotest.Indirect | virtiotest.Write})
	dq.Offer(3)
	c, ok, err := q.Pop()
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 3, c.ReadLen)
	require.EqualValues(t, 4, c.WriteLen)
}

func TestPopLeavesOutEmptyDescriptors(t *testing.T) {
	d, dq, q := pull(t, 0)
	in := d.In(4)
	dq.SetDesc(0, virtiotest.Desc{Addr: 0xffff_ffff_ffff_0000, Len: 0, Flags: virtiotest.Next, Next: 1})
	dq.SetDesc(1, virtiotest.Desc{Addr: in.Addr, Len: 4, Flags: virtiotest.Write})
	dq.Offer(0)
	c, ok, err := q.Pop()
	require.NoError(t, err)
	require.True(t, ok)
	require.Empty(t, c.Readable)
	require.Len(t, c.Writable, 1)
}

func TestPopRefuses(t *testing.T) {
	const outside = uint64(1) << 40
	tests := []struct {
		name    string
		without uint64
		do      func(d *virtiotest.Driver, q *virtiotest.Queue)
		want    string
	}{
		{"available index jump", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetAvailIdx(17)
		}, "jumped by 17"},
		{"available index going back", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetAvailIdx(0xffff)
		}, "jumped by 65535"},
		{"head outside the table", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.Offer(16)
		}, "head 16"},
		{"loop", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			in := d.In(1)
			q.SetDesc(0, virtiotest.Desc{Addr: in.Addr, Len: 1, Flags: virtiotest.Write | virtiotest.Next, Next: 1})
			q.SetDesc(1, virtiotest.Desc{Addr: in.Addr, Len: 1, Flags: virtiotest.Write | virtiotest.Next, Next: 0})
			q.Offer(0)
		}, "loop"},
		{"loop of empty descriptors", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Flags: virtiotest.Next, Next: 0})
			q.Offer(0)
		}, "loop"},
		{"next outside the table", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: d.In(1).Addr, Len: 1, Flags: virtiotest.Next, Next: 16})
			q.Offer(0)
		}, "next descriptor 16"},
		{"buffer outside memory", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: outside, Len: 1})
			q.Offer(0)
		}, "outside memory"},
		{"buffer across the end of memory", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: virtiotest.Base + d.Mem.Size() - 1, Len: 2})
			q.Offer(0)
		}, "outside memory"},
		{"buffer address overflow", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: ^uint64(0), Len: 0xffffffff})
			q.Offer(0)
		}, "outside memory"},
		// §2.7.4.2: readable descriptors come first.
		{"readable after writable", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			q.Offer(q.Chain(d.In(1), d.Out([]byte{1})))
		}, "after a writable"},
		{"indirect not negotiated", virtio.FeatureIndirectDesc, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			q.Offer(q.ChainIndirect(d.In(1)))
		}, "without the feature"},
		// §2.7.5.3.1: no indirect inside indirect, no INDIRECT together with NEXT.
		{"nested indirect", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			addr, table := d.Alloc(16)
			virtiotest.PutDesc(table, 0, virtiotest.Desc{Addr: addr, Len: 16, Flags: virtiotest.Indirect})
			q.SetDesc(0, virtiotest.Desc{Addr: addr, Len: 16, Flags: virtiotest.Indirect})
			q.Offer(0)
		}, "inside an indirect table"},
		{"indirect with next", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			addr, _ := d.Alloc(16)
			q.SetDesc(0, virtiotest.Desc{Addr: addr, Len: 16, Flags: virtiotest.Indirect | virtiotest.Next})
			q.Offer(0)
		}, "with a next"},
		{"indirect table of no length", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: virtiotest.Base, Flags: virtiotest.Indirect})
			q.Offer(0)
		}, "table of 0 bytes"},
		{"indirect table of odd length", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: virtiotest.Base, Len: 24, Flags: virtiotest.Indirect})
			q.Offer(0)
		}, "table of 24 bytes"},
		{"indirect table outside memory", 0, func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.Desc{Addr: outside, Len: 16, Flags: virtiotest.Indirect})
			q.Offer(0)
		}, "outside memory"},
		// §2.7.5.3.1: a chain is never longer than the queue size.
		{"indirect chain longer than the queue", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			in, bufs := d.In(1), []virtiotest.Buffer{}
			for range 17 {
				bufs = append(bufs, in)
			}
			q.Offer(q.ChainIndirect(bufs...))
		}, "more than 16"},
		{"next outside the indirect table", 0, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			addr, table := d.Alloc(16)
			virtiotest.PutDesc(table, 0, virtiotest.Desc{Flags: virtiotest.Next, Next: 1})
			q.SetDesc(0, virtiotest.Desc{Addr: addr, Len: 16, Flags: virtiotest.Indirect})
			q.Offer(0)
		}, "outside a table of 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, dq, q := pull(t, tt.without)
			tt.do(d, dq)
			_, ok, err := q.Pop()
			require.False(t, ok)
			require.ErrorIs(t, err, virtio.ErrDriver)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestPopRefusesHeadInUse(t *testing.T) {
	d, dq, q := pull(t, 0)
	head := dq.Chain(d.In(1))
	dq.Offer(head)
	dq.Offer(head)
	_, ok, err := q.Pop()
	require.NoError(t, err)
	require.True(t, ok)
	_, _, err = q.Pop()
	require.ErrorContains(t, err, "while in use")
}

func TestPopReadsEachDescriptorOnce(t *testing.T) {
	// What the device checked must be what it uses, whatever the driver writes meanwhile.
	d, dq, q := pull(t, 0)
	in := d.In(8)
	head := dq.Chain(in)
	dq.Offer(head)
	c, _, err := q.Pop()
	require.NoError(t, err)
	dq.SetDesc(int(head), virtiotest.Desc{Addr: ^uint64(0), Len: 0xffffffff})
	require.Len(t, c.Writable[0], 8)
	c.Writable[0][7] = 1
	require.EqualValues(t, 1, in.Bytes[7])
}

func TestPushOutOfOrderAndUnknown(t *testing.T) {
	d, dq, q := pull(t, 0)
	a, b := dq.Chain(d.In(4)), dq.Chain(d.In(4))
	dq.Offer(a)
	dq.Offer(b)
	for range 2 {
		_, ok, err := q.Pop()
		require.NoError(t, err)
		require.True(t, ok)
	}
	q.Push(b, 2)
	q.Push(b, 3) // no longer in flight
	q.Push(12, 3)
	q.Push(0xffff, 3)
	_, ok := dq.Poll()
	require.False(t, ok, "nothing shows before Flush")
	q.Push(a, 1)
	q.Flush()
	for _, want := range []virtiotest.Used{{Head: b, Written: 2}, {Head: a, Written: 1}} {
		u, ok := dq.Poll()
		require.True(t, ok)
		require.Equal(t, want, u)
	}
	_, ok = dq.Poll()
	require.False(t, ok)
}

func TestIndexesWrap(t *testing.T) {
	for name, without := range map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			d, dq, q := pull(t, without)
			head := dq.Chain(d.In(4))
			for i := range 1<<16 + 100 {
				dq.Offer(head)
				c, ok, err := q.Pop()
				if !ok || err != nil {
					require.FailNow(t, "pop", "round %d: %v %v", i, ok, err)
				}
				q.Push(c.Head, uint32(i))
				q.Flush()
				u, ok := dq.Take()
				if !ok || u.Written != uint32(i) {
					require.FailNow(t, "take", "round %d: %v %v", i, ok, u)
				}
			}
			require.Equal(t, 1<<16+100, d.Interrupts(), "every entry was waited for")
		})
	}
}

func TestInterruptSuppression(t *testing.T) {
	// §2.7.7.2: with EVENT_IDX an interrupt is sent when the used index passes used_event, and only then.
	d, dq, q := pull(t, 0)
	var heads []uint16
	for range 4 {
		heads = append(heads, dq.Chain(d.In(1)))
		dq.Offer(heads[len(heads)-1])
		_, ok, err := q.Pop()
		require.NoError(t, err)
		require.True(t, ok)
	}
	dq.SetUsedEvent(2)
	q.Push(heads[0], 0)
	q.Flush()
	q.Push(heads[1], 0)
	q.Flush()
	require.Zero(t, d.Interrupts())
	q.Push(heads[2], 0)
	q.Flush()
	require.Equal(t, 1, d.Interrupts())
	require.EqualValues(t, 1, d.Read32(virtiotest.RegInterruptStatus))
	q.Push(heads[3], 0)
	q.Flush()
	q.Flush()
	require.Equal(t, 1, d.Interrupts())
}

func TestInterruptSuppressionByFlag(t *testing.T) {
	// §2.7.7.2: without EVENT_IDX, no interrupt while the driver sets VIRTQ_AVAIL_F_NO_INTERRUPT.
	d, dq, q := pull(t, virtio.FeatureEventIdx)
	use := func() {
		dq.Offer(dq.Chain(d.In(1)))
		c, ok, err := q.Pop()
		require.NoError(t, err)
		require.True(t, ok)
		q.Push(c.Head, 0)
		q.Flush()
	}
	dq.SuppressInterrupts(true)
	use()
	require.Zero(t, d.Interrupts())
	dq.SuppressInterrupts(false)
	use()
	require.Equal(t, 1, d.Interrupts())
}

func TestNotifySuppression(t *testing.T) {
	for name, without := range map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			d, dq, q := pull(t, without)
			offer := func() { dq.Offer(dq.Chain(d.In(1))) }
			require.False(t, q.EnableNotify())
			offer()
			require.True(t, dq.WantsKick())
			dq.Kick()
			q.DisableNotify()
			_, ok, err := q.Pop()
			require.NoError(t, err)
			require.True(t, ok)
			offer()
			require.False(t, dq.WantsKick(), "the device is at work")
			require.True(t, q.EnableNotify(), "the offer above came without a notification")
			_, ok, err = q.Pop()
			require.NoError(t, err)
			require.True(t, ok)
			require.False(t, q.EnableNotify())
			offer()
			require.True(t, dq.WantsKick())
		})
	}
}

func TestRingsAtAnyAlignment(t *testing.T) {
	// §2.7: the available ring needs an alignment of 2 only, so its index shares an aligned word with either neighbour.
	for _, shift := range []uint64{0, 2} {
		dev := &puller{}
		d := virtiotest.New(t, dev, 1<<20)
		require.True(t, d.Accept(d.Offered()))
		addr, _ := d.Alloc(4096)
		avail := addr + 1024 + shift
		d.Write32(virtiotest.RegQueueNum, 4)
		d.Write64(virtiotest.RegQueueDescLow, addr)
		d.Write64(virtiotest.RegQueueDriverLow, avail)
		d.Write64(virtiotest.RegQueueDeviceLow, addr+2048)
		d.Write32(virtiotest.RegQueueReady, 1)
		d.SetStatus(d.Status() | virtio.StatusDriverOK)
		require.NoError(t, d.MMIO.Failure())
		ring, ok := d.Mem.Slice(avail, 14)
		require.True(t, ok)
		q := dev.env.Queues[0]
		for _, idx := range []uint16{1, 2} {
			binary.LittleEndian.PutUint16(ring[2:], idx)
			c, ok, err := q.Pop()
			require.NoError(t, err)
			require.True(t, ok)
			q.Push(c.Head, 0)
			q.Flush()
		}
		require.Equal(t, 1, d.Interrupts(), "used_event is 0: only the first entry passes it")
		binary.LittleEndian.PutUint16(ring[12:], 2) // used_event
		binary.LittleEndian.PutUint16(ring[2:], 3)
		_, _, err := q.Pop()
		require.NoError(t, err)
		q.Push(0, 0)
		q.Flush()
		require.Equal(t, 2, d.Interrupts())
	}
}

func TestQueueOfSizeOne(t *testing.T) {
	dev := &puller{}
	d := virtiotest.New(t, dev, 1<<20)
	require.True(t, d.Accept(d.Offered()))
	addr, mem := d.Alloc(4096)
	d.Write32(virtiotest.RegQueueNum, 1)
	d.Write64(virtiotest.RegQueueDescLow, addr)
	d.Write64(virtiotest.RegQueueDriverLow, addr+1024)
	d.Write64(virtiotest.RegQueueDeviceLow, addr+2048)
	d.Write32(virtiotest.RegQueueReady, 1)
	d.SetStatus(d.Status() | virtio.StatusDriverOK)
	virtiotest.PutDesc(mem, 0, virtiotest.Desc{Addr: addr, Len: 5})
	for idx := range uint16(5) {
		binary.LittleEndian.PutUint16(mem[1024+2:], idx+1)
		c, ok, err := dev.env.Queues[0].Pop()
		require.NoError(t, err)
		require.True(t, ok)
		dev.env.Queues[0].Push(c.Head, 0)
		dev.env.Queues[0].Flush()
		require.Equal(t, idx+1, binary.LittleEndian.Uint16(mem[2048+2:]))
	}
}

func TestDriverErrorText(t *testing.T) {
	err := virtio.DriverErrorf("queue %d", 3)
	require.ErrorIs(t, err, virtio.ErrDriver)
	require.True(t, strings.HasSuffix(err.Error(), "queue 3"))
}

func TestUnpop(t *testing.T) {
	d, dq, q := pull(t, 0)
	var heads []uint16
	for range 3 {
		heads = append(heads, dq.Chain(d.Out([]byte("abc"))))
		dq.Offer(heads[len(heads)-1])
	}
	pop := func() *virtio.Chain {
		c, ok, err := q.Pop()
		require.NoError(t, err)
		require.True(t, ok)
		return c
	}
	q.Push(pop().Head, 0)
	a, b := pop(), pop()
	q.Unpop(b)
	q.Unpop(a)
	q.Unpop(&virtio.Chain{Head: heads[0]}) // in flight no more
	q.Unpop(&virtio.Chain{Head: 999})
	q.Flush()
	d.MMIO.Pause()
	s, err := d.MMIO.Save()
	require.NoError(t, err, "no chain is in flight")
	require.EqualValues(t, 1, s.Queues[0].LastAvail)
	d.MMIO.Resume()
	for _, head := range heads[1:] {
		c := pop()
		require.Equal(t, head, c.Head)
		require.Equal(t, [][]byte{[]byte("abc")}, c.Readable)
	}
	_, ok, err := q.Pop()
	require.NoError(t, err)
	require.False(t, ok)
}
