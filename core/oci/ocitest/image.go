package ocitest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sort"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is an image or index with everything that it refers to.
type Image struct {
	Manifest   []byte
	MediaType  types.MediaType
	Platform   v1.Platform // of an image
	Blobs      map[v1.Hash][]byte
	Children   []*Image // of an index
	configFile []byte
	layers     []Layer
}

// NewImage makes an image for Linux on this machine's architecture.
func NewImage(config v1.Config, layers ...Layer) *Image {
	return NewImageFor(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, config, layers...)
}

// NewImageFor makes an image for a platform.
func NewImageFor(platform v1.Platform, config v1.Config, layers ...Layer) *Image {
	file := v1.ConfigFile{
		Architecture: platform.Architecture, OS: platform.OS, Variant: platform.Variant, Config: config,
		Created: v1.Time{Time: MTime.UTC()},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	}
	i := &Image{MediaType: types.OCIManifestSchema1, Platform: platform, Blobs: map[v1.Hash][]byte{}, layers: layers}
	m := v1.Manifest{SchemaVersion: 2, MediaType: i.MediaType, Layers: []v1.Descriptor{}}
	for _, l := range layers {
		file.RootFS.DiffIDs = append(file.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: l.MediaType, Size: l.Size, Digest: l.Digest})
		i.Blobs[l.Digest] = l.Blob
	}
	i.configFile = toJSON(file)
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(i.configFile)), Digest: digest(i.configFile)}
	i.Blobs[m.Config.Digest] = i.configFile
	i.Manifest = toJSON(m)
	return i
}

// NewIndex makes an index of images for several platforms.
func NewIndex(images ...*Image) *Image {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, child := range images {
		d := child.Descriptor()
		d.Platform = &child.Platform
		index.Manifests = append(index.Manifests, d)
	}
	return &Image{Manifest: toJSON(index), MediaType: types.OCIImageIndex, Children: images, Blobs: map[v1.Hash][]byte{}}
}

func toJSON(v any) []byte {
	raw, err := json.Marshal(v)
	must(err)
	return raw
}

// Digest returns the digest of the manifest.
func (i *Image) Digest() v1.Hash { return digest(i.Manifest) }

// Descriptor returns the manifest's descriptor, without a platform.
func (i *Image) Descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: i.MediaType, Size: int64(len(i.Manifest)), Digest: i.Digest()}
}

// Push uploads the image to a registry at host ("host:port") over plain HTTP.
// The registry must take blobs in one request.
func (i *Image) Push(ctx context.Context, host, repository, tag string) error {
	for _, child := range i.Children {
		if err := child.Push(ctx, host, repository, child.Digest().String()); err != nil {
			return err
		}
	}
	base := fmt.Sprintf("http://%s/v2/%s/", host, repository)
	for d, blob := range i.Blobs {
		if err := upload(ctx, http.MethodPost, base+"blobs/uploads/?digest="+d.String(), "application/octet-stream", blob); err != nil {
			return err
		}
	}
	return upload(ctx, http.MethodPut, base+"manifests/"+tag, string(i.MediaType), i.Manifest)
}

func upload(ctx context.Context, method, url, contentType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return nil
}

// layoutFiles returns the files of an OCI layout that holds the images under their tags.
func layoutFiles(images map[string]*Image) map[string][]byte {
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, tag := range sorted(images) {
		d := images[tag].Descriptor()
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
		index.Manifests = append(index.Manifests, d)
		images[tag].addBlobs(files)
	}
	files["index.json"] = toJSON(index)
	return files
}

func (i *Image) addBlobs(files map[string][]byte) {
	files["blobs/sha256/"+i.Digest().Hex] = i.Manifest
	for d, blob := range i.Blobs {
		files["blobs/sha256/"+d.Hex] = blob
	}
	for _, child := range i.Children {
		child.addBlobs(files)
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// WriteLayout writes an OCI layout directory that holds the images under their tags.
func WriteLayout(dir string, images map[string]*Image) error {
	for name, content := range layoutFiles(images) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Archive returns an OCI archive: an OCI layout in a tar.
func Archive(images map[string]*Image) []byte {
	return archive(layoutFiles(images))
}

// DockerArchive returns what docker save writes for images under their names ("app:latest").
func DockerArchive(images map[string]*Image) []byte {
	type element struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	files := map[string][]byte{}
	var manifest []element
	for _, name := range sorted(images) {
		i := images[name]
		e := element{Config: digest(i.configFile).Hex + ".json", RepoTags: []string{name}}
		files[e.Config] = i.configFile
		for _, l := range i.layers {
			path := l.DiffID.Hex + "/layer.tar"
			files[path] = l.Blob
			e.Layers = append(e.Layers, path)
		}
		manifest = append(manifest, e)
	}
	files["manifest.json"] = toJSON(manifest)
	return archive(files)
}

func archive(files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range sorted(files) {
		must(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}))
		_, err := w.Write(files[name])
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}
