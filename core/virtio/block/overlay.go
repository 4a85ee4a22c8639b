package block

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
)

// ClusterSize is the unit of copy-on-write. It is the page and block size of guests and of host file systems, so that ordinary
// writes never copy anything from the base, and its map costs one bit: 32 KiB for each GiB of disk.
const ClusterSize = 4096

// MaxOverlaySize bounds an overlay's size in bytes, and with it the map at 128 MiB.
const MaxOverlaySize = 4 << 40

// Overlay is a copy-on-write disk: clusters never written read as the base does, the others are in a sparse file at their own
// offset. Many overlays may share one base. It is not safe for concurrent use, except that reading is while nobody writes: an
// overlay that is complete can be the base of others.
//
// The map is in memory only, so an overlay does not outlive its process unless State is kept with the file; Flush therefore
// does not wait for the host's disk.
type Overlay struct {
	base    Backend // may be nil: zeros
	file    *os.File
	size    int64
	written []uint64 // bit per cluster: 1 = in file
	patch   [ClusterSize]byte
	patchV  Vec
}

// OverlayState is the map of an overlay, plain data for a snapshot to keep beside a copy of File's content.
type OverlayState struct {
	Size        int64    // of the disk, bytes
	ClusterSize int64    // bytes
	Written     []Extent // ascending, not touching
}

// Extent is a run of clusters.
type Extent struct {
	First, Count int64
}

// NewOverlay returns a disk of size bytes in which nothing was written yet. Where base (which may be nil) is shorter, it goes on
// with zeros. file must be empty; it belongs to the overlay from now on, even after an error, and so does not base. TempFile makes one.
func NewOverlay(base Backend, size int64, file *os.File) (*Overlay, error) {
	o, err := newOverlay(base, size, file)
	if err == nil {
		err = file.Truncate(roundUp(size))
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("overlay disk: %w", err)
	}
	return o, nil
}

// RestoreOverlay returns the disk that had the given state, with file holding what File held then. Ownership is as in NewOverlay.
// The state is checked, and may come from a hostile file.
func RestoreOverlay(base Backend, s OverlayState, file *os.File) (*Overlay, error) {
	o, err := newOverlay(base, s.Size, file)
	if err == nil {
		err = o.load(s)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("restore overlay disk: %w", err)
	}
	return o, nil
}

func newOverlay(base Backend, size int64, file *os.File) (*Overlay, error) {
	if err := checkSize(file.Name(), size); err != nil {
		return nil, err
	}
	if size > MaxOverlaySize {
		return nil, fmt.Errorf("size %d is beyond %d", size, int64(MaxOverlaySize))
	}
	clusters := roundUp(size) / ClusterSize
	return &Overlay{base: base, file: file, size: size, written: make([]uint64, (clusters+63)/64)}, nil
}

func (o *Overlay) load(s OverlayState) error {
	if s.ClusterSize != ClusterSize {
		return fmt.Errorf("clusters of %d bytes", s.ClusterSize)
	}
	if st, err := o.file.Stat(); err != nil {
		return err
	} else if st.Size() < roundUp(s.Size) {
		return fmt.Errorf("data file has %d bytes instead of %d", st.Size(), roundUp(s.Size))
	}
	clusters := roundUp(s.Size) / ClusterSize
	var next int64
	for _, e := range s.Written {
		if e.Count <= 0 || e.First < next || e.First > clusters || e.Count > clusters-e.First {
			return fmt.Errorf("extent %+v in a map of %d clusters", e, clusters)
		}
		o.mark(e.First, e.First+e.Count)
		next = e.First + e.Count
	}
	return nil
}

// TempFile returns an empty file in dir (the system's temporary directory if empty) that has no name any more, so that it is
// gone with its last descriptor, however the process ends.
func TempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "overlay-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// State returns the map. The file's content is not part of it.
func (o *Overlay) State() OverlayState {
	s := OverlayState{Size: o.size, ClusterSize: ClusterSize}
	clusters := roundUp(o.size) / ClusterSize
	for first := int64(0); first < clusters; {
		end, written := o.run(first, clusters)
		if written {
			s.Written = append(s.Written, Extent{First: first, Count: end - first})
		}
		first = end
	}
	return s
}

// File returns the sparse file that holds the written clusters, each at its own offset. It remains the overlay's.
func (o *Overlay) File() *os.File { return o.file }

// Size implements Backend.
func (o *Overlay) Size() int64 { return o.size }

// ReadOnly implements Backend.
func (o *Overlay) ReadOnly() bool { return false }

// ReadV implements Backend.
func (o *Overlay) ReadV(v *Vec, off, n int64) error {
	for n > 0 {
		end, written := o.run(off/ClusterSize, clusterAfter(off+n))
		m := min(n, end*ClusterSize-off)
		var err error
		if written {
			err = v.readFile(o.file, off, m)
		} else {
			err = o.readBase(v, off, m)
		}
		if err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

func (o *Overlay) readBase(v *Vec, off, n int64) error {
	var have int64
	if o.base != nil {
		have = max(0, min(n, o.base.Size()-off))
	}
	if have > 0 {
		if err := o.base.ReadV(v, off, have); err != nil {
			return err
		}
	}
	v.Zero(n - have)
	return nil
}

// WriteV implements Backend. The clusters count as written only after all of the data is in the file.
func (o *Overlay) WriteV(v *Vec, off, n int64) error {
	if n == 0 {
		return nil
	}
	if err := o.copyUp(off, n); err != nil {
		return err
	}
	if err := v.writeFile(o.file, off, n); err != nil {
		return err
	}
	o.mark(off/ClusterSize, clusterAfter(off+n))
	return nil
}

// copyUp copies to the file what lies before and after the range in its first and last cluster, where these come from the base.
func (o *Overlay) copyUp(off, n int64) error {
	first, last := off/ClusterSize, (off+n-1)/ClusterSize
	if head := first * ClusterSize; head < off && !o.isWritten(first) {
		if err := o.copyBase(head, off-head); err != nil {
			return err
		}
	}
	if tail := min((last+1)*ClusterSize, o.size); off+n < tail && !o.isWritten(last) {
		return o.copyBase(off+n, tail-(off+n))
	}
	return nil
}

func (o *Overlay) copyBase(off, n int64) error {
	o.patchV.Reset(o.patch[:n])
	if err := o.readBase(&o.patchV, off, n); err != nil {
		return err
	}
	_, err := o.file.WriteAt(o.patch[:n], off)
	return err
}

// Split makes what was written so far a disk of its own, which is only read from now on and is the base of this one. It costs no copying,
// however much was written. file must be empty and becomes this overlay's; Close of the returned disk is the caller's, once nobody reads it.
// Nobody may use the overlay meanwhile.
func (o *Overlay) Split(file *os.File) (*Overlay, error) {
	top, err := NewOverlay(nil, o.size, file)
	if err != nil {
		return nil, err
	}
	lower := &Overlay{base: o.base, file: o.file, size: o.size, written: o.written}
	o.base, o.file, o.written = lower, top.file, top.written
	return lower, nil
}

// Rebase puts the overlay over another base, which must read as the present one does. Nobody may use the overlay meanwhile.
func (o *Overlay) Rebase(base Backend) { o.base = base }

// Clear forgets everything that was written: the disk reads as its base again. Nobody may use the overlay meanwhile.
func (o *Overlay) Clear() error {
	if err := o.file.Truncate(0); err != nil {
		return err
	}
	clear(o.written)
	return o.file.Truncate(roundUp(o.size))
}

// Flush implements Backend; see Overlay.
func (o *Overlay) Flush() error { return nil }

// Discard implements Backend: the space of written clusters is given back, and they read as zeros.
func (o *Overlay) Discard(off, n int64) error {
	first, end := (off+ClusterSize-1)/ClusterSize, (off+n)/ClusterSize
	if off+n == o.size {
		end = clusterAfter(o.size)
	}
	for first < end {
		next, written := o.run(first, end)
		if written {
			err := punch(o.file, first*ClusterSize, (next-first)*ClusterSize)
			if errors.Is(err, errors.ErrUnsupported) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		first = next
	}
	return nil
}

// WriteZeroes implements Backend. The file is sparse anyway, so the space is given back whatever unmap says.
func (o *Overlay) WriteZeroes(off, n int64, _ bool) error {
	if n == 0 {
		return nil
	}
	if err := o.copyUp(off, n); err != nil {
		return err
	}
	if err := zeroFile(o.file, off, n, true); err != nil {
		return err
	}
	o.mark(off/ClusterSize, clusterAfter(off+n))
	return nil
}

// Close implements Backend. The base stays open.
func (o *Overlay) Close() error { return o.file.Close() }

func roundUp(n int64) int64 { return clusterAfter(n) * ClusterSize }

// clusterAfter returns the first cluster that begins at or after off.
func clusterAfter(off int64) int64 { return (off + ClusterSize - 1) / ClusterSize }

func (o *Overlay) isWritten(c int64) bool { return o.written[c/64]>>(c%64)&1 != 0 }

// mark sets the clusters [first, end) to written.
func (o *Overlay) mark(first, end int64) {
	for c := first; c < end; {
		n := min(64-c%64, end-c)
		o.written[c/64] |= (^uint64(0) >> (64 - n)) << (c % 64)
		c += n
	}
}

// run returns the end, up to limit, of the run of clusters from first on that are all written or all not written.
func (o *Overlay) run(first, limit int64) (end int64, written bool) {
	written = o.isWritten(first)
	for c := first; c < limit; {
		w := o.written[c/64]
		if written {
			w = ^w
		}
		if w >>= c % 64; w != 0 {
			return min(limit, c+int64(bits.TrailingZeros64(w))), written
		}
		c += 64 - c%64
	}
	return limit, written
}
