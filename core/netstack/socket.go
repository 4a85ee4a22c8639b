package netstack

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// budget bounds the sockets of all stacks, so that guests leave the process file descriptors for everything else.
type budget struct {
	used  atomic.Int64
	limit func() int64
}

var sockets = budget{limit: func() int64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 512
	}
	return int64(min(r.Cur, 1<<40) / 2)
}}

func (b *budget) take() bool {
	if b.used.Add(1) > b.limit() {
		b.give()
		return false
	}
	return true
}

func (b *budget) give() { b.used.Add(-1) }

// Buffers are only held while data moves, not by connections that wait: a guest may have very many of those.
const (
	largeBuffer = 128 << 10
	smallBuffer = 16 << 10
)

var (
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
)

// takeBuffer returns a buffer of at least n bytes, at most largeBuffer, and what gives it back.
func takeBuffer(n int) ([]byte, func()) {
	if n <= smallBuffer {
		b := smallBuffers.Get().(*[smallBuffer]byte)
		return b[:], func() { smallBuffers.Put(b) }
	}
	b := largeBuffers.Get().(*[largeBuffer]byte)
	return b[:], func() { largeBuffers.Put(b) }
}

// retry makes a system call again as long as signals interrupt it.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// socketWriter is an io.Writer that takes what the socket takes at once.
type socketWriter struct {
	raw     syscall.RawConn
	blocked bool  // the socket took less than it was given; see wait
	err     error // of the socket

	p        []byte
	n        int
	try, ask func(fd uintptr) bool // bound once, so that writing does not allocate
}

func newSocketWriter(c *net.TCPConn) (*socketWriter, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &socketWriter{raw: raw}
	w.try = func(fd uintptr) bool {
		w.n, w.err = retry(func() (int, error) { return unix.SendmsgN(int(fd), w.p, nil, nil, sendFlags) })
		return true
	}
	w.ask = func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := retry(func() (int, error) { return unix.Poll(fds, 0) })
		return n > 0 || err != nil
	}
	return w, nil
}

// Write implements io.Writer. It does not block.
func (w *socketWriter) Write(p []byte) (int, error) {
	w.p, w.n = p, 0
	if err := w.raw.Write(w.try); err != nil {
		w.err = err
	}
	w.p = nil
	if w.err == unix.EAGAIN {
		w.n, w.err, w.blocked = 0, nil, true
	}
	n := max(0, w.n)
	switch {
	case w.err != nil:
		return 0, w.err
	case n < len(p):
		w.blocked = true
		return n, io.ErrShortWrite
	}
	return n, nil
}

// wait waits until the socket takes more. It returns false if it never will.
func (w *socketWriter) wait() bool {
	w.blocked = false
	return w.raw.Write(w.ask) == nil
}

// socketSender sends datagrams of a connected socket, and drops those that the socket does not take at once.
type socketSender struct {
	mu  sync.Mutex
	raw syscall.RawConn
	p   []byte
	try func(fd uintptr) bool
}

func (w *socketSender) init(c syscall.Conn) (err error) {
	w.raw, err = c.SyscallConn()
	w.try = func(fd uintptr) bool {
		_, _ = retry(func() (int, error) { return unix.SendmsgN(int(fd), w.p, nil, nil, sendFlags) })
		return true
	}
	return err
}

func (w *socketSender) send(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.p = p
	_ = w.raw.Write(w.try)
	w.p = nil
}

// socketReader reads a socket into buffers that it takes when there is data.
type socketReader struct {
	raw syscall.RawConn
	max int

	n     int
	err   error // of the system call
	fault error // why read failed
	b     []byte
	free  func()
	data  bytes.Reader
	try   func(fd uintptr) bool
}

func newSocketReader(c syscall.Conn, most int) (*socketReader, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &socketReader{raw: raw, max: min(most, largeBuffer)}
	r.try = func(fd uintptr) bool {
		r.b, r.free = takeBuffer(r.max)
		r.n, r.err = retry(func() (int, error) { return unix.Read(int(fd), r.b[:r.max]) })
		if r.err == unix.EAGAIN {
			r.release()
			return false
		}
		return true
	}
	return r, nil
}

// read waits for data. It returns nil at its end, and false if reading failed. The reader is valid until release, which must be called.
func (r *socketReader) read() (*bytes.Reader, bool) {
	r.fault = r.raw.Read(r.try)
	if r.fault == nil {
		r.fault = r.err
	}
	if r.fault != nil || r.n <= 0 {
		r.release()
		return nil, r.fault == nil
	}
	r.data.Reset(r.b[:r.n])
	return &r.data, true
}

func (r *socketReader) release() {
	if r.free != nil {
		r.data.Reset(nil)
		r.free()
		r.b, r.free = nil, nil
	}
}
