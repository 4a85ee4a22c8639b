package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
)

// Writer queues frames and writes them in batches, in a goroutine that lives only while there is something to write: so that a peer
// that does not read holds nobody up who can be canceled. Any number of goroutines may use it.
type Writer struct {
	w    io.Writer
	fail func(error)

	mu      sync.Mutex
	queue   []byte // encoded frames
	spare   []byte // storage for the next queue
	writing bool
	err     error
	waiting bool
	changed chan struct{} // closed, and replaced, when the queue shrinks, if somebody is waiting
}

// maxQueue is how many bytes are queued before Write blocks. It may be exceeded by one frame.
const maxQueue = 256 << 10

// ErrCanceled means that the caller gave up before a frame could be queued.
var ErrCanceled = errors.New("canceled before the request was sent")

// NewWriter returns a Writer to w. fail, if not nil, is called with the first error of w.
func NewWriter(w io.Writer, fail func(error)) *Writer {
	return &Writer{w: w, fail: fail, changed: make(chan struct{})}
}

// Write queues the frames in one piece. It blocks while the queue is full, until done is closed (nil: for ever). An error of the
// underlying writer comes out of a later call.
func (w *Writer) Write(done <-chan struct{}, frames ...Frame) error {
	for _, f := range frames {
		if len(f.Body) > maxBody(f.Type) {
			return fmt.Errorf("%w: %d bytes, at most %d are possible", ErrTooLarge, len(f.Body), maxBody(f.Type))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && len(w.queue) >= maxQueue {
		if !w.wait(done) {
			return ErrCanceled
		}
	}
	return w.add(frames)
}

// Post queues a frame, however full the queue is. It is for what must not wait and cannot come often.
func (w *Writer) Post(f Frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.add([]Frame{f})
}

// add appends to the queue and sees to it that it is written.
func (w *Writer) add(frames []Frame) error {
	if w.err != nil {
		return w.err
	}
	for _, f := range frames {
		w.queue = appendFrame(w.queue, f)
	}
	if !w.writing {
		w.writing = true
		go w.flush()
	}
	return nil
}

// wait lets go of the lock until the queue has shrunk, and reports whether that was before done.
func (w *Writer) wait(done <-chan struct{}) bool {
	w.waiting = true
	changed := w.changed
	w.mu.Unlock()
	defer w.mu.Lock()
	select {
	case <-changed:
		return true
	case <-done:
		return false
	}
}

func (w *Writer) wake() {
	if w.waiting {
		w.waiting = false
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// flush writes until the queue is empty.
func (w *Writer) flush() {
	w.mu.Lock()
	for len(w.queue) > 0 && w.err == nil {
		batch := w.queue
		w.queue = w.spare[:0]
		w.spare = nil
		w.wake()
		w.mu.Unlock()
		_, err := w.w.Write(batch)
		w.mu.Lock()
		w.err = err
		if cap(batch) <= 2*maxQueue { // one huge request must not be kept for ever
			w.spare = batch
		}
	}
	w.writing = false
	w.wake()
	err := w.err
	w.mu.Unlock()
	if err != nil && w.fail != nil {
		w.fail(err)
	}
}

// Flush waits until everything queued is written or cannot be any more. It reports whether that was before done was closed.
func (w *Writer) Flush(done <-chan struct{}) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.writing {
		if !w.wait(done) {
			return false
		}
	}
	return true
}

// Send encodes body and queues it as one frame; it blocks as Write does.
func (w *Writer) Send(done <-chan struct{}, t Type, stream uint32, channel uint8, body any) error {
	b, err := msgpack.Marshal(body)
	if err != nil {
		return err
	}
	return w.Write(done, Frame{Type: t, Stream: stream, Channel: channel, Body: b})
}

// WriteMessage writes one frame to w at once. It is for connections that carry no others, as those to ProxyPort.
func WriteMessage(w io.Writer, t Type, body any) error {
	b, err := msgpack.Marshal(body)
	if err != nil {
		return err
	}
	_, err = w.Write(appendFrame(nil, Frame{Type: t, Stream: 1, Body: b}))
	return err
}

func appendFrame(b []byte, f Frame) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0x94, byte(f.Type), 0xce)
	b = binary.BigEndian.AppendUint32(b, f.Stream)
	b = append(b, f.Channel, 0xc6)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Body)))
	b = append(b, f.Body...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}
