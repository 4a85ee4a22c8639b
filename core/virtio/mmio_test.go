package virtio_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// echo is a device that copies what is readable in a chain to what is writable, with two queues and a configuration space.
type echo struct {
	virtiotest.Nothing
	mu          sync.Mutex
	env         *virtio.Env
	config      [8]byte
	activateErr error
	activated   int
	resets      int
	before      func(queue int) // runs at the start of Notify
	state       []byte
}

const echoFeature = 1 << 5

func (e *echo) Features() uint64     { return echoFeature }
func (e *echo) QueueSizes() []uint16 { return []uint16{16, 8} }
func (e *echo) Reset()               { e.env = nil; e.resets++ }
func (e *echo) Activate(env *virtio.Env) error {
	e.env = env
	e.activated++
	return e.activateErr
}

func (e *echo) ReadConfig(off uint64, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	virtio.ReadConfigBytes(e.config[:], off, p)
}

func (e *echo) WriteConfig(off uint64, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if off < uint64(len(e.config)) {
		copy(e.config[off:], p)
	}
}

func (e *echo) SaveState() ([]byte, error) { return e.state, nil }
func (e *echo) RestoreState(b []byte) error {
	if string(b) == "bad" {
		return errors.New("bad state")
	}
	e.state = b
	return nil
}

func (e *echo) Notify(queue int) {
	if e.before != nil {
		e.before(queue)
	}
	q := e.env.Queues[queue]
	for {
		q.DisableNotify()
		for {
			c, ok, err := q.Pop()
			if err != nil {
				e.env.Fail(err)
				return
			}
			if !ok {
				break
			}
			q.Push(c.Head, echoChain(c))
		}
		q.Flush()
		if !q.EnableNotify() {
			return
		}
	}
}

func echoChain(c *virtio.Chain) (n uint32) {
	w, at := 0, 0
	for _, r := range c.Readable {
		for len(r) > 0 && w < len(c.Writable) {
			m := copy(c.Writable[w][at:], r)
			r, at, n = r[m:], at+m, n+uint32(m)
			if at == len(c.Writable[w]) {
				w, at = w+1, 0
			}
		}
	}
	return n
}

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

func TestMMIOStateMsgpack(t *testing.T) {
	d := virtiotest.Start(t, &echo{state: []byte("mine")}, 0)
	_, err := d.MMIO.Save()
	require.ErrorIs(t, err, virtio.ErrNotPaused)
	d.MMIO.Pause()
	s, err := d.MMIO.Save()
	require.NoError(t, err)
	b, err := msgpack.Marshal(s)
	require.NoError(t, err)
	var back virtio.State
	require.NoError(t, msgpack.Unmarshal(b, &back))
	require.Equal(t, s, back)
}
