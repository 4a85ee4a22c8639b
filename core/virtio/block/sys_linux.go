package block

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIovecs is the most that one preadv or pwritev takes (IOV_MAX).
const maxIovecs = 1024

// sysVec is the storage of the system calls' argument, kept so that a request allocates nothing.
type sysVec struct {
	iov []unix.Iovec
}

// readFile fills the next n bytes of v from f at off.
func (v *Vec) readFile(f *os.File, off, n int64) error {
	return v.transfer(unix.SYS_PREADV, f, off, n)
}

// writeFile writes the next n bytes of v to f at off.
func (v *Vec) writeFile(f *os.File, off, n int64) error {
	return v.transfer(unix.SYS_PWRITEV, f, off, n)
}

func (v *Vec) transfer(call uintptr, f *os.File, off, n int64) error {
	for n > 0 {
		want := v.fill(n)
		if want == 0 {
			return io.ErrShortBuffer
		}
		// The fifth argument is the offset's upper half, which 64-bit kernels ignore.
		done, _, errno := syscall.Syscall6(call, f.Fd(), uintptr(unsafe.Pointer(&v.sys.iov[0])), uintptr(len(v.sys.iov)),
			uintptr(off), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		if done == 0 {
			return io.ErrUnexpectedEOF
		}
		v.advance(int64(done))
		off += int64(done)
		n -= int64(done)
	}
	return nil
}

// fill sets up the system call's argument for at most n bytes of v and returns how many it covers.
func (v *Vec) fill(n int64) (want int64) {
	v.sys.iov = v.sys.iov[:0]
	for _, s := range v.segs {
		if want == n || len(v.sys.iov) == maxIovecs {
			break
		}
		if s = s[:min(int64(len(s)), n-want)]; len(s) == 0 {
			continue
		}
		e := unix.Iovec{Base: &s[0]}
		e.SetLen(len(s))
		v.sys.iov = append(v.sys.iov, e)
		want += int64(len(s))
	}
	return want
}

// punch gives the bytes' space back; they read as zeros. It returns errors.ErrUnsupported where the file system cannot.
func punch(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// zeroRange makes the bytes read as zeros and keeps their space reserved.
func zeroRange(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func fallocate(f *os.File, mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), mode, off, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV):
			return errors.ErrUnsupported
		}
		return err
	}
}

func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
