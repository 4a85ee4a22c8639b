package core

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/virtio/block"
)

// fsck fails unless the file system is clean by e2fsck's judgement.
func fsck(t *testing.T, file string) {
	t.Helper()
	e2fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		e2fsck = "/usr/sbin/e2fsck"
	}
	if _, err := os.Stat(e2fsck); err != nil {
		t.Skip("needs e2fsck")
	}
	out, err := exec.Command(e2fsck, "-fn", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func closeDisk(t *testing.T, disk block.Backend) {
	t.Helper()
	require.NoError(t, disk.Close())
}

func TestVolumeIsMadeOnceAndKept(t *testing.T) {
	v := Volume{File: filepath.Join(t.TempDir(), "v.img"), Path: "/data", SizeMiB: 64}
	disk, fresh, err := openVolume(v)
	require.NoError(t, err)
	require.True(t, fresh)
	require.EqualValues(t, 64<<20, disk.Size())
	closeDisk(t, disk)
	fsck(t, v.File)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(v.File, &st))
	require.Less(t, st.Blocks*512, int64(16<<20), "it is sparse")
	require.EqualValues(t, 0o600, st.Mode&0o777)

	v.SizeMiB = 0
	disk, fresh, err = openVolume(v)
	require.NoError(t, err)
	require.False(t, fresh)
	closeDisk(t, disk)
	left, err := os.ReadDir(filepath.Dir(v.File))
	require.NoError(t, err)
	require.Len(t, left, 1, "no temporary file is left")
}

func TestVolumeOfAnEmptyFileKeepsItsMode(t *testing.T) {
	v := Volume{File: filepath.Join(t.TempDir(), "v.img"), SizeMiB: 16}
	require.NoError(t, os.WriteFile(v.File, nil, 0o640))
	require.NoError(t, os.Chmod(v.File, 0o640))
	disk, fresh, err := openVolume(v)
	require.NoError(t, err)
	require.True(t, fresh)
	closeDisk(t, disk)
	info, err := os.Stat(v.File)
	require.NoError(t, err)
	require.EqualValues(t, 0o640, info.Mode().Perm())
	require.EqualValues(t, 16<<20, info.Size())
}

func TestVolumeHasOneWriterOrSeveralReaders(t *testing.T) {
	v := Volume{File: filepath.Join(t.TempDir(), "v.img"), SizeMiB: 16}
	ro := v
	ro.ReadOnly = true
	writer, _, err := openVolume(v)
	require.NoError(t, err)
	for _, other := range []Volume{v, ro} {
		_, _, err = openVolume(other)
		require.ErrorIs(t, err, ErrInUse)
	}
	closeDisk(t, writer)
	first, _, err := openVolume(ro)
	require.NoError(t, err)
	second, _, err := openVolume(ro)
	require.NoError(t, err)
	_, _, err = openVolume(v)
	require.ErrorIs(t, err, ErrInUse)
	closeDisk(t, first)
	closeDisk(t, second)
}

// Of many that make a volume at once one gets it, and the others learn that it is in use or take it afterwards.
func TestVolumeIsMadeByOneOfMany(t *testing.T) {
	v := Volume{File: filepath.Join(t.TempDir(), "v.img"), SizeMiB: 16}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			disk, fresh, err := openVolume(v)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				require.ErrorIs(t, err, ErrInUse)
				return
			}
			if fresh {
				made++
			}
			disk.Close()
		})
	}
	wg.Wait()
	require.Equal(t, 1, made)
	fsck(t, v.File)
}

func TestVolumesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, content, 0o600))
		return p
	}
	good := Volume{File: filepath.Join(dir, "good"), SizeMiB: 16}
	disk, _, err := openVolume(good)
	require.NoError(t, err)
	closeDisk(t, disk)
	whole, err := os.ReadFile(good.File)
	require.NoError(t, err)
	dirty := append([]byte(nil), whole...)
	dirty[superblockAt+0x60] |= incompatRecover
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for name, c := range map[string]struct {
		v    Volume
		code Code
		text string
	}{
		"directory":         {Volume{File: dir}, ErrInvalidArgument, "it is a directory"},
		"directory to read": {Volume{File: dir, ReadOnly: true}, ErrInvalidArgument, "it is a directory"},
		"no directory":      {Volume{File: filepath.Join(dir, "no/such")}, ErrNotFound, "there is no directory"},
		"missing":           {Volume{File: filepath.Join(dir, "missing"), ReadOnly: true}, ErrNotFound, "no such file"},
		"empty to read":     {Volume{File: file("empty", nil), ReadOnly: true}, ErrInvalidArgument, "it is empty"},
		"pipe":              {Volume{File: fifo}, ErrInvalidArgument, "not a regular file"},
		"text":              {Volume{File: file("text", make([]byte, 4096))}, ErrInvalidArgument, "no ext4"},
		"short":             {Volume{File: file("short", []byte("hello"))}, ErrInvalidArgument, "too small"},
		"cut":               {Volume{File: file("cut", whole[:1<<20])}, ErrCorrupt, "larger than the file"},
		"dirty to read":     {Volume{File: file("dirty", dirty), ReadOnly: true}, ErrInvalidArgument, "did not end cleanly"},
		"other size":        {Volume{File: good.File, SizeMiB: 32}, ErrInvalidArgument, "16 MiB and not 32"},
	} {
		_, _, err := openVolume(c.v)
		require.ErrorIs(t, err, c.code, name)
		require.ErrorContains(t, err, c.text, name)
		require.ErrorContains(t, err, c.v.File, name)
	}
	_, err = os.Stat(filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
