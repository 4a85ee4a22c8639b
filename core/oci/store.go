package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Store is a directory of pulled images. Any number of Stores, in any number of
// processes, may share one directory; all methods are safe for concurrent use.
type Store struct {
	dir string
}

// Image is a pulled image. Its root filesystem is a read-only file that belongs
// to the store and stays until [Store.Remove]; a VM that has it open keeps it
// longer.
type Image struct {
	Ref          string    `json:"-"`            // canonical reference, "" if the image has none any more
	Digest       string    `json:"digest"`       // of the manifest
	ConfigDigest string    `json:"configDigest"` // what docker calls the image ID
	Platform     string    `json:"platform"`     // "os/arch" or "os/arch/variant"
	Config       Config    `json:"config"`
	RootFS       string    `json:"-"`       // path of the EROFS file
	Size         int64     `json:"size"`    // of that file in bytes; holes make it larger than what it takes on disk
	Created      time.Time `json:"created"` // when the image was built, as it says
	RootFSKey    string    `json:"rootfs"`  // names the EROFS file: images of equal layers share it
}

// Config says how the image wants to be run.
type Config struct {
	User         string            `json:"user,omitempty"` // name or number, with optional ":group"
	Env          []string          `json:"env,omitempty"`  // "NAME=value"
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // "80/tcp", sorted
	Volumes      []string          `json:"volumes,omitempty"`      // sorted
	StopSignal   string            `json:"stopSignal,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// refRecord says which image a reference means.
type refRecord struct {
	Ref      string `json:"ref"`
	Platform string `json:"platform"`
	Digest   string `json:"digest"`
}

// blobAge is how long blobs of a pull that did not finish are kept for its next try.
const blobAge = 24 * time.Hour

// OpenStore opens a store, making the directory and what it needs below it.
func OpenStore(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, withContext(err, "open store", dir, "")
	}
	s := &Store{dir: abs}
	for _, sub := range []string{"blobs/sha256", "rootfs", "images", "refs", "locks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(abs, sub), 0o700); err != nil {
			return nil, withContext(err, "open store", abs, "")
		}
	}
	return s, nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// use marks the store as in use until the returned lock is released. Whoever
// finds it unused cleans up after killed processes first.
func (s *Store) use(ctx context.Context) (*fileLock, error) {
	path := s.path("locks", storeLock)
	l, err := tryLock(path, false, true)
	if err == nil {
		s.sweep(blobAge)
		l.unlock()
	} else if err != errLocked {
		return nil, err
	}
	return lock(ctx, path, true, true)
}

// sweep removes what killed processes left behind. The store must not be in use.
func (s *Store) sweep(age time.Duration) {
	removeIf := func(dir string, drop func(fs.FileInfo) bool) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if info, err := e.Info(); err == nil && drop(info) {
				os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
	removeIf(s.path("tmp"), func(fs.FileInfo) bool { return true })
	removeIf(s.path("locks"), func(i fs.FileInfo) bool { return i.Name() != storeLock && i.Name() != recordsLock })
	removeIf(s.path("blobs", "sha256"), func(i fs.FileInfo) bool { return time.Since(i.ModTime()) >= age })
	if used, err := s.usedRootFS(); err == nil {
		removeIf(s.path("rootfs"), func(i fs.FileInfo) bool { return !used[strings.TrimSuffix(i.Name(), rootfsSuffix)] })
	}
}

const (
	rootfsSuffix = ".erofs"
	storeLock    = "store"   // held, shared, by every pull
	recordsLock  = "records" // held to change images and refs
)

func (s *Store) rootfsPath(key string) string { return s.path("rootfs", key+rootfsSuffix) }

// usedRootFS returns the keys of all root filesystems that an image has.
func (s *Store) usedRootFS() (map[string]bool, error) {
	images, err := s.images()
	used := map[string]bool{}
	for _, image := range images {
		used[image.RootFSKey] = true
	}
	return used, err
}

// temp makes a temporary file in the store.
func (s *Store) temp() (*os.File, error) { return os.CreateTemp(s.path("tmp"), "") }

func (s *Store) imagePath(digest string) string {
	return s.path("images", strings.TrimPrefix(digest, "sha256:")+".json")
}

func (s *Store) refPath(ref, platform string) string {
	return s.path("refs", hexDigest("ref", ref, platform)+".json")
}

// writeJSON puts a record in place atomically.
func (s *Store) writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := s.temp()
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(raw); err == nil {
		err = install(f, path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// image reads one image's record. The error matches fs.ErrNotExist if the
// record or its root filesystem is not there.
func (s *Store) image(digest string) (*Image, error) {
	var image Image
	if err := readJSON(s.imagePath(digest), &image); err != nil {
		return nil, err
	}
	image.RootFS = s.rootfsPath(image.RootFSKey)
	info, err := os.Stat(image.RootFS)
	if err == nil && info.Size() != image.Size {
		err = fmt.Errorf("%s: %d bytes instead of %d: %w", image.RootFS, info.Size(), image.Size, fs.ErrNotExist)
	}
	return &image, err
}

// each calls f with the path of every record in a directory of the store.
func (s *Store) each(dir string, f func(path string) error) error {
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		// A record may go while the directory is read.
		if err := f(s.path(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *Store) images() ([]*Image, error) {
	var images []*Image
	err := s.each("images", func(path string) error {
		image, err := s.image(strings.TrimSuffix(filepath.Base(path), ".json"))
		if err == nil {
			images = append(images, image)
		}
		return err
	})
	return images, err
}

func (s *Store) refs() ([]refRecord, error) {
	var refs []refRecord
	err := s.each("refs", func(path string) error {
		var r refRecord
		err := readJSON(path, &r)
		if err == nil {
			refs = append(refs, r)
		}
		return err
	})
	return refs, err
}

// Get returns a pulled image without using any network. The name is a
// reference, for which platform chooses as in PullOptions, or a manifest or
// config digest, of which six hexadecimal digits are enough if no other has
// them. The error is an ErrNotPulled if the image is not there.
func (s *Store) Get(name, platform string) (*Image, error) {
	image, err := s.get(name, platform)
	return image, withContext(err, "get", name, "")
}

func (s *Store) get(name, platform string) (*Image, error) {
	want, err := parsePlatform(platform)
	if err != nil {
		return nil, err
	}
	ref, err := parseReference(name, nil)
	if err == nil {
		var r refRecord
		err = readJSON(s.refPath(ref.full, platformString(want)), &r)
		if err == nil {
			var image *Image
			if image, err = s.image(r.Digest); err == nil {
				image.Ref = r.Ref
				return image, nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return s.byDigest(name, err)
}

// byDigest finds an image by (a prefix of) a digest.
func (s *Store) byDigest(name string, notFound error) (*Image, error) {
	var own *Error
	if !errors.As(notFound, &own) {
		notFound = &Error{Kind: ErrNotPulled}
	}
	prefix := strings.TrimPrefix(name, "sha256:")
	if len(prefix) < 6 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, notFound
	}
	images, err := s.images()
	if err != nil {
		return nil, err
	}
	var found *Image
	for _, image := range images {
		if !strings.HasPrefix(image.Digest, "sha256:"+prefix) && !strings.HasPrefix(image.ConfigDigest, "sha256:"+prefix) {
			continue
		}
		if found != nil {
			return nil, &Error{Kind: ErrInvalidReference, Err: errors.New("several images begin like this"), Hint: "give more digits"}
		}
		found = image
	}
	if found == nil {
		return nil, &Error{Kind: ErrNotPulled}
	}
	return found, nil
}

// List returns all pulled images, sorted by reference: one Image for each
// reference, and one without Ref for each image that has lost its last.
func (s *Store) List() ([]*Image, error) {
	images, err := s.images()
	if err != nil {
		return nil, withContext(err, "list images", "", "")
	}
	refs, err := s.refs()
	if err != nil {
		return nil, withContext(err, "list images", "", "")
	}
	byDigest := map[string]*Image{}
	for _, image := range images {
		byDigest[image.Digest] = image
	}
	named := map[string]bool{}
	var list []*Image
	for _, r := range refs {
		if image := byDigest[r.Digest]; image != nil {
			c := *image
			c.Ref = r.Ref
			list = append(list, &c)
			named[r.Digest] = true
		}
	}
	for _, image := range images {
		if !named[image.Digest] {
			list = append(list, image)
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Ref < list[j].Ref })
	return list, nil
}

// Remove removes a reference, or by a digest an image with all its references.
// The image goes with its last reference, its root filesystem with the last image that has it.
func (s *Store) Remove(ctx context.Context, name, platform string) error {
	return withContext(s.remove(ctx, name, platform), "remove", name, "")
}

func (s *Store) remove(ctx context.Context, name, platform string) error {
	l, err := s.lockRecords(ctx)
	if err != nil {
		return err
	}
	defer l.unlock()
	image, err := s.get(name, platform)
	if err != nil {
		return err
	}
	refs, err := s.refs()
	if err != nil {
		return err
	}
	others := 0
	for _, r := range refs {
		if r.Digest != image.Digest {
			continue
		}
		if image.Ref != "" && (r.Ref != image.Ref || r.Platform != requested(platform)) {
			others++
			continue
		}
		if err := os.Remove(s.refPath(r.Ref, r.Platform)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if others > 0 {
		return syncDir(s.path("refs"))
	}
	return s.removeImage(image)
}

// requested is the platform as it stands in the record of a reference.
func requested(platform string) string {
	p, _ := parsePlatform(platform)
	return platformString(p)
}

func (s *Store) removeImage(image *Image) error {
	if err := os.Remove(s.imagePath(image.Digest)); err != nil {
		return err
	}
	used, err := s.usedRootFS()
	if err != nil || used[image.RootFSKey] {
		return err
	}
	return os.Remove(image.RootFS)
}

// Prune removes all images without a reference and, if no pull is going on,
// everything that killed or failed pulls left.
func (s *Store) Prune(ctx context.Context) error {
	return withContext(s.prune(ctx), "prune", "", "")
}

func (s *Store) prune(ctx context.Context) error {
	if l, err := tryLock(s.path("locks", storeLock), false, true); err == nil {
		s.sweep(0)
		l.unlock()
	}
	l, err := s.lockRecords(ctx)
	if err != nil {
		return err
	}
	defer l.unlock()
	list, err := s.List()
	if err != nil {
		return err
	}
	for _, image := range list {
		if image.Ref == "" {
			if err := s.removeImage(image); err != nil {
				return err
			}
		}
	}
	return nil
}

// lockRecords keeps everyone else from changing images and refs.
func (s *Store) lockRecords(ctx context.Context) (*fileLock, error) {
	return lock(ctx, s.path("locks", recordsLock), false, true)
}
