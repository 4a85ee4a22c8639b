package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// openLocal opens the source of a reference that is not a registry's.
func openLocal(ref reference, temp func() (*os.File, error), lim Limits) (source, error) {
	info, err := os.Stat(ref.path)
	if err != nil {
		return nil, sourceError(err, ref.path)
	}
	if info.IsDir() {
		if ref.kind == kindArchive || ref.kind == kindDockerArchive {
			return nil, invalid("", "%s is a directory, not an archive", ref.path)
		}
		return &layout{files: dirFiles(ref.path), ref: ref}, nil
	}
	if ref.kind == kindLayout {
		return nil, &Error{Kind: ErrInvalidImage, Err: fmt.Errorf("%s is not a directory", ref.path), Hint: "for an archive write oci-archive:FILE"}
	}
	t, err := openTar(ref.path, temp, lim.Bytes)
	if err != nil {
		return nil, err
	}
	_, hasIndex := t.members["index.json"]
	if ref.kind == kindArchive || ref.kind == kindPath && hasIndex {
		return &layout{files: t, ref: ref}, nil
	}
	return &dockerArchive{layout: layout{files: t, ref: ref}, blobs: map[v1.Hash]string{}}, nil
}

// layout is an OCI image layout (image-layout.md), in a directory or a tar.
type layout struct {
	files files
	ref   reference
}

func (l *layout) remote() bool { return false }
func (l *layout) hashed() bool { return true }
func (l *layout) close() error { return l.files.Close() }

func (l *layout) root(ctx context.Context, limit int64) ([]byte, types.MediaType, error) {
	raw, err := l.read("index.json", limit)
	if err != nil {
		return nil, "", err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, "", invalid("", "index.json: %w", err)
	}
	d, err := l.choose(index.Manifests)
	if err != nil {
		return nil, "", err
	}
	if d == nil {
		return raw, types.OCIImageIndex, nil
	}
	raw, err = l.manifest(ctx, *d, limit)
	if err == nil {
		err = checkBytes(raw, *d)
	}
	return raw, d.MediaType, err
}

// choose picks what the reference's tag or digest names. Without either it is
// the only manifest, or nil for the whole index if that is one image for several platforms.
func (l *layout) choose(manifests []v1.Descriptor) (*v1.Descriptor, error) {
	names := map[string]bool{}
	for i := range manifests {
		d := &manifests[i]
		name, full := d.Annotations["org.opencontainers.image.ref.name"], d.Annotations["io.containerd.image.name"]
		if name != "" {
			names[name] = true
		}
		switch {
		case l.ref.digest != "" && d.Digest.String() == l.ref.digest,
			l.ref.tag != "" && (name == l.ref.tag || full == l.ref.tag || strings.HasSuffix(name, ":"+l.ref.tag)):
			return d, nil
		}
	}
	if l.ref.digest == "" && l.ref.tag == "" {
		if len(manifests) == 1 {
			return &manifests[0], nil
		}
		if len(manifests) > 0 && len(names) < 2 {
			return nil, nil
		}
	}
	return nil, l.noSuchImage(names)
}

func (l *layout) noSuchImage(names map[string]bool) error {
	if len(names) == 0 {
		return &Error{Kind: ErrNotFound, Err: fmt.Errorf("no such image in %s", l.ref.path)}
	}
	list := make([]string, 0, len(names))
	for name := range names {
		list = append(list, name)
	}
	sort.Strings(list)
	return &Error{Kind: ErrNotFound, Err: fmt.Errorf("%s holds the images %s", l.ref.path, strings.Join(list, ", ")), Hint: "name one of them after a colon"}
}

func (l *layout) manifest(_ context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	return l.read(blobName(d.Digest), limit)
}

func (l *layout) blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, int64, error) {
	s, err := l.open(blobName(d.Digest))
	if err != nil {
		return nil, 0, withContext(err, "", "", d.Digest.String())
	}
	_, err = s.Seek(offset, io.SeekStart)
	return s, offset, err
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (l *layout) open(name string) (section, error) {
	s, err := l.files.open(name)
	if err != nil {
		return s, sourceError(err, l.ref.path)
	}
	return s, nil
}

// read returns a whole small file.
func (l *layout) read(name string, limit int64) ([]byte, error) {
	s, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if s.Size() > limit {
		return nil, overLimit("", "%s of %d bytes, %d are allowed", name, s.Size(), limit)
	}
	raw := make([]byte, s.Size())
	if _, err := io.ReadFull(s, raw); err != nil {
		return nil, sourceError(fmt.Errorf("%s: %w", name, err), l.ref.path)
	}
	return raw, nil
}

// dockerArchive is what docker save writes: manifest.json names configs and
// layers by path. It has no manifests with digests, so one is made up here.
type dockerArchive struct {
	layout
	blobs map[v1.Hash]string // paths of what the made-up manifest names
}

// dockerImage is one element of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *dockerArchive) hashed() bool { return false }

func (a *dockerArchive) root(_ context.Context, limit int64) ([]byte, types.MediaType, error) {
	raw, err := a.read("manifest.json", limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", invalid("", "%s is not an image archive: it has neither manifest.json nor index.json", a.ref.path)
	}
	if err != nil {
		return nil, "", err
	}
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, "", invalid("", "manifest.json: %w", err)
	}
	image, err := a.choose(images)
	if err != nil {
		return nil, "", err
	}
	raw, err = a.makeManifest(image, limit)
	return raw, types.DockerManifestSchema2, err
}

func (a *dockerArchive) choose(images []dockerImage) (*dockerImage, error) {
	names := map[string]bool{}
	for i := range images {
		for _, tag := range images[i].RepoTags {
			names[tag] = true
			if a.ref.tag != "" && (tag == a.ref.tag || strings.HasSuffix(tag, ":"+a.ref.tag) || tag == a.ref.tag+":latest") {
				return &images[i], nil
			}
		}
	}
	if len(images) == 1 && a.ref.tag == "" && a.ref.digest == "" {
		return &images[0], nil
	}
	return nil, a.noSuchImage(names)
}

func (a *dockerArchive) makeManifest(image *dockerImage, limit int64) ([]byte, error) {
	config, err := a.read(image.Config, limit)
	if err != nil {
		return nil, err
	}
	digest, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	parsed, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, invalid("", "%s: %w", image.Config, err)
	}
	if len(parsed.RootFS.DiffIDs) != len(image.Layers) {
		return nil, invalid("", "%d layers, but the config names %d", len(image.Layers), len(parsed.RootFS.DiffIDs))
	}
	a.blobs[digest] = image.Config
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.DockerManifestSchema2,
		Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Digest: digest, Size: size},
		Layers: []v1.Descriptor{},
	}
	for i, name := range image.Layers {
		s, err := a.open(name)
		if err != nil {
			return nil, err
		}
		s.Close()
		diffID := parsed.RootFS.DiffIDs[i]
		a.blobs[diffID] = name
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.DockerUncompressedLayer, Digest: diffID, Size: s.Size()})
	}
	return json.Marshal(m)
}

func (a *dockerArchive) blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, int64, error) {
	s, err := a.open(a.blobs[d.Digest])
	if err != nil {
		return nil, 0, withContext(err, "", "", d.Digest.String())
	}
	_, err = s.Seek(offset, io.SeekStart)
	return s, offset, err
}
