package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/supermachine/supermachine/snapshot/memory"
)

// Version is the version of the format that this package writes, and the only one that it reads.
const Version = 1

// PageSize is the unit, in bytes, of memory regions and of all extents.
const PageSize = memory.PageSize

// Limits of the format. They bound what a hostile store can make a reader allocate.
const (
	MaxChain    = 8              // snapshots from a diff down to its full base, both included
	MaxState    = 256 << 20      // bytes of state
	MaxMemory   = memory.MaxSize // bytes of all regions together
	MaxRegions  = memory.MaxRegions
	MaxDisk     = 4 << 40           // bytes of disk
	MaxExtents  = memory.MaxExtents // of memory, and of disk
	MaxManifest = 128 << 20         // bytes

	MaxWorkingSet = 64 << 20 // bytes
	maxID         = 64
	maxText       = 512 // bytes of a name, fingerprint or the like
)

// The files of a snapshot.
const (
	manifestFile   = "manifest.json"
	stateFile      = "state.msgpack"
	memoryFile     = "memory.img"
	diskFile       = "disk.img"
	verifiedFile   = "verified"
	workingSetFile = "working-set.msgpack"
	usedFile       = "used"
)

const manifestKind = "supermachine-snapshot"

// Manifest describes a snapshot: what its files have to hold, and what its user wants to know of it.
type Manifest struct {
	ID          string    `json:"id"`
	Version     int       `json:"version"` // of the format
	Created     time.Time `json:"created"`
	Arch        string    `json:"arch"` // as runtime.GOARCH
	CPU         CPU       `json:"cpu"`
	Fingerprint string    `json:"fingerprint"` // of what the snapshot was made from; the user's, may be empty
	Name        string    `json:"name"`        // for people; may be empty
	// Base is the id of the snapshot that has the pages and clusters that this one lacks. It is empty for a full one, in which
	// these are zeros.
	Base string `json:"base,omitempty"`
	// BaseManifest is the checksum of the base's manifest, eight hexadecimal digits, so that another snapshot which
	// has got the base's id does not pass for it.
	BaseManifest string          `json:"baseManifest,omitempty"`
	PageSize     int64           `json:"pageSize"` // bytes
	Memory       Memory          `json:"memory"`
	Disk         Disk            `json:"disk"`
	State        State           `json:"state"`
	Meta         json.RawMessage `json:"meta,omitempty"` // the user's
}

// CPU says on what processor the snapshot was made.
type CPU struct {
	Vendor   string `json:"vendor,omitempty"` // such as "AuthenticAMD"
	Family   int    `json:"family,omitempty"`
	Model    int    `json:"model,omitempty"`
	Stepping int    `json:"stepping,omitempty"`
}

// Memory describes memory.img, in which the regions follow each other without gaps.
type Memory struct {
	Regions   []Region  `json:"regions"`
	Extents   Extents   `json:"extents"`
	Checksums Checksums `json:"checksums"`
}

// Size returns the size of memory.img in bytes.
func (m *Memory) Size() int64 {
	var n int64
	for _, r := range m.Regions {
		n += r.Size
	}
	return n
}

// Region is a range of guest physical memory.
type Region struct {
	Addr uint64 `json:"addr"` // a multiple of PageSize
	Size int64  `json:"size"` // bytes, a multiple of PageSize
}

// Disk describes disk.img, the written clusters of the disk at their own offsets.
type Disk struct {
	Size        int64     `json:"size"`        // of the disk, bytes; 0 if there is none
	ClusterSize int64     `json:"clusterSize"` // bytes, a multiple of PageSize
	Extents     Extents   `json:"extents"`
	Checksums   Checksums `json:"checksums"`
}

// fileSize returns the size of disk.img in bytes: the disk's, rounded up to a cluster.
func (d *Disk) fileSize() int64 {
	if d.Size == 0 {
		return 0
	}
	return (d.Size + d.ClusterSize - 1) / d.ClusterSize * d.ClusterSize
}

// State describes state.msgpack.
type State struct {
	Length   int64     `json:"length"` // bytes
	Checksum Checksums `json:"checksum"`
}

// checkID returns an error unless id may name a snapshot. Such an id is never a path, nor one of the store's own names.
func checkID(id string) error {
	if id == "" || len(id) > maxID || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return invalid(id, "an id is 1 to %d of a-z, 0-9 and -", maxID)
	}
	return nil
}

// checkText keeps out what would garble a terminal.
func checkText(what, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s has %d bytes, more than %d", what, len(s), maxText)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%s is not printable text", what)
	}
	return nil
}

// CheckName returns an ErrInvalid unless a snapshot may have this name: printable text of at most 512 bytes, or nothing.
func CheckName(name string) error {
	if err := checkText("name", name); err != nil {
		return invalid("", "%v", err)
	}
	return nil
}

// parseManifest checks the content of a manifest and returns it with its checksum. The error of an unknown version comes with
// what all versions have: id, version, created, fingerprint, name and base.
func parseManifest(id string, data []byte) (*Manifest, string, error) {
	version, body, err := unseal(manifestKind, data)
	if err != nil {
		return nil, "", corrupt(id, manifestFile, "%v", err)
	}
	if version != Version {
		return parseForeign(id, version, body)
	}
	m := new(Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, "", corrupt(id, manifestFile, "%v", err)
	}
	if m.Version != version || m.ID != id {
		return nil, "", corrupt(id, manifestFile, "is of version %d of snapshot %.100q", m.Version, m.ID)
	}
	if err := m.check(); err != nil {
		return nil, "", corrupt(id, manifestFile, "%v", err)
	}
	return m, fmt.Sprintf("%08x", checksum(body)), nil
}

func parseForeign(id string, version int, body []byte) (*Manifest, string, error) {
	var m Manifest
	var common struct {
		ID          string          `json:"id"`
		Version     int             `json:"version"`
		Created     time.Time       `json:"created"`
		Fingerprint string          `json:"fingerprint"`
		Name        string          `json:"name"`
		Base        string          `json:"base"`
		Meta        json.RawMessage `json:"meta"`
	}
	// The first line's version has no checksum of its own: only if the JSON agrees is it another version, not a flipped bit.
	if err := json.Unmarshal(body, &common); err != nil || common.Version != version || common.ID != id {
		return nil, "", corrupt(id, manifestFile, "version %d in the first line, not in the rest", version)
	}
	m.ID, m.Version, m.Created = id, version, common.Created
	m.Fingerprint, m.Name, m.Base, m.Meta = common.Fingerprint, common.Name, common.Base, common.Meta
	if err := m.checkNames(); err != nil {
		return nil, "", corrupt(id, manifestFile, "%v", err)
	}
	reason := fmt.Sprintf("version %d, known is %d", version, Version)
	return &m, "", &Error{ID: id, File: manifestFile, Offset: -1, Reason: reason, Err: ErrVersion}
}

// check returns what is wrong with a manifest in itself.
func (m *Manifest) check() error {
	if err := m.checkAllButSums(); err != nil {
		return err
	}
	if err := checkCount(m.Memory.Checksums, m.Memory.Extents); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if err := checkCount(m.Disk.Checksums, m.Disk.Extents); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if len(m.State.Checksum) != 1 {
		return errors.New("state has no checksum")
	}
	return nil
}

func (m *Manifest) checkAllButSums() error {
	if err := m.checkNames(); err != nil {
		return err
	}
	if (m.Base == "") != (m.BaseManifest == "") || m.Base != "" && len(m.BaseManifest) != 8 {
		return errors.New("base without checksum, or checksum without base")
	}
	if m.PageSize != PageSize {
		return fmt.Errorf("page size is %d, not %d", m.PageSize, PageSize)
	}
	if err := m.Memory.check(); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if err := m.Disk.check(); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if m.State.Length < 0 || m.State.Length > MaxState {
		return fmt.Errorf("state of %d bytes, at most %d are possible", m.State.Length, MaxState)
	}
	return nil
}

func (m *Manifest) checkNames() error {
	if err := checkID(m.ID); err != nil {
		return err
	}
	if m.Base != "" {
		if err := checkID(m.Base); err != nil {
			return err
		}
		if m.Base == m.ID {
			return errors.New("snapshot is its own base")
		}
	}
	for _, t := range []struct{ what, text string }{
		{"name", m.Name}, {"fingerprint", m.Fingerprint}, {"architecture", m.Arch}, {"CPU vendor", m.CPU.Vendor},
	} {
		if err := checkText(t.what, t.text); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) check() error {
	if len(m.Regions) == 0 || len(m.Regions) > MaxRegions {
		return fmt.Errorf("%d regions, 1 to %d are possible", len(m.Regions), MaxRegions)
	}
	var size int64
	var next uint64
	for _, r := range m.Regions {
		if r.Size <= 0 || r.Size > MaxMemory-size || r.Size%PageSize != 0 ||
			r.Addr%PageSize != 0 || r.Addr < next || r.Addr+uint64(r.Size) < r.Addr {
			return fmt.Errorf("region of %d bytes at %#x", r.Size, r.Addr)
		}
		size += r.Size
		next = r.Addr + uint64(r.Size)
	}
	return checkExtents(m.Extents, PageSize, size)
}

func (d *Disk) check() error {
	if d.Size < 0 || d.Size > MaxDisk {
		return fmt.Errorf("size is %d, at most %d are possible", d.Size, int64(MaxDisk))
	}
	if d.Size > 0 && (d.ClusterSize < PageSize || d.ClusterSize > 1<<20 || d.ClusterSize&(d.ClusterSize-1) != 0) {
		return fmt.Errorf("clusters of %d bytes", d.ClusterSize)
	}
	return checkExtents(d.Extents, max(d.ClusterSize, PageSize), d.fileSize())
}

// fits returns why a diff cannot have base as its base.
func (m *Manifest) fits(base *Manifest) error {
	same := m.Arch == base.Arch && m.Disk.Size == base.Disk.Size && m.Disk.ClusterSize == base.Disk.ClusterSize &&
		len(m.Memory.Regions) == len(base.Memory.Regions)
	for i := 0; same && i < len(m.Memory.Regions); i++ {
		same = m.Memory.Regions[i] == base.Memory.Regions[i]
	}
	if !same {
		return fmt.Errorf("architecture, memory regions or disk differ from base %q", base.ID)
	}
	return nil
}
