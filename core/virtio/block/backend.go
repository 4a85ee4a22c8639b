package block

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of capacity and of requests (virtio 1.2 §5.2.4).
const SectorSize = 512

// Backend stores a disk's bytes. The device calls it with ranges inside Size, multiples of SectorSize, from one goroutine at a
// time. Several devices may read from one read-only backend at once, so ReadV must be safe for that.
type Backend interface {
	// Size returns the disk's size in bytes, a multiple of SectorSize; always the same.
	Size() int64
	// ReadOnly reports whether all the methods that change the disk are off limits; always the same.
	ReadOnly() bool
	// ReadV fills the next n bytes of v from the disk at off.
	ReadV(v *Vec, off, n int64) error
	// WriteV writes the next n bytes of v to the disk at off.
	WriteV(v *Vec, off, n int64) error
	// Flush makes what was written durable, as far as this backend promises that.
	Flush() error
	// Discard says that the content of the range is no longer needed; what it reads as afterwards is undefined.
	Discard(off, n int64) error
	// WriteZeroes makes the range read as zeros. With unmap its space may be given back.
	WriteZeroes(off, n int64, unmap bool) error
	// Close releases the backend.
	Close() error
}

// SizeError says that a disk's size cannot be used.
type SizeError struct {
	Name string // the file
	Size int64  // bytes
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("disk %s: size %d is not a positive multiple of %d", e.Name, e.Size, SectorSize)
}

func checkSize(name string, size int64) error {
	if size <= 0 || size%SectorSize != 0 {
		return &SizeError{Name: name, Size: size}
	}
	return nil
}

// ErrReadOnly is returned by the changing methods of a read-only backend.
var ErrReadOnly = errors.New("disk is read-only")

// Raw is a disk that is a file, or a block device, byte for byte.
type Raw struct {
	file     *os.File
	size     int64
	readOnly bool
}

// NewRaw returns the disk in f, which belongs to it from now on, even after an error. The file must not change its size.
func NewRaw(f *os.File, readOnly bool) (*Raw, error) {
	size, err := f.Seek(0, io.SeekEnd) // unlike Stat also right for block devices
	if err == nil {
		err = checkSize(f.Name(), size)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Raw{file: f, size: size, readOnly: readOnly}, nil
}

// OpenRaw opens the file at path as a disk.
func OpenRaw(path string, readOnly bool) (*Raw, error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	return NewRaw(f, readOnly)
}

// Size implements Backend.
func (r *Raw) Size() int64 { return r.size }

// ReadOnly implements Backend.
func (r *Raw) ReadOnly() bool { return r.readOnly }

// ReadV implements Backend. It goes straight from the page cache to guest memory and may be called concurrently.
func (r *Raw) ReadV(v *Vec, off, n int64) error { return v.readFile(r.file, off, n) }

// WriteV implements Backend.
func (r *Raw) WriteV(v *Vec, off, n int64) error {
	if r.readOnly {
		return ErrReadOnly
	}
	return v.writeFile(r.file, off, n)
}

// Data returns the clusters of the file that are not holes. The last one may reach beyond the disk's end.
func (r *Raw) Data() ([]Extent, error) {
	var out []Extent
	for off := int64(0); off < r.size; {
		data, hole, err := nextData(r.file, off, r.size)
		if err != nil || data == r.size {
			return out, err
		}
		first, end := data/ClusterSize, clusterAfter(hole)
		if n := len(out); n > 0 && first <= out[n-1].First+out[n-1].Count {
			out[n-1].Count = end - out[n-1].First
		} else {
			out = append(out, Extent{First: first, Count: end - first})
		}
		off = hole
	}
	return out, nil
}

// nextData returns the first run of data at or after off; data is size if there is none.
func nextData(f *os.File, off, size int64) (data, hole int64, err error) {
	data, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case err != nil: // a file system that knows no holes
		return off, size, nil
	}
	if hole, err = f.Seek(data, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	return min(data, size), min(hole, size), nil
}

// Flush implements Backend: what was written survives a crash of the host.
func (r *Raw) Flush() error {
	if r.readOnly {
		return nil
	}
	return datasync(r.file)
}

// Discard implements Backend by punching a hole, where the file system can.
func (r *Raw) Discard(off, n int64) error {
	if r.readOnly {
		return ErrReadOnly
	}
	if err := punch(r.file, off, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// WriteZeroes implements Backend.
func (r *Raw) WriteZeroes(off, n int64, unmap bool) error {
	if r.readOnly {
		return ErrReadOnly
	}
	return zeroFile(r.file, off, n, unmap)
}

// Close implements Backend.
func (r *Raw) Close() error { return r.file.Close() }

var zeros [64 << 10]byte

// zeroFile makes a range of f read as zeros, by writing them where the file system knows nothing better.
func zeroFile(f *os.File, off, n int64, unmap bool) error {
	zero := zeroRange
	if unmap {
		zero = punch
	}
	if err := zero(f, off, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	for n > 0 {
		m, err := f.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}
