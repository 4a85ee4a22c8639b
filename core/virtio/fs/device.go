// Package fs is the virtio file system device (virtio 1.2 §5.11): it carries FUSE requests between the guest's kernel and a file server of the host's.
package fs

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
)

// TagSize is the most bytes that a tag has (virtio 1.2 §5.11.4).
const TagSize = 36

const (
	hiprioQueue  = 0 // FORGET and INTERRUPT, so that they never wait behind other requests
	requestQueue = 1

	hiprioSize  = 128
	requestSize = 1024 // Linux makes requests of at most so many pages, less four: 1 MiB fits with room to spare

	configBytes = TagSize + 4 + 4 // struct virtio_fs_config
	maxWorkers  = 16              // requests at once, besides the one in Notify
)

// Handler is a file server's side of one mount. Handle may be called from several goroutines at once, Close only when no Handle runs.
type Handler interface {
	// Handle answers one FUSE request: in is what the guest wrote, out has room for the reply, and both are guest memory in pieces, which may change at any
	// time, and must not be touched after the return. It returns how many bytes of out it wrote, from the start. It may block for file I/O.
	Handle(in, out [][]byte) int
	// Close ends the mount.
	Close()
}

// Config says what New makes.
type Config struct {
	Tag string // what the guest mounts by: 1 to TagSize bytes of UTF-8 without NUL

	// NewSession returns the server for a new mount. It is called whenever the driver starts the device, which closes the result when it is reset. It
	// must not block.
	NewSession func() Handler

	// Closed, if set, is called when the device is closed, after the last mount has ended.
	Closed func() error
}

// Device is a virtio file system device with one request queue.
//
// Notify hands requests to goroutines, up to maxWorkers, but serves the last that it finds itself: a guest with one thing to do at a time, whose requests
// come one by one, then waits for no other goroutine to wake up. Those that may take a disk's time always go to a goroutine, so that they hold up nothing.
//
// A device that is restored from a snapshot has a new session, which knows nothing of what the guest's kernel had looked up and opened: the guest
// gets ESTALE or EBADF for it, and has to mount afresh.
type Device struct {
	config     [configBytes]byte
	tag        string
	newSession func() Handler
	closed     func() error

	env     *virtio.Env
	session Handler

	mu      sync.Mutex // protects the request queue
	workers sync.WaitGroup
	slots   chan struct{} // holds a token for each worker
}

// New returns the device. It fails if the tag cannot be used.
func New(c Config) (*Device, error) {
	if c.Tag == "" || len(c.Tag) > TagSize || !utf8.ValidString(c.Tag) || strings.ContainsRune(c.Tag, 0) {
		return nil, fmt.Errorf("file system device: tag %q is not 1 to %d bytes of UTF-8 without NUL", c.Tag, TagSize)
	}
	d := &Device{tag: c.Tag, newSession: c.NewSession, closed: c.Closed, slots: make(chan struct{}, maxWorkers)}
	copy(d.config[:], c.Tag)
	binary.LittleEndian.PutUint32(d.config[TagSize:], 1) // num_request_queues; notify_buf_size is 0 without VIRTIO_FS_F_NOTIFICATION
	return d, nil
}

// Tag returns the tag.
func (d *Device) Tag() string { return d.tag }

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDFileSystem }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	return []uint16{hiprioQueue: hiprioSize, requestQueue: requestSize}
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) { virtio.ReadConfigBytes(d.config[:], off, p) }

// WriteConfig implements virtio.Device; no field can be written.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.env, d.session = env, d.newSession()
	return nil
}

// Pause implements virtio.Pauser: it waits for the requests that are being served.
func (d *Device) Pause() { d.workers.Wait() }

// Resume implements virtio.Pauser.
func (d *Device) Resume() {}

// Reset implements virtio.Device: it ends the mount.
func (d *Device) Reset() {
	d.workers.Wait()
	if d.session != nil {
		d.session.Close()
	}
	d.env, d.session = nil, nil
}

// Close implements virtio.Device.
func (d *Device) Close() error {
	if d.closed == nil {
		return nil
	}
	return d.closed()
}

// Notify implements virtio.Device.
func (d *Device) Notify(queue int) {
	q := d.env.Queues[queue]
	if queue == hiprioQueue {
		d.drain(q, func(c *virtio.Chain, _ bool) { q.Push(c.Head, d.serve(c)) })
		q.Flush()
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drain(q, d.dispatch)
}

// drain calls f with every chain of a queue, and whether another is waiting behind it.
func (d *Device) drain(q *virtio.Queue, f func(c *virtio.Chain, more bool)) {
	pop := func() *virtio.Chain {
		c, ok, err := q.Pop()
		if err != nil {
			d.env.Fail(err)
		}
		if !ok {
			return nil
		}
		return c
	}
	for again := true; again; again = q.EnableNotify() {
		q.DisableNotify()
		for c := pop(); c != nil; {
			next := pop()
			f(c, next != nil)
			if next == nil {
				next = pop() // what came meanwhile
			}
			c = next
		}
		q.Flush()
	}
}

// dispatch serves a request or has a worker do it. mu is held, but not while the request is served.
func (d *Device) dispatch(c *virtio.Chain, more bool) {
	if more || slow(c) {
		select {
		case d.slots <- struct{}{}:
			d.workers.Go(func() {
				written := d.serve(c)
				d.mu.Lock()
				d.finish(c, written)
				d.mu.Unlock()
				<-d.slots
			})
			return
		default:
		}
	}
	d.mu.Unlock()
	written := d.serve(c)
	d.mu.Lock()
	d.finish(c, written)
}

// finish gives a request back; with mu held.
func (d *Device) finish(c *virtio.Chain, written uint32) {
	q := d.env.Queues[requestQueue]
	q.Push(c.Head, written)
	q.Flush()
}

// serve has the session answer a request. What it says it wrote is bounded by what there is, for the driver's sake (§2.7.8.2).
func (d *Device) serve(c *virtio.Chain) uint32 {
	n := max(0, d.session.Handle(c.Readable, c.Writable))
	return uint32(min(uint64(n), c.WriteLen, 1<<32-1))
}

// Opcodes of requests that wait for disks or move much data (enum fuse_opcode in linux/fuse.h).
const (
	opFsync         = 20
	opFsyncdir      = 30
	opFallocate     = 43
	opCopyFileRange = 47
)

// slow reports whether a request is likely to take long. A driver that deceives it slows only itself down.
func slow(c *virtio.Chain) bool {
	if len(c.Readable) == 0 || len(c.Readable[0]) < 8 {
		return false
	}
	switch binary.LittleEndian.Uint32(c.Readable[0][4:]) {
	case opFsync, opFsyncdir, opFallocate, opCopyFileRange:
		return true
	}
	return false
}

// state is what a restored device is checked against.
type state struct{ Tag string }

// SaveState implements virtio.Stateful. Nothing of the session is part of it.
func (d *Device) SaveState() ([]byte, error) { return msgpack.Marshal(state{Tag: d.tag}) }

// RestoreState implements virtio.Stateful: it fails unless the guest knows the device by this tag.
func (d *Device) RestoreState(b []byte) error {
	var s state
	if err := msgpack.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("file system device: %w", err)
	}
	if s.Tag != d.tag {
		return fmt.Errorf("file system device: the guest knows the tag %q, not %q", s.Tag, d.tag)
	}
	return nil
}
