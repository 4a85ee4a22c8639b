package wire

import (
	"fmt"
	"io"
	"sync"
)

// InitialWindow is how many bytes may be sent on each channel before the first Window frame.
const InitialWindow = 256 << 10

// Inbox is the receiving end of one channel: it holds at most InitialWindow bytes and grants more as they are read.
type Inbox struct {
	mu     sync.Mutex
	cond   *sync.Cond
	chunks [][]byte
	size   int // bytes in chunks
	owed   int // bytes read and not granted again yet
	err    error
	grant  func(n uint32) error // sends a Window frame
}

// NewInbox returns an empty Inbox; grant is called, without locks held, when the peer may send more.
func NewInbox(grant func(n uint32) error) *Inbox {
	i := &Inbox{grant: grant}
	i.cond = sync.NewCond(&i.mu)
	return i
}

// Put adds the body of a Data frame, which the Inbox keeps. A peer that sends more than it was granted breaks the protocol.
func (i *Inbox) Put(b []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.size+i.owed+len(b) > InitialWindow {
		return fmt.Errorf("%w: more data than the window allows", ErrProtocol)
	}
	if i.err != nil || len(b) == 0 {
		return nil // nobody will read it
	}
	i.chunks = append(i.chunks, b)
	i.size += len(b)
	i.cond.Broadcast()
	return nil
}

// Close ends the Inbox: when everything is read, Read returns err, nil meaning io.EOF. The first call counts.
func (i *Inbox) Close(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		err = io.EOF
	}
	if i.err == nil {
		i.err = err
	}
	i.cond.Broadcast()
}

// Discard throws away what is unread and ends the Inbox.
func (i *Inbox) Discard() {
	i.mu.Lock()
	i.chunks, i.size = nil, 0
	i.mu.Unlock()
	i.Close(io.ErrClosedPipe)
}

// Next returns the next chunk, at least one byte, and blocks until there is one or the Inbox ends.
func (i *Inbox) Next() ([]byte, error) {
	i.mu.Lock()
	for len(i.chunks) == 0 {
		if i.err != nil {
			defer i.mu.Unlock()
			return nil, i.err
		}
		i.cond.Wait()
	}
	b := i.chunks[0]
	i.chunks = i.chunks[1:]
	i.size -= len(b)
	i.owed += len(b)
	owed := i.owed
	ended := i.err != nil
	if owed >= InitialWindow/2 || ended {
		i.owed = 0
	}
	i.mu.Unlock()
	if owed >= InitialWindow/2 && !ended {
		i.grant(uint32(owed)) // if this fails the connection is gone, which Next learns through Close
	}
	return b, nil
}

// Outbox is the sending end of one channel.
type Outbox struct {
	mu      sync.Mutex
	cond    *sync.Cond
	credit  uint64
	closed  bool
	w       *Writer
	stream  uint32
	channel uint8
}

// NewOutbox returns the sender of a channel.
func NewOutbox(w *Writer, stream uint32, channel uint8) *Outbox {
	o := &Outbox{credit: InitialWindow, w: w, stream: stream, channel: channel}
	o.cond = sync.NewCond(&o.mu)
	return o
}

// Grant adds what a Window frame allows. A peer that grants absurd amounts breaks the protocol.
func (o *Outbox) Grant(n uint32) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.credit += uint64(n); o.credit > InitialWindow {
		return fmt.Errorf("%w: a window of %d bytes was granted", ErrProtocol, o.credit)
	}
	o.cond.Broadcast()
	return nil
}

// Close makes every Write, also one that waits, return io.ErrClosedPipe.
func (o *Outbox) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.cond.Broadcast()
}

// reserve waits for credit and takes up to n bytes of it.
func (o *Outbox) reserve(n int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.credit == 0 && !o.closed {
		o.cond.Wait()
	}
	if o.closed {
		return 0, io.ErrClosedPipe
	}
	n = min(n, MaxData, int(o.credit))
	o.credit -= uint64(n)
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
		if err := o.w.Write(Frame{TypeData, o.stream, o.channel, p[done : done+n]}); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// CloseWrite says that no more data will come.
func (o *Outbox) CloseWrite() error {
	return o.w.Write(Frame{Type: TypeEOF, Stream: o.stream, Channel: o.channel})
}
