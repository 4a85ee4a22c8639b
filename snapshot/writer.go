package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Writer makes a snapshot. Until Commit nothing of it is to be seen, and if the process dies the next one that makes, lists or
// removes snapshots cleans up. It is not safe for concurrent use.
type Writer struct {
	store   *Store
	dir     *dir // locked, which says that the writer lives
	path    string
	memory  *os.File
	disk    *os.File
	base    *Manifest // nil for a full snapshot
	baseSum string
	done    bool
}

// Contents is what a Writer does not find in its files.
type Contents struct {
	Name          string    // for people; may be empty
	Fingerprint   string    // of what the snapshot was made from; may be empty
	Created       time.Time // now if zero
	CPU           CPU
	Regions       []Region // of memory, ascending
	MemoryExtents []Extent // of MemoryFile, ascending; all other bytes of it must be zero
	DiskSize      int64    // bytes; 0 if there is no disk
	ClusterSize   int64    // of the disk, bytes
	DiskExtents   []Extent // of DiskFile, whole clusters, ascending
	State         []byte
	WorkingSet    []byte          // nil if there is none
	Meta          json.RawMessage // nil if there is none
}

// Create begins a full snapshot. It fails with ErrExists if the store has one with this id. The Writer must be committed or aborted.
func (s *Store) Create(ctx context.Context, id string) (*Writer, error) {
	return s.CreateDiff(ctx, id, "")
}

// CreateDiff begins a snapshot of what differs from another. The base cannot be removed from now on. An empty base means none.
func (s *Store) CreateDiff(ctx context.Context, id, base string) (*Writer, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if base != "" && (checkID(base) != nil || base == id) {
		return nil, invalid(id, "base %.100q", base)
	}
	s.sweep()
	if _, err := os.Lstat(s.path(id)); err == nil {
		return nil, &Error{ID: id, Offset: -1, Err: ErrExists}
	}
	// Locked so that the base does not go between our look at it and our claim.
	unlock, err := s.lockStore(ctx, unix.LOCK_SH)
	if err != nil {
		return nil, fail(id, "", err)
	}
	defer unlock()
	w := &Writer{store: s}
	if err := w.open(id, base); err != nil {
		w.Abort()
		return nil, fail(id, "", err)
	}
	return w, nil
}

func (w *Writer) open(id, base string) (err error) {
	if base != "" {
		if w.base, w.baseSum, err = w.store.baseFor(id, base); err != nil {
			return err
		}
	}
	for w.dir == nil {
		path := w.store.path(randomName(tempPrefix, id))
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		f, err := openDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // swept before it was locked
		}
		if err != nil {
			_ = os.Remove(path)
			return err
		}
		got, err := tryFlock(f, unix.LOCK_EX)
		if err == nil && got && isAt(f, path) {
			w.dir, w.path = &dir{File: f, id: id}, path
			break
		}
		_ = f.Close()
		if err != nil {
			_ = os.Remove(path)
			return err
		}
	}
	if w.memory, err = w.dir.create(memoryFile); err != nil {
		return err
	}
	if w.disk, err = w.dir.create(diskFile); err != nil {
		return err
	}
	if base != "" {
		return w.write(pinFile, []byte(base), false)
	}
	return nil
}

// baseFor returns the manifest, and its checksum, of a snapshot that is to be the base of another.
func (s *Store) baseFor(id, base string) (first *Manifest, firstSum string, err error) {
	for depth := 1; base != ""; depth++ {
		if depth == MaxChain {
			return nil, "", invalid(id, "more than %d snapshots on each other; flatten the base first", MaxChain)
		}
		d, err := s.enter(base)
		if err != nil {
			return nil, "", err
		}
		m, sum, _, err := d.manifest()
		_ = d.Close()
		if err != nil {
			return nil, "", err
		}
		if first == nil {
			first, firstSum = m, sum
		}
		base = m.Base
	}
	return first, firstSum, nil
}

// MemoryFile returns the empty file to fill with memory. It remains the Writer's and must not be written any more once Commit is called.
func (w *Writer) MemoryFile() *os.File { return w.memory }

// DiskFile returns the empty file to fill with the disk's clusters, as MemoryFile does.
func (w *Writer) DiskFile() *os.File { return w.disk }

// ID returns the id of the snapshot.
func (w *Writer) ID() string { return w.dir.id }

// Commit puts the snapshot in the store, on disk, for good. If somebody else was first with this id, the error is an ErrExists and
// theirs stays. Whatever it returns, the Writer is finished, and after an error nothing of it is left.
func (w *Writer) Commit(ctx context.Context, c Contents) error {
	if w.done {
		return invalid(w.dir.id, "the writer has finished")
	}
	defer w.Abort()
	return fail(w.dir.id, "", w.commit(ctx, c))
}

func (w *Writer) commit(ctx context.Context, c Contents) error {
	m, err := w.manifest(ctx, c)
	if err != nil {
		return err
	}
	body, err := json.Marshal(m)
	if err != nil {
		return invalid(m.ID, "meta: %v", err)
	}
	if len(body) > MaxManifest-sealLimit {
		return invalid(m.ID, "manifest of %d bytes, at most %d are possible", len(body), MaxManifest)
	}
	// The data first: what the mark vouches for must be on disk before it.
	if err := together(w.memory.Sync, w.disk.Sync, func() error { return w.write(stateFile, c.State, true) }); err != nil {
		return err
	}
	if err := w.write(manifestFile, seal(manifestKind, Version, body), true); err != nil {
		return err
	}
	if c.WorkingSet != nil {
		if err := w.write(workingSetFile, seal(workingSetKind, 1, c.WorkingSet), true); err != nil {
			return err
		}
	}
	if err := w.write(usedFile, nil, false); err != nil {
		return err
	}
	mark, err := w.identity()
	if err != nil {
		return err
	}
	if err := w.write(verifiedFile, seal(verifiedKind, 1, []byte(mark)), false); err != nil {
		return err
	}
	if err := w.dir.Sync(); err != nil {
		return err
	}
	if err := w.publish(ctx); err != nil {
		return err
	}
	w.store.remember(mark)
	return nil
}

// manifest checks what there is and computes the checksums.
func (w *Writer) manifest(ctx context.Context, c Contents) (*Manifest, error) {
	m := &Manifest{
		ID: w.dir.id, Version: Version, Created: c.Created, Arch: runtime.GOARCH, CPU: c.CPU, Fingerprint: c.Fingerprint, Name: c.Name,
		PageSize: PageSize, Memory: Memory{Regions: c.Regions, Extents: c.MemoryExtents},
		Disk:  Disk{Size: c.DiskSize, ClusterSize: c.ClusterSize, Extents: c.DiskExtents},
		State: State{Length: int64(len(c.State)), Checksum: Checksums{checksum(c.State)}}, Meta: c.Meta,
	}
	if m.Created.IsZero() {
		m.Created = time.Now()
	}
	m.Created = m.Created.UTC().Round(0)
	if w.base != nil {
		m.Base, m.BaseManifest = w.base.ID, w.baseSum
		if err := m.fits(w.base); err != nil {
			return nil, invalid(m.ID, "%v", err)
		}
	}
	if len(c.WorkingSet) > MaxWorkingSet {
		return nil, invalid(m.ID, "working set of %d bytes, at most %d are possible", len(c.WorkingSet), MaxWorkingSet)
	}
	if err := m.checkAllButSums(); err != nil {
		return nil, invalid(m.ID, "%v", err)
	}
	if err := resize(w.memory, m.Memory.Size()); err != nil {
		return nil, err
	}
	if err := resize(w.disk, m.Disk.fileSize()); err != nil {
		return nil, err
	}
	if off, err := strayData(ctx, w.memory, c.MemoryExtents); err != nil {
		return nil, err
	} else if off >= 0 {
		return nil, &Error{ID: m.ID, File: memoryFile, Offset: off, Reason: "data outside of the extents", Err: ErrInvalid}
	}
	var err error
	if m.Memory.Checksums, err = checksums(ctx, w.memory, c.MemoryExtents); err != nil {
		return nil, err
	}
	m.Disk.Checksums, err = checksums(ctx, w.disk, c.DiskExtents)
	return m, err
}

// resize lengthens a file to its size. One that is longer was not filled for what the manifest says.
func resize(f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > size {
		return fmt.Errorf("%s has %d bytes, more than %d: %w", f.Name(), st.Size(), size, ErrInvalid)
	}
	return f.Truncate(size)
}

// write makes a file in the directory of the writer.
func (w *Writer) write(name string, data []byte, sync bool) error {
	f, err := w.dir.create(name)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (w *Writer) identity() (string, error) {
	var all string
	for _, name := range []string{manifestFile, stateFile, memoryFile, diskFile} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(w.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", &os.PathError{Op: "stat", Path: w.path + "/" + name, Err: err}
		}
		all += identity(name, &st)
	}
	return all, nil
}

// publish gives the directory its final name.
func (w *Writer) publish(ctx context.Context) error {
	s := w.store
	// Who removes snapshots must see either our claim to the base or our manifest.
	unlock, err := s.lockStore(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	if w.base != nil {
		err = unix.Unlinkat(int(w.dir.Fd()), pinFile, 0)
	}
	if err == nil {
		err = os.Rename(w.path, s.path(w.dir.id))
	}
	unlock()
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) {
		return &Error{ID: w.dir.id, Offset: -1, Err: ErrExists}
	}
	if err != nil {
		return err
	}
	w.path = ""
	w.close()
	if err = syncDir(s.dir); err != nil {
		// It may be gone after a power failure. An error must mean that it is.
		if trash, err := s.rename(w.dir.id); err == nil {
			_ = os.RemoveAll(trash)
		}
	}
	return err
}

// Abort drops the snapshot. After Commit it does nothing, so that it can be deferred.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	if w.path != "" {
		_ = os.RemoveAll(w.path)
	}
	w.close()
}

func (w *Writer) close() {
	w.done = true
	for _, f := range []*os.File{w.memory, w.disk} {
		if f != nil {
			_ = f.Close()
		}
	}
	if w.dir != nil {
		_ = w.dir.Close()
	}
}

// together runs functions at the same time.
func together(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
