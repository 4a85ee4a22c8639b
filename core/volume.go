package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/virtio/block"
)

// Volume is a file of the host that holds an ext4 file system for guests. It keeps its contents over runs and restores; no snapshot holds any of
// it. One VM at a time may write to it, or any number may read.
type Volume struct {
	File     string // on the host; made on first use, in a directory that exists, unless ReadOnly
	Path     string // where the guest finds it: absolute, made if it is missing
	ReadOnly bool
	SizeMiB  int // of a new file, 16 to 16777216; it is allocated as it is written; default 8192
}

// Limits of Volume.SizeMiB.
const (
	DefaultVolumeMiB = 8192
	minVolumeMiB     = 16
	maxVolumeMiB     = 16 << 20
)

// ParseVolume reads HOST_FILE:GUEST_PATH[:ro][:size=SIZE], where SIZE is a number of MiB or has the unit M, G or T.
func ParseVolume(s string) (Volume, error) {
	v := Volume{}
	var options []string
	var err error
	if v.File, v.Path, options, err = splitAttachment(s, "volume", "FILE:/PATH[:ro][:size=8G]"); err != nil {
		return v, err
	}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case o == "ro":
			v.ReadOnly = true
		case key == "size":
			if v.SizeMiB, err = parseMiB(value); err != nil {
				return v, badAttachment("volume", s, err.Error())
			}
		default:
			return v, badAttachment("volume", s, fmt.Sprintf("there is no option %q; ro and size= are", o))
		}
	}
	return v, nil
}

func parseMiB(s string) (int, error) {
	unit := 1
	number := s
	if s != "" {
		if i := strings.IndexByte("MGT", s[len(s)-1]&^0x20); i >= 0 {
			unit, number = 1<<(10*i), s[:len(s)-1]
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > maxVolumeMiB/unit {
		return 0, fmt.Errorf("size=%s is no size from %dM to 16T", s, minVolumeMiB)
	}
	return n * unit, nil
}

// openVolume opens a volume's file and locks it as long as the disk is open. It reports whether its file system was just made.
func openVolume(v Volume) (disk block.Backend, fresh bool, err error) {
	f, fresh, err := lockVolume(v)
	if err != nil {
		return nil, false, err
	}
	disk, err = block.NewRaw(f, v.ReadOnly)
	return disk, fresh, err
}

// lockVolume returns the volume's file, which has a file system and is locked. Others may make or replace it at the same time.
func lockVolume(v Volume) (*os.File, bool, error) {
	for range 16 {
		f, err := openLocked(v)
		if errors.Is(err, unix.ENOENT) {
			if f, err = makeVolume(v, nil); err == nil {
				return f, true, nil
			}
		} else if err == nil {
			var fresh bool
			if f, fresh, err = checkVolume(v, f); err == nil {
				return f, fresh, nil
			}
		}
		if !errors.Is(err, unix.EEXIST) {
			return nil, false, err
		}
	}
	return nil, false, &Error{Code: ErrInUse, Op: "open volume", Object: v.File, Err: errors.New("somebody keeps replacing it")}
}

// openLocked opens and locks what is there. EEXIST says that it was replaced meanwhile.
func openLocked(v Volume) (*os.File, error) {
	flags, how := os.O_RDWR, unix.LOCK_EX
	if v.ReadOnly {
		flags, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(v.File, flags|unix.O_NONBLOCK, 0) // not to wait for the other end of a pipe
	switch {
	case errors.Is(err, unix.ENOENT) && v.ReadOnly:
		return nil, &Error{Code: ErrNotFound, Op: "open volume", Object: v.File, Err: errors.New("there is no such file, and none is made for reading alone")}
	case errors.Is(err, unix.ENOENT):
		return nil, err
	case errors.Is(err, unix.EISDIR):
		return nil, errDirectory(v)
	case err != nil:
		return nil, &Error{Code: CodeOf(err), Op: "open volume", Object: v.File, Err: err}
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, &Error{Code: ErrIO, Op: "lock volume", Object: v.File, Err: err}
		}
		return nil, &Error{Code: ErrInUse, Op: "lock volume", Object: v.File, Err: errors.New("a VM uses it; one may write, or several read")}
	}
	mine, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(v.File); err == nil && !os.SameFile(mine, there) {
			err = unix.EEXIST
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func errDirectory(v Volume) error {
	return &Error{Code: ErrInvalidArgument, Op: "open volume", Object: v.File, Err: errors.New("it is a directory: mount it, or name a file in it")}
}

// checkVolume returns a file that a guest's kernel can make something of, after it has put a file system into an empty one. It takes over f.
func checkVolume(v Volume, f *os.File) (_ *os.File, fresh bool, err error) {
	defer func() {
		if fresh || err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	size := info.Size()
	bad := func(text string) (*os.File, bool, error) {
		return nil, false, &Error{Code: ErrInvalidArgument, Op: "open volume", Object: v.File, Err: errors.New(text)}
	}
	switch {
	case info.IsDir():
		return nil, false, errDirectory(v)
	case !info.Mode().IsRegular():
		return bad("it is not a regular file")
	case size == 0 && v.ReadOnly:
		return bad("it is empty: use it for writing first")
	case size == 0:
		made, err := makeVolume(v, info)
		return made, err == nil, err
	case v.SizeMiB != 0 && size != int64(v.SizeMiB)<<20:
		return bad(fmt.Sprintf("it has %d MiB and not %d: the size is for new files", size>>20, v.SizeMiB))
	}
	return f, false, checkExt4(f, size, v)
}

// makeVolume makes the file with an empty file system, under a hidden name until it is whole and locked, and returns it. It takes the place of an
// empty file that the caller has locked, or of none; EEXIST says that another was faster.
func makeVolume(v Volume, empty os.FileInfo) (f *os.File, err error) {
	dir := filepath.Dir(v.File)
	f, err = os.CreateTemp(dir, ".volume-*")
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, &Error{Code: ErrNotFound, Op: "make volume", Object: v.File, Err: fmt.Errorf("there is no directory %s", dir)}
	case err != nil:
		return nil, &Error{Code: CodeOf(err), Op: "make volume", Object: v.File, Err: err}
	}
	defer os.Remove(f.Name()) // in vain after a rename
	defer func() {
		if err != nil {
			f.Close()
			if !errors.Is(err, unix.EEXIST) {
				err = &Error{Code: CodeOf(err), Op: "make volume", Object: v.File, Err: err}
			}
		}
	}()
	mib := v.SizeMiB
	setDefault(&mib, DefaultVolumeMiB)
	size := int64(mib) << 20
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := makeExt4(f, size, "volume", true); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	if empty == nil {
		return f, os.Link(f.Name(), v.File)
	}
	if err := f.Chmod(empty.Mode().Perm()); err != nil {
		return nil, err
	}
	return f, os.Rename(f.Name(), v.File)
}

// The superblock of ext4 (Linux, Documentation/filesystems/ext4/super.rst).
const (
	superblockAt    = 1024
	superblockSize  = 1024
	ext4Magic       = 0xef53
	incompatRecover = 0x4
	incompat64Bit   = 0x80
)

// checkExt4 refuses what the guest's kernel could make nothing of, with words that say why.
func checkExt4(f io.ReaderAt, size int64, v Volume) error {
	bad := func(code Code, text string) error {
		return &Error{Code: code, Op: "open volume", Object: v.File, Err: errors.New(text)}
	}
	var sb [superblockSize]byte
	if n, err := f.ReadAt(sb[:], superblockAt); n < len(sb) {
		if err != io.EOF {
			return &Error{Code: CodeOf(err), Op: "read volume", Object: v.File, Err: err}
		}
		return bad(ErrInvalidArgument, "it is too small for a file system")
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != ext4Magic {
		return bad(ErrInvalidArgument, "it holds no ext4 file system; a volume is made in a new or an empty file")
	}
	blocks := uint64(le.Uint32(sb[0x4:]))
	incompat := le.Uint32(sb[0x60:])
	if incompat&incompat64Bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	shift := le.Uint32(sb[0x18:])
	if shift > 6 || blocks > uint64(size)>>(10+shift) {
		return bad(ErrCorrupt, "its file system is larger than the file")
	}
	if v.ReadOnly && incompat&incompatRecover != 0 {
		return bad(ErrInvalidArgument, "its last use did not end cleanly: use it for writing once, which recovers it")
	}
	return nil
}
