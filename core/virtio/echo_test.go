package virtio_test

import (
	"errors"
	"sync"

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
