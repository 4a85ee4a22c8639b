package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	locksDir  = ".locks"
	storeLock = ".store" // in locksDir; held, shared, to add a snapshot, and exclusively to take any away
)

// tryFlock takes a lock on an open file. It reports whether it got it. The lock goes with the file's last descriptor.
func tryFlock(f *os.File, how int) (bool, error) {
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err {
		case nil:
			return true, nil
		case unix.EWOULDBLOCK:
			return false, nil
		case unix.EINTR:
		default:
			return false, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

// poll calls try until it succeeds, fails, or ctx ends.
func poll(ctx context.Context, longest time.Duration, try func() (bool, error)) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, longest) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if done, err := try(); done || err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// tryLockFile opens, or makes, a file and locks it; nil means that another has it. Its holder may remove or rename the file.
func tryLockFile(path string, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		got, err := tryFlock(f, how)
		if !got {
			_ = f.Close()
			return nil, err
		}
		// The holder before us may have removed the file between our open and our lock.
		if isAt(f, path) {
			return f, nil
		}
		_ = f.Close()
	}
}

// isAt reports whether path is still the name of f.
func isAt(f *os.File, path string) bool {
	mine, err1 := f.Stat()
	there, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(mine, there)
}

func lockFile(ctx context.Context, path string, how int) (f *os.File, err error) {
	err = poll(ctx, 50*time.Millisecond, func() (bool, error) {
		f, err = tryLockFile(path, how)
		return f != nil, err
	})
	return f, err
}

// lockStore keeps snapshots from going, or everyone else from adding and removing any.
func (s *Store) lockStore(ctx context.Context, how int) (unlock func(), err error) {
	f, err := lockFile(ctx, s.path(locksDir, storeLock), how)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// Lock waits until nobody else, in this process or another, has the lock of this fingerprint, so that of all who miss a snapshot
// one makes it. The string may be anything. unlock may be called more than once; the end of the process unlocks, too.
func (s *Store) Lock(ctx context.Context, fingerprint string) (unlock func(), err error) {
	// Hashed, as it is no file name.
	sum := sha256.Sum256([]byte(fingerprint))
	path := s.path(locksDir, hex.EncodeToString(sum[:16]))
	f, err := lockFile(ctx, path, unix.LOCK_EX)
	if err != nil {
		return nil, fail("", "", err)
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			_ = os.Remove(path)
			_ = f.Close()
		})
	}, nil
}

// sweepLocks removes the lock files of those who died with them.
func (s *Store) sweepLocks() {
	entries, _ := os.ReadDir(s.path(locksDir))
	for _, e := range entries {
		if e.Name() == storeLock {
			continue
		}
		path := filepath.Join(s.dir, locksDir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if got, _ := tryFlock(f, unix.LOCK_EX); got && isAt(f, path) {
			_ = os.Remove(path)
		}
		_ = f.Close()
	}
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
