package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dir is the open directory of a snapshot. All files are opened relative to it, so that they are of one snapshot even when
// another takes its name meanwhile.
type dir struct {
	*os.File
	id string
}

// enter opens a snapshot's directory and keeps its files from being removed until the dir is closed.
func (s *Store) enter(id string) (*dir, error) {
	var d *dir
	err := poll(context.Background(), 10*time.Millisecond, func() (bool, error) {
		f, err := openDir(s.path(id))
		if errors.Is(err, fs.ErrNotExist) {
			return false, &Error{ID: id, Offset: -1, Err: ErrNotFound}
		} else if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return false, corrupt(id, "", "is not a directory")
		} else if err != nil {
			return false, err
		}
		got, err := tryFlock(f, unix.LOCK_SH)
		// Without the lock it is being removed, under another name by then, or has just been put here by its writer.
		if got && isAt(f, s.path(id)) {
			d = &dir{File: f, id: id}
			return true, nil
		}
		_ = f.Close()
		return false, err
	})
	return d, fail(id, "", err)
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

func (d *dir) openAt(name string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(d.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err == unix.EINTR {
			continue
		}
		path := d.Name() + "/" + name
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// create makes an empty file.
func (d *dir) create(name string) (*os.File, error) {
	return d.openAt(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
}

// open opens a regular file for reading. Whatever else has its place is corruption, and so is that nothing has.
func (d *dir) open(name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	// O_NONBLOCK: opening a FIFO would wait for ever.
	f, err := d.openAt(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, st, corrupt(d.id, name, "file is missing")
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return nil, st, corrupt(d.id, name, "not a regular file")
	case err != nil:
		return nil, st, fail(d.id, name, err)
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, st, fail(d.id, name, os.NewSyscallError("fstat", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = f.Close()
		return nil, st, corrupt(d.id, name, "not a regular file")
	}
	return f, st, nil
}

// openSized is open for a file whose size is known.
func (d *dir) openSized(name string, size int64) (*os.File, unix.Stat_t, error) {
	f, st, err := d.open(name)
	if err == nil && st.Size != size {
		_ = f.Close()
		return nil, st, wrongSize(d.id, name, st.Size, size)
	}
	return f, st, err
}

func wrongSize(id, name string, got, want int64) error {
	return &Error{ID: id, File: name, Offset: min(got, want), Reason: fmt.Sprintf("file has %d bytes instead of %d", got, want), Err: ErrCorrupt}
}

// read returns a whole file of at most limit bytes.
func (d *dir) read(name string, limit int64) ([]byte, unix.Stat_t, error) {
	f, st, err := d.open(name)
	if err != nil {
		return nil, st, err
	}
	defer f.Close()
	if st.Size > limit {
		return nil, st, corrupt(d.id, name, "file has %d bytes, at most %d are possible", st.Size, limit)
	}
	b := make([]byte, st.Size)
	if err := readFull(f, b, 0); err != nil {
		return nil, st, readError(d.id, err)
	}
	return b, st, nil
}

// replace puts a file in place, whole or not at all. A writer that dies leaves a file that the next one takes over.
func (d *dir) replace(name string, data []byte) error {
	temp := name + ".new"
	for {
		f, err := d.openAt(temp, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return err
		}
		done, err := d.fill(f, temp, name, data)
		_ = f.Close()
		if done || err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func (d *dir) fill(f *os.File, temp, name string, data []byte) (done bool, err error) {
	if got, err := tryFlock(f, unix.LOCK_EX); !got {
		return false, err
	}
	var mine, there unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &mine); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	err = unix.Fstatat(int(d.Fd()), temp, &there, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || mine.Dev != there.Dev || mine.Ino != there.Ino {
		return false, nil // the writer before us has put it in place
	}
	if err = f.Truncate(0); err == nil {
		if _, err = f.WriteAt(data, 0); err == nil {
			err = f.Sync()
		}
	}
	if err == nil {
		err = os.NewSyscallError("rename", unix.Renameat(int(d.Fd()), temp, int(d.Fd()), name))
	}
	if err != nil {
		_ = unix.Unlinkat(int(d.Fd()), temp, 0)
	}
	return err == nil, err
}

// touch notes that the snapshot was used now, unless it was within the last span.
func (d *dir) touch(span time.Duration) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(d.Fd()), usedFile, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && time.Since(time.Unix(st.Mtim.Unix())).Abs() < span {
		return nil
	}
	now := unix.NsecToTimespec(time.Now().UnixNano())
	for made := false; ; made = true {
		err := unix.UtimesNanoAt(int(d.Fd()), usedFile, []unix.Timespec{now, now}, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.ENOENT || made {
			return os.NewSyscallError("utimensat", err)
		}
		f, err := d.openAt(usedFile, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
}

// identity names a file and its content as long as nobody restores an old change time.
func identity(name string, st *unix.Stat_t) string {
	b := append(make([]byte, 0, 100), name...)
	for _, n := range []int64{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()} {
		b = strconv.AppendInt(append(b, ' '), n, 10)
	}
	return string(append(b, '\n'))
}
