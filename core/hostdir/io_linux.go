package hostdir

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// READ and WRITE are answered here and not by go-fuse, which would allocate for each; the data goes straight between file and guest.

const (
	ioArgs    = 40   // struct fuse_read_in and fuse_write_in
	maxIovecs = 1024 // IOV_MAX
)

// ioRequest is a copy of the arguments of a READ or WRITE.
type ioRequest struct {
	handle, offset uint64
	size, how      uint32
	flags          uint32 // the file's, as of open(2)
}

func (r *ioRequest) read(in [][]byte) {
	var b [ioArgs]byte
	copyOut(b[:], in, headerSize)
	le := binary.LittleEndian
	r.handle, r.offset = le.Uint64(b[0:]), le.Uint64(b[8:])
	r.size, r.how = le.Uint32(b[16:]), le.Uint32(b[20:])
	r.flags = le.Uint32(b[32:])
}

func (s *fileSystem) read(hdr *header, in, out [][]byte) int {
	var r ioRequest
	r.read(in)
	room := total(out) - outHeaderSize
	if room < 0 {
		return 0
	}
	n, err := s.transfer(unix.SYS_PREADV, &r, out, outHeaderSize, min(int(r.size), room, MaxTransfer))
	if err != nil {
		return hdr.fail(out, err)
	}
	return hdr.reply(out, 0, n)
}

func (s *fileSystem) write(hdr *header, in, out [][]byte) int {
	var r ioRequest
	r.read(in)
	const args = headerSize + ioArgs
	if total(out) < outHeaderSize+8 || int(hdr.length) != args+int(r.size) || r.size > MaxTransfer {
		return hdr.fail(out, unix.EINVAL)
	}
	n, err := s.transfer(unix.SYS_PWRITEV2, &r, in, args, int(r.size))
	if err != nil {
		return hdr.fail(out, err)
	}
	var reply [outHeaderSize + 8]byte // with struct fuse_write_out
	binary.LittleEndian.PutUint32(reply[outHeaderSize:], uint32(n))
	bufs := [1][]byte{reply[:]}
	hdr.reply(bufs[:], 0, 8)
	return copyIn(out, reply[:])
}

type iovecs struct{ v [maxIovecs]unix.Iovec }

var iovecPool = sync.Pool{New: func() any { return new(iovecs) }}

// transfer moves n bytes between a file and bufs after skip bytes. It ends early at the file's end, and at an error after some bytes.
func (s *fileSystem) transfer(call uintptr, r *ioRequest, bufs [][]byte, skip, n int) (int, error) {
	h, err := s.handle(r.handle, false)
	if err != nil {
		return 0, err
	}
	defer s.done(h)
	if call == unix.SYS_PWRITEV2 && !h.writable {
		return 0, unix.EBADF
	}
	if int64(r.offset) < 0 || int64(r.offset)+int64(n) < 0 {
		return 0, unix.EINVAL
	}
	flags := 0
	if call == unix.SYS_PWRITEV2 && r.flags&unix.O_APPEND != 0 && r.how&fuse.WRITE_CACHE == 0 {
		// The guest's idea of where the file ends may be old. What it writes back of a mapping has its place, though.
		flags = unix.RWF_APPEND
	}
	if call == unix.SYS_PWRITEV2 && r.flags&unix.O_SYNC == unix.O_SYNC {
		flags |= unix.RWF_SYNC
	} else if call == unix.SYS_PWRITEV2 && r.flags&unix.O_DSYNC != 0 {
		flags |= unix.RWF_DSYNC
	}
	iov := iovecPool.Get().(*iovecs)
	defer iovecPool.Put(iov)
	done := 0
	for done < n {
		part := iov.fill(bufs, skip+done, n-done)
		moved, _, errno := unix.Syscall6(call, uintptr(h.fd), uintptr(unsafe.Pointer(&iov.v[0])), uintptr(part),
			uintptr(r.offset)+uintptr(done), 0, uintptr(flags))
		// Guest memory may be unmapped soon, and its addresses used by the Go heap, where the garbage collector takes a stale pointer for corruption.
		clear(iov.v[:part])
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0 && done == 0:
			return 0, errno
		case errno != 0 || moved == 0:
			return done, nil
		}
		done += int(moved)
	}
	return done, nil
}

// fill makes the vector of n bytes of bufs after skip, or of the first part of them, and returns its length.
func (v *iovecs) fill(bufs [][]byte, skip, n int) (used int) {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		b = b[:min(len(b), n)]
		skip, n = 0, n-len(b)
		v.v[used].Base = &b[0]
		v.v[used].SetLen(len(b))
		if used++; n == 0 || used == len(v.v) {
			break
		}
	}
	return used
}
