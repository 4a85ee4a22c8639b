package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CopyExtents copies extents from one file to the same offsets of another, which becomes longer if need be. Where the file system can,
// the files share the blocks; elsewhere the kernel copies, or else this process. Holes stay holes. Nothing is synced.
func CopyExtents(dst, src *os.File, extents []Extent) error {
	c := copier{ctx: context.Background(), dst: dst, src: src}
	st, err := src.Stat()
	if err != nil {
		return fail("", filepath.Base(src.Name()), err)
	}
	for _, e := range extents {
		// What lies behind the end would pass for a hole.
		if e.Off < 0 || e.Len < 0 || e.Len > st.Size() || e.Off > st.Size()-e.Len {
			return &Error{File: filepath.Base(src.Name()), Offset: st.Size(), Err: io.ErrUnexpectedEOF}
		}
		if err := c.copy(e.Off, e.Len); err != nil {
			return fail("", filepath.Base(dst.Name()), err)
		}
	}
	return nil
}

// copier remembers what does not work between two files.
type copier struct {
	ctx              context.Context
	dst, src         *os.File
	noClone, noRange bool
	buf              []byte
}

// copyStep is how much is copied before the context is looked at, in bytes.
const copyStep = 64 << 20

func (c *copier) copy(off, n int64) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.clone(off, n) {
		return nil
	}
	for end := off + n; off < end; {
		start, stop, err := nextData(c.src, off, end)
		if err != nil {
			return err
		}
		if err := c.zero(off, start-off); err != nil {
			return err
		}
		if err := c.copyData(start, stop-start); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

// clone reports whether the files share the range now. A range that is not made of whole blocks cannot be shared though others may.
func (c *copier) clone(off, n int64) bool {
	if c.noClone {
		return false
	}
	err := unix.IoctlFileCloneRange(int(c.dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(c.src.Fd()), Src_offset: uint64(off), Src_length: uint64(n), Dest_offset: uint64(off),
	})
	c.noClone = err != nil && !errors.Is(err, unix.EINVAL)
	return err == nil
}

// zero makes a range read as zeros.
func (c *copier) zero(off, n int64) error {
	if n == 0 {
		return nil
	}
	st, err := c.dst.Stat()
	if err != nil {
		return err
	}
	if st.Size() < off+n {
		if err := c.dst.Truncate(off + n); err != nil {
			return err
		}
		if n = st.Size() - off; n <= 0 {
			return nil
		}
	}
	err = unix.Fallocate(int(c.dst.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return os.NewSyscallError("fallocate", err)
	}
	buf := c.buffer()
	clear(buf)
	for ; n > 0; off, n = off+int64(len(buf)), n-int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n)]
		if _, err := c.dst.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) buffer() []byte {
	if c.buf == nil {
		c.buf = make([]byte, 1<<20)
	}
	return c.buf
}

func (c *copier) copyData(off, n int64) error {
	for n > 0 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		m, err := c.copyRange(off, min(n, copyStep))
		if err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

func (c *copier) copyRange(off, n int64) (int64, error) {
	for !c.noRange {
		from, to := off, off
		m, err := unix.CopyFileRange(int(c.src.Fd()), &from, int(c.dst.Fd()), &to, int(n), 0)
		switch err {
		case nil:
			if m > 0 {
				return int64(m), nil
			}
			// Some file systems copy nothing rather than refuse; reading tells whether the file ends here.
			c.noRange = true
		case unix.EINTR:
		case unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM, unix.EBADF:
			c.noRange = true
		default:
			return 0, &os.PathError{Op: "copy to", Path: c.dst.Name(), Err: err}
		}
	}
	buf := c.buffer()
	buf = buf[:min(int64(len(buf)), n)]
	if err := readFull(c.src, buf, off); err != nil {
		return 0, err
	}
	_, err := c.dst.WriteAt(buf, off)
	return int64(len(buf)), err
}

// piece is an extent of the layer that is the topmost to have it.
type piece struct {
	Extent
	layer int
}

// merge returns the pieces that the layers, the lowest first, have together, in order.
func merge(layers []Layer) []piece {
	var under []piece
	for i, l := range layers {
		next := make([]piece, 0, len(under)+len(l.Extents))
		rest := under
		for _, e := range l.Extents {
			for len(rest) > 0 && rest[0].Off < e.Off {
				p := rest[0]
				if end := p.Off + p.Len; end > e.Off {
					next = append(next, piece{Extent{Off: p.Off, Len: e.Off - p.Off}, p.layer})
					rest[0].Off, rest[0].Len = e.Off, end-e.Off
					break
				}
				next, rest = append(next, p), rest[1:]
			}
			next = append(next, piece{e, i})
			for end := e.Off + e.Len; len(rest) > 0 && rest[0].Off < end; {
				if hidden := end - rest[0].Off; hidden < rest[0].Len {
					rest[0].Off, rest[0].Len = end, rest[0].Len-hidden
					break
				}
				rest = rest[1:]
			}
		}
		under = append(next, rest...)
	}
	return under
}

// flattenInto copies the merged layers to dst and returns its extents.
func flattenInto(ctx context.Context, dst *os.File, layers []Layer) ([]Extent, error) {
	copiers := make([]copier, len(layers))
	for i, l := range layers {
		copiers[i] = copier{ctx: ctx, dst: dst, src: l.File}
	}
	var extents []Extent
	for _, p := range merge(layers) {
		if err := copiers[p.layer].copy(p.Off, p.Len); err != nil {
			return nil, err
		}
		if n := len(extents); n > 0 && extents[n-1].Off+extents[n-1].Len == p.Off {
			extents[n-1].Len += p.Len
		} else {
			extents = append(extents, p.Extent)
		}
	}
	return extents, nil
}

// Flatten makes of a snapshot another, newID, that has the same content and no base. It fails with ErrExists if there is one with that id.
// What is copied is verified first, so that damage does not get new checksums.
func (s *Store) Flatten(ctx context.Context, id, newID string) error {
	w, err := s.Create(ctx, newID)
	if err != nil {
		return err
	}
	defer w.Abort()
	snap, err := s.Load(id, LoadOptions{Verify: VerifyAlways})
	if err != nil {
		return err
	}
	defer snap.Close()
	m := snap.Manifest
	c := Contents{
		Name: m.Name, Fingerprint: m.Fingerprint, CPU: m.CPU, Regions: m.Memory.Regions, DiskSize: m.Disk.Size, ClusterSize: m.Disk.ClusterSize,
		State: snap.State, WorkingSet: snap.WorkingSet, Meta: m.Meta,
	}
	if c.MemoryExtents, err = flattenInto(ctx, w.MemoryFile(), snap.Memory); err == nil {
		c.DiskExtents, err = flattenInto(ctx, w.DiskFile(), snap.Disk)
	}
	var own *Error
	if errors.As(err, &own) {
		return readError(id, err) // only reading says at what offset it failed
	} else if err != nil {
		return fail(newID, "", err)
	}
	return w.Commit(ctx, c)
}
