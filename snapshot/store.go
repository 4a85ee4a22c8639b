package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Store is a directory of snapshots. Any number of Stores, in any number of processes, may share one directory; all methods are
// safe for concurrent use. A Store needs no closing.
type Store struct {
	dir string

	verifying sync.Mutex // one verification at a time: it uses all CPUs, and who waits may find it done
	mu        sync.Mutex
	verified  map[string]bool // identities of files that were verified by this process
}

// Names that begin like this are not ids.
const (
	tempPrefix  = ".tmp-"   // the directory of a Writer, which holds its lock
	trashPrefix = ".trash-" // a directory being removed
	pinFile     = "base"    // in a Writer's directory: the id of the snapshot that must stay meanwhile
)

// Open opens a store, making its directory if there is none. It does not look at what is in it.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(filepath.Join(abs, locksDir), 0o700)
	}
	if err != nil {
		return nil, fail("", "", err)
	}
	return &Store{dir: abs, verified: map[string]bool{}}, nil
}

// Dir returns the store's directory, an absolute path.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// randomName returns a name in the store that is not in use.
func randomName(prefix, id string) string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return prefix + id + "-" + hex.EncodeToString(b[:])
}

// sweep removes what was left by those who were killed: what it can lock has no owner any more. Failures do not matter, as the
// next sweep tries again.
func (s *Store) sweep() {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) || strings.HasPrefix(e.Name(), trashPrefix) {
			s.sweepDir(s.path(e.Name()))
		}
	}
	s.sweepLocks()
}

func (s *Store) sweepDir(path string) {
	f, err := openDir(path)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			_ = os.Remove(path)
		}
		return
	}
	defer f.Close()
	// A writer may have given it its final name since it was opened.
	if got, _ := tryFlock(f, unix.LOCK_EX); got && isAt(f, path) {
		_ = os.RemoveAll(path)
	}
}

// ids returns the names in the store that are ids, and the names of the directories of writers.
func (s *Store) ids() (ids, temps []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			temps = append(temps, e.Name())
		} else if checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, temps, nil
}

// manifest reads a snapshot's manifest. The error of an unknown version comes with a manifest that has what all versions have.
func (d *dir) manifest() (*Manifest, string, unix.Stat_t, error) {
	data, st, err := d.read(manifestFile, MaxManifest)
	if err != nil {
		return nil, "", st, err
	}
	m, sum, err := parseManifest(d.id, data)
	return m, sum, st, err
}

// users returns for each id what has it as its base. The store must be locked, or the answer may be old.
func (s *Store) users() (map[string][]string, error) {
	ids, temps, err := s.ids()
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, id := range ids {
		base, err := s.baseOf(id)
		if err != nil {
			return nil, err
		}
		users[base] = append(users[base], id)
	}
	for _, temp := range temps {
		if base, err := os.ReadFile(s.path(temp, pinFile)); err == nil {
			users[string(base)] = append(users[string(base)], "one that is being made")
		}
	}
	delete(users, "")
	return users, nil
}

// baseOf returns the base of a snapshot, none of one that is broken: nothing can load it. That it cannot be read now, as in a
// process without free descriptors, is another matter.
func (s *Store) baseOf(id string) (string, error) {
	d, err := s.enter(id)
	if err == nil {
		defer d.Close()
		var m *Manifest
		m, _, _, err = d.manifest()
		if m != nil {
			return m.Base, nil
		}
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
		err = nil
	}
	return "", err
}

// Remove takes a snapshot out of the store. It fails with ErrInUse while others, finished or in the making, have it as their base.
// Who has loaded it is not disturbed.
func (s *Store) Remove(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	s.sweep()
	unlock, err := s.lockStore(ctx, unix.LOCK_EX)
	if err != nil {
		return fail(id, "", err)
	}
	trash, err := s.discard(id)
	unlock()
	if err != nil {
		return fail(id, "", err)
	}
	s.empty(ctx, trash)
	return nil
}

// discard renames a snapshot so that it is gone. The store must be locked.
func (s *Store) discard(id string) (trash string, err error) {
	users, err := s.users()
	if err != nil {
		return "", err
	}
	if list := users[id]; len(list) > 0 {
		slices.Sort(list)
		return "", &Error{ID: id, Offset: -1, Reason: "base of " + strings.Join(list[:min(len(list), 5)], ", "), Err: ErrInUse}
	}
	if trash, err = s.rename(id); err != nil {
		return "", err
	}
	return trash, syncDir(s.dir)
}

func (s *Store) rename(id string) (trash string, err error) {
	trash = s.path(randomName(trashPrefix, id))
	err = os.Rename(s.path(id), trash)
	if errors.Is(err, fs.ErrNotExist) {
		err = &Error{ID: id, Offset: -1, Err: ErrNotFound}
	}
	return trash, err
}

// empty deletes a renamed snapshot once those who are just loading it have its files open. What it does not get done is the next
// sweep's.
func (s *Store) empty(ctx context.Context, trash string) {
	f, err := openDir(trash)
	if err != nil {
		_ = os.Remove(trash) // no directory, so never a snapshot
		return
	}
	defer f.Close()
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) { return tryFlock(f, unix.LOCK_EX) })
	if err == nil {
		_ = os.RemoveAll(trash)
	}
}

// syncDir makes renames in a directory last.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// maxVerified bounds what a process remembers of verified files.
const maxVerified = 4096

func (s *Store) remember(identity string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.verified) >= maxVerified {
		clear(s.verified)
	}
	s.verified[identity] = true
}

func (s *Store) forget(identity string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.verified, identity)
}

func (s *Store) isVerified(identity string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verified[identity]
}

// Touch notes that a snapshot is used now; see Info.LastUsed.
func (s *Store) Touch(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	d, err := s.enter(id)
	if err != nil {
		return err
	}
	defer d.Close()
	return fail(id, usedFile, d.touch(0))
}

const workingSetKind = "supermachine-working-set"

// SetWorkingSet keeps data, of at most MaxWorkingSet bytes, beside a snapshot, in place of what was there. It is the only thing that
// can change of a snapshot.
func (s *Store) SetWorkingSet(id string, data []byte) error {
	if err := checkID(id); err != nil {
		return err
	}
	if len(data) > MaxWorkingSet {
		return invalid(id, "working set of %d bytes, at most %d are possible", len(data), MaxWorkingSet)
	}
	d, err := s.enter(id)
	if err != nil {
		return err
	}
	defer d.Close()
	return fail(id, workingSetFile, d.replace(workingSetFile, seal(workingSetKind, 1, data)))
}

// workingSet returns nil if there is none that is whole.
func (d *dir) workingSet() []byte {
	data, _, err := d.read(workingSetFile, MaxWorkingSet+sealLimit)
	if err != nil {
		return nil
	}
	if version, body, err := unseal(workingSetKind, data); err == nil && version == 1 {
		return body
	}
	return nil
}

const verifiedKind = "supermachine-verified"

// mark returns the identities of the files that a verification vouches for, empty if there is no valid mark.
func (d *dir) mark() string {
	data, _, err := d.read(verifiedFile, 4096)
	if err != nil {
		return ""
	}
	if version, body, err := unseal(verifiedKind, data); err == nil && version == 1 {
		return string(body)
	}
	return ""
}

func (d *dir) setMark(identity string) error {
	return d.replace(verifiedFile, seal(verifiedKind, 1, []byte(identity)))
}
