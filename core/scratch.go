package core

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/ext4"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/virtio/block"
)

// emptyDisk returns an empty file system of mib MiB, for scratch disks to begin with.
func emptyDisk(stateDir string, mib int) (*layer, error) {
	template, err := scratchTemplate(filepath.Join(stateDir, "scratch"), mib)
	if err != nil {
		return nil, err
	}
	raw, err := block.OpenRaw(template, true)
	if err != nil {
		return nil, err
	}
	return newLayer(raw, nil), nil
}

// scratchTemplate returns the path of an empty ext4 file system of mib MiB. It is made once for each size; every VM's writable layer is
// a copy-on-write overlay over it, so a VM costs no formatting and no space until it writes.
func scratchTemplate(dir string, mib int) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("ext4-%d-v1", mib))
	if isFile(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.CreateTemp(dir, ".ext4-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	size := int64(mib) << 20
	if err := tmp.Truncate(size); err != nil {
		return "", err
	}
	// No journal: the layer does not outlive its VM, so there is nothing to recover after a crash.
	if err := makeExt4(tmp, size, "scratch", false); err != nil {
		return "", fmt.Errorf("format a scratch disk of %d MiB: %w", mib, err)
	}
	if err := tmp.Sync(); err != nil {
		return "", err
	}
	// Whoever is first wins; the files are the same.
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	return path, nil
}

// makeExt4 puts an empty file system into a new file of that size.
func makeExt4(f *os.File, size int64, name string, journal bool) error {
	storage := &sparse{Storage: file.New(f, false)}
	_, err := ext4.Create(storage, size, 0, 512, &ext4.Params{
		SectorsPerBlock: 8,
		VolumeName:      name,
		Features:        []ext4.FeatureOpt{ext4.WithFeatureHasJournal(journal), ext4.WithFeatureReservedGDTBlocksForExpansion(false)},
	})
	if err != nil && storage.failed != nil {
		return storage.failed // the library loses it
	}
	return err
}

// sparse is storage over a new file in which writing zeros leaves a hole: a large empty file system is mostly zeroed inode tables.
type sparse struct {
	backend.Storage
	failed error // the first of the file's
}

func (s *sparse) Writable() (backend.WritableFile, error) {
	w, err := s.Storage.Writable()
	return sparseFile{w, s}, err
}

type sparseFile struct {
	backend.WritableFile
	s *sparse
}

var zeros [64 << 10]byte

func (f sparseFile) WriteAt(p []byte, off int64) (int, error) {
	for rest := p; ; rest = rest[len(zeros):] {
		if len(rest) <= len(zeros) {
			if bytes.Equal(rest, zeros[:len(rest)]) {
				return len(p), nil
			}
			break
		}
		if !bytes.Equal(rest[:len(zeros)], zeros[:]) {
			break
		}
	}
	n, err := f.WritableFile.WriteAt(p, off)
	if err != nil && f.s.failed == nil {
		f.s.failed = err
	}
	return n, err
}
