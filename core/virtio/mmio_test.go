package virtio_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

const (
	ack      = virtio.StatusAcknowledge
	driver   = virtio.StatusDriver
	agreed   = virtio.StatusFeaturesOK
	driverOK = virtio.StatusDriverOK
	needs    = virtio.StatusNeedsReset
)

func TestMMIOIdentity(t *testing.T) {
	d := virtiotest.New(t, &echo{}, 1<<20)
	require.EqualValues(t, 0x74726976, d.Read32(virtiotest.RegMagic))
	require.EqualValues(t, 2, d.Read32(virtiotest.RegVersion), "§4.2.2.1: Version is 2")
	require.EqualValues(t, 0xfe, d.Read32(virtiotest.RegDeviceID))
	require.NotZero(t, d.Read32(virtiotest.RegVendorID))
	require.Equal(t, echoFeature|virtio.FeatureEventIdx|virtio.FeatureIndirectDesc|virtio.FeatureVersion1, d.Offered())
	d.Write32(virtiotest.RegDeviceFeaturesSel, 2)
	require.Zero(t, d.Read32(virtiotest.RegDeviceFeatures))
	d.Write32(virtiotest.RegQueueSel, 2)
	require.Zero(t, d.Read32(virtiotest.RegQueueNumMax), "§4.2.2: 0 for a queue that does not exist")
	require.EqualValues(t, 0xffffffff, d.Read32(0xb0), "§4.2.2.1: no shared memory region")
}

func TestMMIOUpAndEcho(t *testing.T) {
	dev := &echo{}
	d := virtiotest.Start(t, dev, 0)
	require.Equal(t, 1, dev.activated)
	in := d.In(16)
	q := d.Queues[1]
	head := q.Submit(d.Out([]byte("hello")), in)
	u := q.Wait()
	require.Equal(t, virtiotest.Used{Head: head, Written: 5}, u)
	require.Equal(t, "hello", string(in.Bytes[:5]))
}

func TestMMIOAccessWidth(t *testing.T) {
	// §4.2.2.2: registers are accessed 32 bits wide and aligned; the configuration space at any width.
	dev := &echo{config: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	d := virtiotest.New(t, dev, 1<<20)
	for _, n := range []int{0, 1, 2, 8} {
		p := make([]byte, n)
		d.MMIO.Read(virtiotest.RegMagic, p)
		require.Equal(t, make([]byte, n), p)
	}
	p := []byte{9, 9, 9, 9}
	d.MMIO.Read(virtiotest.RegMagic+1, p)
	require.Equal(t, make([]byte, 4), p)
	d.MMIO.Write(virtiotest.RegStatus, []byte{1})
	d.MMIO.Write(virtiotest.RegStatus+2, []byte{1, 0, 0, 0})
	require.Zero(t, d.Status())

	require.Equal(t, []byte{3}, d.Config(2, 1))
	require.Equal(t, []byte{1, 2, 3, 4, 5, 6, 7, 8}, d.Config(0, 8))
	require.Equal(t, []byte{7, 8, 0, 0}, d.Config(6, 4))
	require.Equal(t, make([]byte, 4), d.Config(0xe00, 4))
	require.Equal(t, make([]byte, 4), d.Config(^uint64(0)-virtiotest.RegConfig-2, 4))
	d.MMIO.Write(virtiotest.RegConfig+6, []byte{0xaa, 0xbb, 0xcc})
	require.Equal(t, []byte{6, 0xaa, 0xbb}, d.Config(5, 3))
}

func TestMMIOUnknownRegisters(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	for off := uint64(0); off < virtiotest.RegConfig; off += 4 {
		switch off {
		case virtiotest.RegStatus, virtiotest.RegInterruptACK, virtiotest.RegQueueNotify, virtiotest.RegQueueReady:
			continue
		}
		d.Write32(off, 0xffffffff)
		d.Read32(off)
	}
	require.NoError(t, d.MMIO.Failure())
	require.Equal(t, ack|driver|agreed|driverOK, d.Status())
}

func TestMMIOFeatures(t *testing.T) {
	tests := []struct {
		name     string
		features uint64
		high     bool // also accept a bit beyond the first 64
		ok       bool
	}{
		{"all", echoFeature | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | virtio.FeatureVersion1, false, true},
		{"least", virtio.FeatureVersion1, false, true},
		// §6.2: a device may refuse a driver without VERSION_1.
		{"legacy", echoFeature, false, false},
		// §2.2.1, §3.1.1: features not offered are refused by leaving FEATURES_OK clear.
		{"not offered", virtio.FeatureVersion1 | 1<<40, false, false},
		{"beyond 64 bits", virtio.FeatureVersion1, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := virtiotest.New(t, &echo{}, 1<<20)
			if tt.high {
				d.Write32(virtiotest.RegDriverFeaturesSel, 2)
				d.Write32(virtiotest.RegDriverFeatures, 1)
			}
			require.Equal(t, tt.ok, d.Accept(tt.features))
			require.NoError(t, d.MMIO.Failure(), "a refusal is no failure")
			d.SetStatus(0)
			require.True(t, d.Accept(virtio.FeatureVersion1), "a reset allows another attempt")
		})
	}
}

func TestMMIOFeaturesFixedOnceAgreed(t *testing.T) {
	dev := &echo{}
	d := virtiotest.New(t, dev, 1<<20)
	require.True(t, d.Accept(virtio.FeatureVersion1))
	d.Write32(virtiotest.RegDriverFeaturesSel, 0)
	d.Write32(virtiotest.RegDriverFeatures, echoFeature)
	d.SetStatus(d.Status() | driverOK)
	require.Equal(t, virtio.FeatureVersion1, dev.env.Features)
}

func TestMMIOStatusOrder(t *testing.T) {
	tests := []struct {
		name   string
		writes []uint32
		want   uint32
		fails  string
	}{
		{"in one step", []uint32{ack | driver}, ack | driver, ""},
		{"driver before acknowledge", []uint32{driver}, needs, "set before"},
		{"features before driver", []uint32{ack | agreed}, ack | needs, "set before"},
		{"driver ok without features", []uint32{ack | driver, ack | driver | driverOK}, ack | driver | needs, "set before"},
		// §2.1.1: the driver must not clear a bit.
		{"bit cleared", []uint32{ack | driver, driver}, ack | driver | needs, "cleared"},
		{"gives up", []uint32{ack, ack | virtio.StatusFailed}, ack | virtio.StatusFailed, ""},
		{"gives up when broken", []uint32{driver, needs | virtio.StatusFailed}, needs | virtio.StatusFailed, "set before"},
		{"nothing goes on when broken", []uint32{driver, needs | ack, needs | ack | driver}, needs, "set before"},
		{"unknown bits", []uint32{0xffffff00 | ack}, ack, ""},
		{"the driver cannot set NEEDS_RESET", []uint32{ack | needs}, ack, ""},
		{"reset", []uint32{driver, 0}, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := virtiotest.New(t, &echo{}, 1<<20)
			for _, v := range tt.writes {
				d.SetStatus(v)
			}
			require.Equal(t, tt.want, d.Status())
			if tt.fails == "" {
				require.NoError(t, d.MMIO.Failure())
			} else {
				require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
				require.ErrorContains(t, d.MMIO.Failure(), tt.fails)
				require.Zero(t, d.Interrupts(), "no interrupt before DRIVER_OK")
			}
		})
	}
}

func TestMMIOQueueSetup(t *testing.T) {
	const base, size = uint64(virtiotest.Base), uint64(1 << 20)
	tests := []struct {
		name              string
		num               uint32
		desc, avail, used uint64
		want              string
	}{
		{"good", 16, base, base + 0x1000, base + 0x2000, ""},
		{"smaller", 2, base, base + 0x1000, base + 0x2000, ""},
		{"last bytes of memory", 16, base, base + 0x1000, base + size - 4 - 8*16 - 4, ""},
		{"size 0", 0, base, base + 0x1000, base + 0x2000, "size 0"},
		{"size no power of two", 12, base, base + 0x1000, base + 0x2000, "size 12"},
		{"size beyond the maximum", 32, base, base + 0x1000, base + 0x2000, "size 32"},
		{"size beyond 16 bits", 1<<16 | 16, base, base + 0x1000, base + 0x2000, "size 65535"},
		{"descriptor table unaligned", 16, base + 8, base + 0x1000, base + 0x2000, "descriptor table"},
		{"available ring unaligned", 16, base, base + 0x1001, base + 0x2000, "available ring"},
		{"used ring unaligned", 16, base, base + 0x1000, base + 0x2002, "used ring"},
		{"descriptor table below memory", 16, base - 16, base + 0x1000, base + 0x2000, "outside memory"},
		{"available ring overlaps the end", 16, base, base + size - 4, base + 0x2000, "outside memory"},
		{"used ring beyond memory", 16, base, base + 0x1000, base + size, "outside memory"},
		{"used_event's counterpart does not fit", 16, base, base + 0x1000, base + size - 4 - 8*16, "outside memory"},
		{"address overflow", 16, ^uint64(15), base + 0x1000, base + 0x2000, "outside memory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := virtiotest.New(t, &echo{}, int(size))
			require.True(t, d.Accept(d.Offered()))
			d.Write32(virtiotest.RegQueueNum, tt.num)
			d.Write64(virtiotest.RegQueueDescLow, tt.desc)
			d.Write64(virtiotest.RegQueueDriverLow, tt.avail)
			d.Write64(virtiotest.RegQueueDeviceLow, tt.used)
			d.Write32(virtiotest.RegQueueReady, 1)
			if tt.want == "" {
				require.NoError(t, d.MMIO.Failure())
				require.EqualValues(t, 1, d.Read32(virtiotest.RegQueueReady))
				return
			}
			require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
			require.ErrorContains(t, d.MMIO.Failure(), tt.want)
			require.Zero(t, d.Read32(virtiotest.RegQueueReady))
			require.NotZero(t, d.Status()&needs)
		})
	}
}

func TestMMIOQueueBeforeFeatures(t *testing.T) {
	d := virtiotest.New(t, &echo{}, 1<<20)
	d.SetStatus(ack | driver)
	d.Write32(virtiotest.RegQueueNum, 16)
	d.Write32(virtiotest.RegQueueReady, 1)
	require.ErrorContains(t, d.MMIO.Failure(), "before the features")
}

func TestMMIOReadyQueueIsFixed(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	d.Write32(virtiotest.RegQueueSel, 0)
	d.Write32(virtiotest.RegQueueNum, 3)
	d.Write64(virtiotest.RegQueueDescLow, 7)
	in := d.In(2)
	d.Queues[0].Submit(d.Out([]byte("ok")), in)
	require.EqualValues(t, 2, d.Queues[0].Wait().Written)
	d.MMIO.Pause()
	s, err := d.MMIO.Save()
	require.NoError(t, err)
	require.EqualValues(t, 16, s.Queues[0].Size)
	require.NotEqualValues(t, 7, s.Queues[0].Desc)
}

func TestMMIOQueueDisabledWhileActive(t *testing.T) {
	// §4.2.2.1: no access to the queue while QueueReady is 0.
	d := virtiotest.Start(t, &echo{}, 0)
	d.Write32(virtiotest.RegQueueSel, 1)
	d.Write32(virtiotest.RegQueueReady, 0)
	require.Zero(t, d.Read32(virtiotest.RegQueueReady))
	d.Queues[1].Submit(d.Out([]byte("x")), d.In(1))
	_, ok := d.Queues[1].Poll()
	require.False(t, ok)
	in := d.In(1)
	d.Queues[0].Submit(d.Out([]byte("x")), in)
	require.EqualValues(t, 1, d.Queues[0].Wait().Written, "the other queue works on")
	require.NoError(t, d.MMIO.Failure())
}

func TestMMIOInterruptStatus(t *testing.T) {
	// §4.2.2.1: each event shows in InterruptStatus until it is acknowledged.
	dev := &echo{}
	d := virtiotest.Start(t, dev, 0)
	gen := d.Read32(virtiotest.RegConfigGeneration)
	dev.env.ConfigChanged()
	require.NotEqual(t, gen, d.Read32(virtiotest.RegConfigGeneration))
	dev.env.Interrupt()
	require.EqualValues(t, 3, d.Read32(virtiotest.RegInterruptStatus))
	d.Write32(virtiotest.RegInterruptACK, 2)
	require.EqualValues(t, 1, d.Read32(virtiotest.RegInterruptStatus))
	d.Write32(virtiotest.RegInterruptACK, 0xffffffff)
	require.Zero(t, d.Read32(virtiotest.RegInterruptStatus))
	require.Equal(t, 2, d.Interrupts())
}

func TestMMIOReset(t *testing.T) {
	// §2.4.1, §4.2.2.1: reset clears status, InterruptStatus and every QueueReady.
	dev := &echo{}
	d := virtiotest.Start(t, dev, 0)
	dev.env.Interrupt()
	d.SetStatus(0)
	require.Zero(t, d.Status())
	require.Zero(t, d.Read32(virtiotest.RegInterruptStatus))
	for i := range uint32(2) {
		d.Write32(virtiotest.RegQueueSel, i)
		require.Zero(t, d.Read32(virtiotest.RegQueueReady))
	}
	require.Nil(t, dev.env)
	d.Up(d.Offered())
	in := d.In(3)
	d.Queues[0].Submit(d.Out([]byte("abc")), in)
	d.Queues[0].Wait()
	require.Equal(t, "abc", string(in.Bytes))
}

func TestMMIOBrokenDriver(t *testing.T) {
	// §2.1.2: with DRIVER_OK set, DEVICE_NEEDS_RESET comes with a configuration change notification.
	dev := &echo{}
	d := virtiotest.Start(t, dev, 0)
	d.Queues[0].SetAvailIdx(1000)
	d.Queues[0].Kick()
	require.EqualValues(t, 2, d.WaitInterrupt())
	require.NotZero(t, d.Status()&needs)
	require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
	first := d.MMIO.Failure()
	dev.env.Fail(errors.New("another"))
	require.Equal(t, first, d.MMIO.Failure(), "the first reason is kept")
	d.Queues[1].Submit(d.Out([]byte("x")), d.In(1))
	_, ok := d.Queues[1].Poll()
	require.False(t, ok, "no queue works until the reset")
	d.Up(d.Offered())
	in := d.In(1)
	d.Queues[1].Submit(d.Out([]byte("x")), in)
	require.EqualValues(t, 1, d.Queues[1].Wait().Written)
}

func TestMMIOActivateError(t *testing.T) {
	dev := &echo{activateErr: errors.New("no disk")}
	d := virtiotest.New(t, dev, 1<<20)
	require.True(t, d.Accept(d.Offered()))
	d.SetStatus(d.Status() | driverOK)
	require.EqualError(t, d.MMIO.Failure(), "no disk")
	require.EqualValues(t, 2, d.WaitInterrupt())
}

func TestMMIOQueueNumbersOutOfRange(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	d.Write32(virtiotest.RegQueueNotify, 2)
	d.Write32(virtiotest.RegQueueNotify, 0xffffffff)
	d.Write32(virtiotest.RegQueueSel, 0xffffffff)
	d.Write32(virtiotest.RegQueueReady, 1)
	d.Write32(virtiotest.RegQueueNum, 1)
	require.Zero(t, d.Read32(virtiotest.RegQueueNumMax))
	require.NoError(t, d.MMIO.Failure())
}

func TestMMIOAfterClose(t *testing.T) {
	d := virtiotest.Start(t, &echo{}, 0)
	require.NoError(t, d.MMIO.Close())
	d.SetStatus(ack)
	require.Zero(t, d.Status())
	d.Queues[0].Kick()
	d.MMIO.Pause()
	d.MMIO.Resume()
	require.Zero(t, binary.LittleEndian.Uint32(d.Config(0, 4)))
}
