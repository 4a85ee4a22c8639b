package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// fileLock is an advisory lock between processes, and between goroutines. The
// kernel drops it when its holder dies.
type fileLock struct {
	f    *os.File
	keep bool
}

var errLocked = errors.New("locked by another process")

// tryLock takes a lock, or fails with errLocked. Exclusive locks remove their
// file when they are released, so that locks of blobs do not pile up.
func tryLock(path string, shared, keep bool) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		how := unix.LOCK_EX
		if shared {
			how = unix.LOCK_SH
		}
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		}
		if err != nil {
			f.Close()
			if err == unix.EWOULDBLOCK {
				return nil, errLocked
			}
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		// The former holder may have removed the file between our open and our lock.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return &fileLock{f: f, keep: keep || shared}, nil
		}
		f.Close()
	}
}

// lock waits for a lock until ctx ends.
func lock(ctx context.Context, path string, shared, keep bool) (*fileLock, error) {
	const longest = 100 * time.Millisecond
	for wait := time.Millisecond; ; wait = min(2*wait, longest) {
		l, err := tryLock(path, shared, keep)
		if err != errLocked {
			return l, err
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func (l *fileLock) unlock() {
	if !l.keep {
		os.Remove(l.f.Name())
	}
	l.f.Close()
}

// syncDir makes renames and removals in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// install gives a finished file its final name, so that after a crash it is there whole or not at all.
func install(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
