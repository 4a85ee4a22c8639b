package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Info is what a list says of a snapshot.
type Info struct {
	ID          string
	Name        string
	Fingerprint string
	Arch        string
	Created     time.Time
	LastUsed    time.Time // loaded, to the minute, or touched, or else made
	Base        string    // empty for a full snapshot
	Bytes       int64     // on disk; what files share by reflink counts for each
	Apparent    int64     // sizes of the files in bytes, holes included
	Meta        json.RawMessage
	Err         error // why it cannot be loaded, as far as that is known without reading its data; another Arch is not looked for
}

// List returns what is in the store, sorted by id. A broken snapshot is listed with its Err.
func (s *Store) List() ([]Info, error) {
	s.sweep()
	list, err := s.list()
	return list, fail("", "", err)
}

func (s *Store) list() ([]Info, error) {
	ids, _, err := s.ids()
	if err != nil {
		return nil, err
	}
	list := make([]Info, 0, len(ids))
	for _, id := range ids {
		info, _, err := s.inspect(id)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		info.Err = err
		list = append(list, info)
	}
	return list, nil
}

// Inspect returns what the store says of one snapshot, without reading its data. After an error that says that it is broken, the
// Info holds what is known.
func (s *Store) Inspect(id string) (Info, *Manifest, error) {
	if err := checkID(id); err != nil {
		return Info{}, nil, err
	}
	return s.inspect(id)
}

func (s *Store) inspect(id string) (Info, *Manifest, error) {
	info := Info{ID: id}
	d, err := s.enter(id)
	if err != nil {
		return info, nil, err
	}
	defer d.Close()
	sizes := map[string]int64{}
	for _, name := range []string{manifestFile, stateFile, memoryFile, diskFile, verifiedFile, workingSetFile, usedFile} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue
		}
		if name == usedFile {
			info.LastUsed = time.Unix(st.Mtim.Unix())
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			sizes[name] = st.Size
		}
		info.Bytes += st.Blocks * 512
		info.Apparent += st.Size
	}
	m, _, _, err := d.manifest()
	if m != nil {
		info.Name, info.Fingerprint, info.Arch, info.Created, info.Base, info.Meta = m.Name, m.Fingerprint, m.Arch, m.Created, m.Base, m.Meta
	}
	if info.LastUsed.IsZero() {
		info.LastUsed = info.Created
		if st, err := d.Stat(); err == nil && info.Created.IsZero() {
			info.LastUsed = st.ModTime()
		}
	}
	if err == nil {
		err = checkSizes(m, sizes)
	}
	return info, m, fail(id, "", err)
}

// checkSizes finds what is missing or truncated.
func checkSizes(m *Manifest, sizes map[string]int64) error {
	for _, f := range []struct {
		name string
		want int64
	}{{stateFile, m.State.Length}, {memoryFile, m.Memory.Size()}, {diskFile, m.Disk.fileSize()}} {
		got, ok := sizes[f.name]
		if !ok {
			return corrupt(m.ID, f.name, "file is missing")
		}
		if got != f.want {
			return wrongSize(m.ID, f.name, got, f.want)
		}
	}
	return nil
}

// PruneOptions says what may go. What no field gives up stays, so that nothing goes by the zero value.
type PruneOptions struct {
	OlderThan time.Duration        // gives up what was last used longer ago; 0 for nothing
	MaxBytes  int64                // gives up the least recently used until the rest takes no more on disk; 0 for no limit
	Keep      func(info Info) bool // if not nil, what it says true of stays. It must not use the Store.
}

// Prune removes snapshots and returns those it removed. What others have as their base goes after these or not at all; its last use is
// theirs if that is later. After an error some may have been removed.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]Info, error) {
	if o.OlderThan < 0 || o.MaxBytes < 0 {
		return nil, invalid("", "prune what is older than %v or beyond %d bytes", o.OlderThan, o.MaxBytes)
	}
	s.sweep()
	unlock, err := s.lockStore(ctx, unix.LOCK_EX)
	if err != nil {
		return nil, fail("", "", err)
	}
	removed, trash, err := s.prune(o)
	unlock()
	for _, path := range trash {
		s.empty(ctx, path)
	}
	return removed, fail("", "", err)
}

func (s *Store) prune(o PruneOptions) (removed []Info, trash []string, err error) {
	list, err := s.list()
	if err != nil {
		return nil, nil, err
	}
	users, err := s.users()
	if err != nil {
		return nil, nil, err
	}
	var bytes int64
	for _, info := range list {
		bytes += info.Bytes
	}
	left := map[string]int{} // users that have not gone
	for base, ids := range users {
		left[base] = len(ids)
	}
	now := time.Now()
	for _, info := range byLastUse(list) {
		old := o.OlderThan > 0 && now.Sub(info.LastUsed) > o.OlderThan
		large := o.MaxBytes > 0 && bytes > o.MaxBytes
		if left[info.ID] > 0 || !old && !large || o.Keep != nil && o.Keep(info) {
			continue
		}
		path, err := s.rename(info.ID)
		if err != nil {
			return removed, trash, err
		}
		trash, removed = append(trash, path), append(removed, info)
		bytes -= info.Bytes
		left[info.Base]--
	}
	if len(removed) == 0 {
		return nil, nil, nil
	}
	return removed, trash, syncDir(s.dir)
}

// byLastUse sorts snapshots, the least recently used first, and each before its base. A base is used whenever what is on it is.
func byLastUse(list []Info) []Info {
	index := make(map[string]int, len(list))
	for i, info := range list {
		index[info.ID] = i
	}
	sorted := slices.Clone(list)
	depth := make(map[string]int, len(list))
	for _, info := range list {
		base := info.Base
		// Bounded, as the bases of a broken store may run in a circle.
		for range MaxChain {
			i, ok := index[base]
			if !ok {
				break
			}
			depth[info.ID]++
			if sorted[i].LastUsed.Before(info.LastUsed) {
				sorted[i].LastUsed = info.LastUsed
			}
			base = list[i].Base
		}
	}
	slices.SortStableFunc(sorted, func(a, b Info) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(depth[b.ID], depth[a.ID]))
	})
	return sorted
}
