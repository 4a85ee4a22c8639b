package wire

import (
	"fmt"
	"io"
	"sync"
)

// InitialWindow is how many bytes may be sent on each channel before the first Window frame.
const InitialWindow = 256 << 10

// smallChunk is what is worth copying together in an Inbox, so that its memory is bounded by its window and not by the number of frames.
const smallChunk = 4 << 10

// Inbox is the receiving end of one channel: it holds at most InitialWindow bytes and grants more as they are read. One goroutine reads.
type Inbox struct {
	mu     sync.Mutex
	cond   *sync.Cond
	chunks []chunk
	size   int // bytes in chunks
	owed   int // bytes read and not granted again yet
	ended  bool
	err    error
	grant  func(n uint32) // sends a Window frame

	rest chunk // of a Read that took less than a chunk
}

type chunk struct {
	b   []byte
	buf *buffer // to release after use
}

// NewInbox returns an empty Inbox; grant is called, by the reader and without locks held, when the peer may send more.
func NewInbox(grant func(n uint32)) *Inbox {
	i := &Inbox{grant: grant}
	i.cond = sync.NewCond(&i.mu)
	return i
}

// Put adds a Data frame, whose body the Inbox takes over. A peer that sends more than it was granted breaks the protocol.
func (i *Inbox) Put(f Frame) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.size+i.owed+len(f.Body) > InitialWindow {
		return fmt.Errorf("%w: more data than the window allows", ErrProtocol)
	}
	if i.ended {
		f.buf.release() // nobody will read it
		return nil
	}
	i.size += len(f.Body)
	if last := len(i.chunks) - 1; last >= 0 && len(f.Body)+len(i.chunks[last].b) <= smallChunk {
		i.chunks[last].b = append(i.chunks[last].b, f.Body...)
		return nil
	}
	i.chunks = append(i.chunks, chunk{f.Body, f.buf})
	i.cond.Signal()
	return nil
}

// Close ends the Inbox: when everything is read, reads return err, nil meaning io.EOF. The first call counts.
func (i *Inbox) Close(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.close(err)
}

func (i *Inbox) close(err error) {
	if i.ended {
		return
	}
	if err == nil {
		err = io.EOF
	}
	i.ended, i.err = true, err
	i.cond.Broadcast()
}

// Discard throws away what is unread and ends the Inbox.
func (i *Inbox) Discard() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range i.chunks {
		c.buf.release()
	}
	i.chunks, i.size = nil, 0
	i.close(io.ErrClosedPipe)
}

// next takes the oldest chunk and blocks until there is one or the Inbox ends.
func (i *Inbox) next() (chunk, error) {
	i.mu.Lock()
	for len(i.chunks) == 0 {
		if i.ended {
			defer i.mu.Unlock()
			return chunk{}, i.err
		}
		i.cond.Wait()
	}
	c := i.chunks[0]
	i.chunks[0] = chunk{}
	i.chunks = i.chunks[1:]
	i.size -= len(c.b)
	if i.ended {
		i.mu.Unlock()
		return c, nil
	}
	i.owed += len(c.b)
	granted := 0
	if i.owed >= InitialWindow/2 {
		granted, i.owed = i.owed, 0
	}
	i.mu.Unlock()
	if granted > 0 {
		i.grant(uint32(granted))
	}
	return c, nil
}

// Read implements io.Reader. It blocks until there is something to read.
func (i *Inbox) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(i.rest.b) == 0 {
		c, err := i.next()
		if err != nil {
			return 0, err
		}
		i.rest = c
	}
	n := copy(p, i.rest.b)
	if i.rest.b = i.rest.b[n:]; len(i.rest.b) == 0 {
		i.rest.buf.release()
		i.rest = chunk{}
	}
	return n, nil
}

// WriteTo implements io.WriterTo: it writes everything to w until the Inbox ends or w fails.
func (i *Inbox) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		c, err := i.next()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(c.b)
		c.buf.release()
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// Outbox is the sending end of one channel.
type Outbox struct {
	w       *Writer
	stream  uint32
	channel uint8

	mu     sync.Mutex
	cond   *sync.Cond
	credit int
	ended  bool
	done   chan struct{} // closed with ended
}

// NewOutbox returns the sender of a channel.
func NewOutbox(w *Writer, stream uint32, channel uint8) *Outbox {
	o := &Outbox{credit: InitialWindow, w: w, stream: stream, channel: channel, done: make(chan struct{})}
	o.cond = sync.NewCond(&o.mu)
	return o
}

// Grant adds what a Window frame allows. A peer that grants nothing or more than it was sent breaks the protocol.
func (o *Outbox) Grant(n uint32) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n == 0 || uint64(o.credit)+uint64(n) > InitialWindow {
		return fmt.Errorf("%w: a window of %d bytes was granted", ErrProtocol, n)
	}
	o.credit += int(n)
	o.cond.Broadcast()
	return nil
}

// Close makes every Write, also one that waits, return io.ErrClosedPipe.
func (o *Outbox) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.ended = true
		close(o.done)
		o.cond.Broadcast()
	}
}

// reserve waits for credit and takes up to n bytes of it.
func (o *Outbox) reserve(n int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.credit == 0 && !o.ended {
		o.cond.Wait()
	}
	if o.ended {
		return 0, io.ErrClosedPipe
	}
	n = min(n, MaxData, o.credit)
	o.credit -= n
	return n, nil
}

// Write sends p as Data frames. It blocks while the receiver's window is used up.
func (o *Outbox) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := o.reserve(len(p) - done)
		if err != nil {
			return done, err
		}
		if err := o.write(Frame{Type: TypeData, Body: p[done : done+n]}); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// CloseWrite says that no more data will come.
func (o *Outbox) CloseWrite() error { return o.write(Frame{Type: TypeEOF}) }

func (o *Outbox) write(f Frame) error {
	f.Stream, f.Channel = o.stream, o.channel
	err := o.w.Write(o.done, f)
	if err == ErrCanceled {
		return io.ErrClosedPipe
	}
	return err
}
