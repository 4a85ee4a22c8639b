package memory

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// file is a layer's file, shared by the images that use it. The last one closes it.
type file struct {
	*os.File
	refs atomic.Int64
	held int64 // bytes of content, of a file in memory; 0 for files that are somebody else's
}

func newFile(f *os.File) *file {
	out := &file{File: f}
	out.refs.Store(1)
	return out
}

func (f *file) release() error {
	if f.refs.Add(-1) > 0 {
		return nil
	}
	return f.Close()
}

// newMemfd returns an empty file of size bytes in memory, without a name.
func newMemfd(size int64) (*file, error) {
	// Never executable, where the kernel has this flag (Linux 6.3): some hosts refuse others.
	fd, err := unix.MemfdCreate("guest-memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("guest-memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := newFile(os.NewFile(uintptr(fd), "guest-memory"))
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// fill copies the pieces of other files to a file in memory.
func (f *file) fill(list []piece) error {
	buf := make([]byte, 256<<10)
	for _, p := range list {
		if p.file == f {
			continue
		}
		for p.len > 0 {
			b := buf[:min(p.len, int64(len(buf)))]
			if _, err := p.file.ReadAt(b, p.off); err != nil {
				return err
			}
			if _, err := f.WriteAt(b, p.off); err != nil {
				return err
			}
			p.off, p.len = p.off+int64(len(b)), p.len-int64(len(b))
		}
	}
	return nil
}

// seal makes a file in memory immutable. Nothing writes to it anyway, so failing does no harm.
func (f *file) seal() {
	_, _ = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
}

// workers returns how many goroutines work on a guest's memory at once. Beyond a few, memory is the limit.
func workers() int { return min(runtime.GOMAXPROCS(0), 4) }

// parallel calls do for each job, on a few goroutines, and returns the first error. After one, jobs are left out.
func parallel(jobs int, do func(job int) error) error {
	n := min(workers(), jobs)
	if n <= 1 {
		for i := range jobs {
			if err := do(i); err != nil {
				return err
			}
		}
		return nil
	}
	var (
		next   atomic.Int64
		failed atomic.Bool
		once   sync.Once
		first  error
		wg     sync.WaitGroup
	)
	for range n {
		wg.Go(func() {
			for !failed.Load() {
				i := int(next.Add(1)) - 1
				if i >= jobs {
					return
				}
				if err := do(i); err != nil {
					failed.Store(true)
					once.Do(func() { first = err })
				}
			}
		})
	}
	wg.Wait()
	return first
}
