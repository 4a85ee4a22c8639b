package oci

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLocksExclude(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := tryLock(path, false, false)
	require.NoError(t, err)
	for _, shared := range []bool{false, true} {
		_, err = tryLock(path, shared, false)
		require.Equal(t, errLocked, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = lock(ctx, path, false, false)
	require.ErrorIs(t, err, context.Canceled)
	held.unlock()
	require.NoFileExists(t, path)

	first, err := tryLock(path, true, true)
	require.NoError(t, err)
	second, err := tryLock(path, true, true)
	require.NoError(t, err)
	_, err = tryLock(path, false, true)
	require.Equal(t, errLocked, err)
	first.unlock()
	second.unlock()
	require.FileExists(t, path)
}

// TestLockFilesMayGo has many holders remove the file that the others wait for.
func TestLockFilesMayGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, count atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := lock(context.Background(), path, false, false)
				if err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two hold the lock")
				}
				count.Add(1)
				inside.Add(-1)
				l.unlock()
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 400, count.Load())
	_, err := os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}
