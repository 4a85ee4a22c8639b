package console

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

func TestOutput(t *testing.T) {
	var out bytes.Buffer
	log := NewRing(0)
	d := virtiotest.Start(t, New(Config{Output: &out, Log: log}), 0)
	q := d.Queues[transmitQueue]
	q.Submit(d.Out([]byte("Linux ")), d.Out([]byte("version\n")))
	require.Zero(t, q.Wait().Written)
	q.Submit(d.Out([]byte("panic")))
	q.Wait()
	require.Equal(t, "Linux version\npanic", out.String())
	require.Equal(t, "panic", string(log.Tail(5)))
	require.Equal(t, out.String(), string(log.Tail(1000)))
}

func TestOutputToNobody(t *testing.T) {
	d := virtiotest.Start(t, New(Config{}), 0)
	d.Queues[transmitQueue].Submit(d.Out([]byte("x")))
	d.Queues[transmitQueue].Wait()
	require.NoError(t, d.MMIO.Failure())
}

func TestOutputIsBounded(t *testing.T) {
	log := NewRing(16)
	d := virtiotest.Start(t, New(Config{Log: log}), 0)
	big := d.Out(bytes.Repeat([]byte("a"), maxOutput-2))
	d.Queues[transmitQueue].Submit(big, d.Out([]byte("wxyz")), big)
	d.Queues[transmitQueue].Wait()
	require.EqualValues(t, maxOutput, log.Total())
	require.Equal(t, "aawx", string(log.Tail(4)))
}

func TestInput(t *testing.T) {
	dev := New(Config{})
	d := virtiotest.New(t, dev, 1<<20)
	n, err := dev.Write([]byte("early ")) // before there is a driver
	require.NoError(t, err)
	require.Equal(t, 6, n)
	d.Up(d.Offered())
	q := d.Queues[receiveQueue]
	a, b := d.In(4), d.In(16)
	q.Submit(a)
	require.EqualValues(t, 4, q.Wait().Written)
	require.Equal(t, "earl", string(a.Bytes))
	q.Submit(b)
	require.EqualValues(t, 2, q.Wait().Written)

	c := d.In(16)
	q.Submit(c)
	_, ok := q.Poll()
	require.False(t, ok, "no input, no used buffer")
	_, err = dev.Write([]byte("later"))
	require.NoError(t, err)
	require.EqualValues(t, 5, q.Wait().Written)
	require.Equal(t, "later", string(c.Bytes[:5]))
}

func TestInputAsksForNotification(t *testing.T) {
	dev := New(Config{})
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[receiveQueue]
	_, err := dev.Write([]byte("typed while no buffer was there"))
	require.NoError(t, err)
	in := d.In(64)
	q.Offer(q.Chain(in))
	require.True(t, q.WantsKick())
	q.Kick()
	require.EqualValues(t, 31, q.Wait().Written)
}

func TestInputIsBounded(t *testing.T) {
	dev := New(Config{})
	n, err := dev.Write(make([]byte, MaxInput-1))
	require.NoError(t, err)
	require.Equal(t, MaxInput-1, n)
	n, err = dev.Write([]byte("abc"))
	require.ErrorIs(t, err, ErrInputFull)
	require.Equal(t, 1, n)
}

func TestReceiveBufferWithoutSpace(t *testing.T) {
	dev := New(Config{})
	d := virtiotest.Start(t, dev, 0)
	d.Queues[receiveQueue].Submit(d.Out([]byte("x")))
	_, err := dev.Write([]byte("y"))
	require.NoError(t, err)
	require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
}

func TestSize(t *testing.T) {
	dev := New(Config{Cols: 80, Rows: 25})
	d := virtiotest.Start(t, dev, 0)
	require.Equal(t, []byte{80, 0, 25, 0}, d.Config(0, 4))
	gen := d.Read32(virtiotest.RegConfigGeneration)
	dev.SetSize(300, 50)
	require.EqualValues(t, 2, d.WaitInterrupt(), "§5.3.6: a configuration change notification")
	require.NotEqual(t, gen, d.Read32(virtiotest.RegConfigGeneration))
	require.Equal(t, []byte{44, 1, 50, 0}, d.Config(0, 4))

	d.MMIO.Pause()
	before := d.Interrupts()
	dev.SetSize(1, 2)
	require.Equal(t, before, d.Interrupts(), "nothing moves while the machine is paused")
	d.MMIO.Resume()
	require.EqualValues(t, 2, d.WaitInterrupt())
}

func TestSaveRestore(t *testing.T) {
	dev := New(Config{Cols: 7, Rows: 9})
	d := virtiotest.Start(t, dev, 0)
	in := d.In(8)
	d.Queues[receiveQueue].Submit(in)
	d.MMIO.Pause()
	_, err := dev.Write([]byte("typed"))
	require.NoError(t, err)
	d.Queues[transmitQueue].Submit(d.Out([]byte("printed")))
	_, ok := d.Queues[receiveQueue].Poll()
	require.False(t, ok, "paused")
	s, err := d.MMIO.Save()
	require.NoError(t, err)
	b, err := msgpack.Marshal(s)
	require.NoError(t, err)
	var back virtio.State
	require.NoError(t, msgpack.Unmarshal(b, &back))

	log := NewRing(0)
	n := d.Reattach(New(Config{Log: log}), d.CopyMemory())
	require.NoError(t, n.MMIO.Restore(back))
	require.Equal(t, []byte{7, 0, 9, 0}, n.Config(0, 4))
	n.MMIO.Resume()
	require.EqualValues(t, 5, n.Queues[receiveQueue].Wait().Written)
	n.Queues[transmitQueue].Wait()
	require.Equal(t, "printed", string(log.Tail(100)))

	require.Error(t, New(Config{}).RestoreState([]byte("no msgpack")))
	long, err := msgpack.Marshal(deviceState{Input: make([]byte, MaxInput+1)})
	require.NoError(t, err)
	require.Error(t, New(Config{}).RestoreState(long))
}

func TestInputFromManyGoroutines(t *testing.T) {
	dev := New(Config{})
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[receiveQueue]
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				_, _ = dev.Write([]byte("abcd"))
			}
		})
	}
	all.Go(func() {
		for range 20 {
			d.MMIO.Pause()
			d.MMIO.Resume()
		}
	})
	got := 0
	in := d.In(64)
	for got < 1600 {
		q.Submit(in)
		got += int(q.Wait().Written)
	}
	all.Wait()
	require.Equal(t, 1600, got)
}

func TestRing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		size   int
		writes []string
		tail   int
		want   string
	}{
		{"empty", 4, nil, 10, ""},
		{"less than size", 8, []string{"abc"}, 8, "abc"},
		{"end of less than size", 8, []string{"abc"}, 2, "bc"},
		{"exactly full", 4, []string{"ab", "cd"}, 4, "abcd"},
		{"wrapped", 4, []string{"abc", "def"}, 4, "cdef"},
		{"end of wrapped", 4, []string{"abc", "def"}, 3, "def"},
		{"last byte of wrapped", 4, []string{"abc", "def"}, 1, "f"},
		{"wrapped many times", 4, []string{"abc", "def", "ghi", "jkl"}, 4, "ijkl"},
		{"longer than size", 4, []string{"x", "abcdefghij"}, 4, "ghij"},
		{"nothing", 4, []string{"abc"}, 0, ""},
		{"negative", 4, []string{"abc"}, -1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := NewRing(tt.size)
			for _, w := range tt.writes {
				n, err := r.Write([]byte(w))
				require.NoError(t, err)
				require.Equal(t, len(w), n)
			}
			require.Equal(t, tt.want, string(r.Tail(tt.tail)))
			require.EqualValues(t, len(strings.Join(tt.writes, "")), r.Total())
		})
	}
	require.Equal(t, RingSize, NewRing(0).size)
}

// FuzzRing compares with a plain buffer.
func FuzzRing(f *testing.F) {
	f.Add([]byte("hello\x00world"), uint8(4), uint8(3))
	f.Add([]byte("a\x00b\x00cdefghijkl"), uint8(3), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, size, tail uint8) {
		r := NewRing(int(size) + 1)
		var all []byte
		for _, w := range bytes.Split(data, []byte{0}) {
			_, _ = r.Write(w)
			all = append(all, w...)
			want := all[len(all)-min(len(all), int(size)+1, int(tail)):]
			if got := r.Tail(int(tail)); !bytes.Equal(got, want) {
				t.Fatalf("tail %q, want %q", got, want)
			}
		}
	})
}

// FuzzQueues lets the console work on rings of arbitrary bytes.
func FuzzQueues(f *testing.F) {
	for _, flags := range []uint16{0, virtiotest.Write, virtiotest.Indirect} {
		table := make([]byte, 16)
		virtiotest.PutDesc(table, 0, virtiotest.Desc{Addr: virtiotest.Base + 0x8000, Len: 16, Flags: flags})
		f.Add(table, uint16(1), []byte("input"))
	}
	f.Fuzz(func(t *testing.T, table []byte, idx uint16, input []byte) {
		dev := New(Config{Log: NewRing(100)})
		d := virtiotest.New(t, dev, 64<<10)
		d.Up(d.Offered())
		for i, q := range d.Queues {
			copy(q.Table(), table)
			for head := range uint16(16) {
				q.SetAvail(head, head+uint16(i))
			}
			q.SetAvailIdx(idx)
			q.Kick()
		}
		_, _ = dev.Write(input)
		for _, q := range d.Queues {
			q.SetAvailIdx(idx + 1)
			q.Kick()
		}
	})
}

func BenchmarkOutput(b *testing.B) {
	d := virtiotest.Start(b, New(Config{Log: NewRing(0)}), 0)
	q := d.Queues[transmitQueue]
	head := q.Chain(d.Out(make([]byte, 80)))
	b.SetBytes(80)
	b.ReportAllocs()
	for b.Loop() {
		q.Offer(head)
		q.Kick()
		if _, ok := q.Take(); !ok {
			b.Fatal(d.MMIO.Failure())
		}
	}
}

func BenchmarkInput(b *testing.B) {
	dev := New(Config{})
	d := virtiotest.Start(b, dev, 0)
	q := d.Queues[receiveQueue]
	head := q.Chain(d.In(80))
	p := make([]byte, 80)
	b.SetBytes(80)
	b.ReportAllocs()
	for b.Loop() {
		q.Offer(head)
		_, _ = dev.Write(p)
		if _, ok := q.Take(); !ok {
			b.Fatal(d.MMIO.Failure())
		}
	}
}
