package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/snapshot/memory"
)

// Verify says when the checksums of memory and disk are compared, which reads all of them. The state's always is.
type Verify int

const (
	// VerifyOnce compares unless it is known, from this process or a mark in the store, that these very files were verified and
	// have not been written since.
	VerifyOnce Verify = iota
	// VerifyAlways compares, as for a disk that is suspected of losing bits.
	VerifyAlways
	// VerifyNever trusts the files.
	VerifyNever
)

// LoadOptions says how to load a snapshot. Its zero value is what most want.
type LoadOptions struct {
	Verify Verify
}

// touchSpan is how old the note of the last use gets before Load renews it, so that not every restore writes.
const touchSpan = time.Minute

// Snapshot is a snapshot with its files open. It stays as it is, whatever becomes of it in the store. Its fields are for reading only.
type Snapshot struct {
	Manifest   *Manifest
	State      []byte
	WorkingSet []byte // nil if there is none
	// Memory holds the layers of the memory, the lowest first: the extents of each replace what those below have. A page that
	// none has is zero. The files have the size of the memory and are open for reading; they are the Snapshot's until Image.
	Memory []Layer
	// Disk holds the layers of the disk in the same way; there are none without a disk. A cluster that none has is the user's matter.
	Disk []Layer

	memoryTaken bool
}

// Image returns the memory as an image, to which the files in Memory belong from now on. It can be called once.
func (s *Snapshot) Image() (*memory.Image, error) {
	if s.memoryTaken {
		return nil, invalid(s.Manifest.ID, "the memory's files have been given away or closed")
	}
	sizes := make([]int64, 0, len(s.Manifest.Memory.Regions))
	for _, r := range s.Manifest.Memory.Regions {
		sizes = append(sizes, r.Size)
	}
	image, err := memory.NewImage(sizes, s.Memory...)
	s.memoryTaken = err == nil
	return image, fail(s.Manifest.ID, memoryFile, err)
}

// Close closes the files that are the Snapshot's. Mappings of them remain valid.
func (s *Snapshot) Close() error {
	var errs []error
	if !s.memoryTaken {
		for _, l := range s.Memory {
			errs = append(errs, l.File.Close())
		}
	}
	for _, l := range s.Disk {
		errs = append(errs, l.File.Close())
	}
	s.memoryTaken, s.Disk = true, nil
	return errors.Join(errs...)
}

// part is one snapshot of a chain, open.
type part struct {
	id                  string
	dir                 os.FileInfo // names the directory
	manifest            *Manifest
	sum                 string // of the manifest
	state, memory, disk *os.File
	identity, mark      string
	workingSet          []byte // of the first part only
}

func (p *part) close() {
	for _, f := range []*os.File{p.state, p.memory, p.disk} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Load opens a snapshot and all those below it, and checks them. The Snapshot must be closed.
func (s *Store) Load(id string, o LoadOptions) (*Snapshot, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if o.Verify < VerifyOnce || o.Verify > VerifyNever {
		return nil, invalid(id, "verify is %d", o.Verify)
	}
	parts, err := s.openChain(id)
	var state []byte
	if err == nil {
		state, err = s.checkChain(parts, o.Verify)
	}
	if err != nil {
		for _, p := range parts {
			p.close()
		}
		return nil, fail(id, "", err)
	}
	top := parts[0]
	snap := &Snapshot{Manifest: top.manifest, State: state, WorkingSet: top.workingSet}
	for _, p := range slices.Backward(parts) {
		_ = p.state.Close()
		snap.Memory = append(snap.Memory, Layer{File: p.memory, Extents: p.manifest.Memory.Extents})
		if p.manifest.Disk.Size > 0 {
			snap.Disk = append(snap.Disk, Layer{File: p.disk, Extents: p.manifest.Disk.Extents})
		} else {
			_ = p.disk.Close()
		}
	}
	return snap, nil
}

// openChain opens a snapshot and those below it, from the top down. The parts belong to the caller, also after an error.
func (s *Store) openChain(id string) (parts []*part, err error) {
	for next := id; next != ""; {
		if slices.ContainsFunc(parts, func(p *part) bool { return p.id == next }) {
			return parts, corrupt(id, manifestFile, "snapshot %q is below itself", next)
		}
		if len(parts) == MaxChain {
			return parts, corrupt(id, manifestFile, "more than %d snapshots on each other", MaxChain)
		}
		p, err := s.openPart(next, len(parts) == 0)
		if err != nil {
			if len(parts) > 0 && errors.Is(err, ErrNotFound) {
				err = s.lostBase(parts, next)
			}
			return parts, err
		}
		parts = append(parts, p)
		if n := len(parts) - 2; n >= 0 {
			above := parts[n]
			if p.sum != above.manifest.BaseManifest {
				return parts, corrupt(above.id, manifestFile, "base %q is another snapshot than it was", next)
			}
			if err := above.manifest.fits(p.manifest); err != nil {
				return parts, corrupt(above.id, manifestFile, "%v", err)
			}
		}
		next = p.manifest.Base
	}
	return parts, nil
}

// lostBase returns why a base is not there: bases go after what is on them, so by now that is removed as well, or else somebody
// meddled with the store.
func (s *Store) lostBase(parts []*part, base string) error {
	top, above := parts[0], parts[len(parts)-1]
	now, err := os.Lstat(s.path(top.id))
	if err != nil || !os.SameFile(now, top.dir) {
		return &Error{ID: top.id, Offset: -1, Err: ErrNotFound}
	}
	return corrupt(above.id, manifestFile, "base %q is missing", base)
}

func (s *Store) openPart(id string, first bool) (_ *part, err error) {
	d, err := s.enter(id)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	p := &part{id: id}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.dir, err = d.Stat(); err != nil {
		return nil, err
	}
	m, sum, st, err := d.manifest()
	if err != nil {
		return nil, err
	}
	if m.Arch != runtime.GOARCH {
		return nil, &Error{ID: id, File: manifestFile, Offset: -1, Reason: m.Arch + " instead of " + runtime.GOARCH, Err: ErrArch}
	}
	p.manifest, p.sum = m, sum
	p.identity = identity(manifestFile, &st)
	for _, f := range []struct {
		to   **os.File
		name string
		size int64
	}{
		{&p.state, stateFile, m.State.Length}, {&p.memory, memoryFile, m.Memory.Size()}, {&p.disk, diskFile, m.Disk.fileSize()},
	} {
		if *f.to, st, err = d.openSized(f.name, f.size); err != nil {
			return nil, err
		}
		p.identity += identity(f.name, &st)
	}
	p.mark = d.mark()
	if first {
		p.workingSet = d.workingSet()
		_ = d.touch(touchSpan) // a store that cannot be written can be used
	}
	return p, nil
}

// checkChain verifies all parts and returns the state of the first.
func (s *Store) checkChain(parts []*part, when Verify) (state []byte, err error) {
	for i, p := range parts {
		if i == 0 {
			if state, err = p.readState(); err != nil {
				return nil, err
			}
		}
		if err := s.verify(p, when); err != nil {
			return nil, err
		}
	}
	return state, nil
}

func (p *part) readState() ([]byte, error) {
	b := make([]byte, p.manifest.State.Length)
	if err := readFull(p.state, b, 0); err != nil {
		return nil, readError(p.id, err)
	}
	if got, want := checksum(b), p.manifest.State.Checksum[0]; got != want {
		return nil, &Error{ID: p.id, File: stateFile, Offset: 0, Reason: mismatch(int64(len(b)), got, want), Err: ErrCorrupt}
	}
	return b, nil
}

// verify compares the files with the manifest, unless that was done before.
func (s *Store) verify(p *part, when Verify) error {
	if when == VerifyNever {
		return nil
	}
	if when == VerifyOnce && p.mark == p.identity {
		return nil
	}
	s.verifying.Lock()
	defer s.verifying.Unlock()
	if when == VerifyOnce && s.isVerified(p.identity) {
		return nil
	}
	err := p.verify()
	if err == nil {
		err = p.checkUnchanged()
	}
	if err != nil {
		if errors.Is(err, ErrCorrupt) {
			s.forget(p.identity)
			s.keepMark(p, "")
		}
		return err
	}
	s.remember(p.identity)
	if p.mark != p.identity {
		s.keepMark(p, p.identity)
	}
	return nil
}

func (p *part) verify() error {
	if _, err := p.readState(); err != nil {
		return err
	}
	ram, disk := &p.manifest.Memory, &p.manifest.Disk
	if err := p.verifyFile(memoryFile, p.memory, ram.Extents, ram.Checksums); err != nil {
		return err
	}
	off, err := strayData(context.Background(), p.memory, ram.Extents)
	if err != nil {
		return readError(p.id, err)
	}
	if off >= 0 {
		return &Error{ID: p.id, File: memoryFile, Offset: off, Reason: "data outside of the extents", Err: ErrCorrupt}
	}
	return p.verifyFile(diskFile, p.disk, disk.Extents, disk.Checksums)
}

func (p *part) verifyFile(name string, f *os.File, extents []Extent, want Checksums) error {
	got, err := checksums(context.Background(), f, extents)
	if err != nil {
		return readError(p.id, err)
	}
	if off, reason := compare(extents, got, want); reason != "" {
		return &Error{ID: p.id, File: name, Offset: off, Reason: reason, Err: ErrCorrupt}
	}
	return nil
}

// checkUnchanged fails if a file was written while it was read: what was verified is not what is there now.
func (p *part) checkUnchanged() error {
	for _, f := range []*os.File{p.state, p.memory, p.disk} {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		name := filepath.Base(f.Name())
		if st.Nlink == 0 {
			continue // removed meanwhile, which is a change of the file, too, and nobody can open it any more
		}
		if !strings.Contains(p.identity, identity(name, &st)) {
			return corrupt(p.id, name, "file changed while it was verified")
		}
	}
	return nil
}

// keepMark leaves word for other processes of how a verification went. It need not succeed.
func (s *Store) keepMark(p *part, mark string) {
	d, err := s.enter(p.id)
	if err != nil {
		return
	}
	defer d.Close()
	if now, err := d.Stat(); err == nil && os.SameFile(now, p.dir) {
		_ = d.setMark(mark)
	}
}
