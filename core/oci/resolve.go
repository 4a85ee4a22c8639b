package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// source is where an image comes from.
type source interface {
	// root returns the manifest or index that the reference names, and its digest if the source knows it better.
	root(ctx context.Context, limit int64) (raw []byte, mediaType types.MediaType, err error)
	// manifest returns a manifest by its digest.
	manifest(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
	// blob opens a config or layer at an offset; a source that cannot start there starts at 0 and says so.
	blob(ctx context.Context, d v1.Descriptor, offset int64) (r io.ReadCloser, start int64, err error)
	// remote says whether blobs are worth keeping in the store while they are used.
	remote() bool
	// hashed says whether the digests of layers are those of their blobs.
	hashed() bool
	// close releases what the source holds.
	close() error
}

// layer is one layer of a resolved image.
type layer struct {
	v1.Descriptor
	diffID string
}

// resolved is an image as its manifest and config describe it.
type resolved struct {
	digest       string
	configDigest string
	platform     v1.Platform
	config       *v1.ConfigFile
	layers       []layer
}

// maxIndexDepth is how many indexes may lead from one to the next.
const maxIndexDepth = 4

// resolve follows indexes to the manifest for the platform and reads its config.
func resolve(ctx context.Context, src source, want v1.Platform, lim Limits) (*resolved, error) {
	raw, mediaType, err := src.root(ctx, lim.ManifestBytes)
	if err != nil {
		return nil, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	for depth := 0; ; depth++ {
		if mediaType, err = manifestType(raw, mediaType); err != nil {
			return nil, withContext(err, "", "", digest.String())
		}
		if !mediaType.IsIndex() {
			break
		}
		if depth == maxIndexDepth {
			return nil, invalid("", "more than %d nested indexes", maxIndexDepth)
		}
		var index v1.IndexManifest
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, invalid("", "index %s: %w", digest, err)
		}
		d, err := choosePlatform(&index, want)
		if err != nil {
			return nil, err
		}
		if raw, err = readManifest(ctx, src, d, lim); err != nil {
			return nil, err
		}
		digest, mediaType = d.Digest, d.MediaType
	}
	return resolveManifest(ctx, src, raw, digest, want, lim)
}

// manifestType returns the type that a manifest states, or was sent with, and refuses what is neither image nor index.
func manifestType(raw []byte, sent types.MediaType) (types.MediaType, error) {
	var head struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     types.MediaType   `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Layers        []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return "", invalid("", "manifest: %w", err)
	}
	if head.SchemaVersion == 1 {
		return "", &Error{Kind: ErrInvalidImage, Err: fmt.Errorf("manifest of schema version 1"), Hint: "push the image again with a current tool"}
	}
	// A document that is both could be read as one by us and as the other by someone else.
	if head.Manifests != nil && head.Layers != nil {
		return "", invalid("", "manifest has both layers and manifests")
	}
	t := head.MediaType
	if t == "" {
		t = sent
	}
	switch {
	case t.IsImage() && head.Manifests == nil, t.IsIndex() && head.Layers == nil:
		return t, nil
	case t.IsImage(), t.IsIndex():
		return "", invalid("", "manifest contradicts its media type %.100q", t)
	case head.Manifests != nil:
		return types.OCIImageIndex, nil
	case head.Layers != nil:
		return types.OCIManifestSchema1, nil
	}
	return "", invalid("", "manifest of unknown media type %.100q", t)
}

func readManifest(ctx context.Context, src source, d v1.Descriptor, lim Limits) ([]byte, error) {
	if d.Size > lim.ManifestBytes {
		return nil, withContext(overLimit("", "manifest of %d bytes, %d are allowed", d.Size, lim.ManifestBytes), "", "", d.Digest.String())
	}
	raw, err := src.manifest(ctx, d, lim.ManifestBytes)
	if err != nil {
		return nil, err
	}
	return raw, checkBytes(raw, d)
}

// checkBytes checks a whole document against its descriptor.
func checkBytes(raw []byte, d v1.Descriptor) error {
	got, n, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if got != d.Digest || d.Size > 0 && n != d.Size {
		return &Error{Kind: ErrDigestMismatch, Digest: d.Digest.String(), Err: fmt.Errorf("got %d bytes with the digest %s", n, got)}
	}
	return nil
}

func resolveManifest(ctx context.Context, src source, raw []byte, digest v1.Hash, want v1.Platform, lim Limits) (*resolved, error) {
	fail := func(err error) (*resolved, error) { return nil, withContext(err, "", "", digest.String()) }
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fail(invalid("", "manifest: %w", err))
	}
	if len(m.Layers) > lim.Layers {
		return fail(overLimit("", "%d layers, %d are allowed", len(m.Layers), lim.Layers))
	}
	if !m.Config.MediaType.IsConfig() && m.Config.MediaType != "" {
		return fail(invalid("", "not a container image: its config has the media type %.100q", m.Config.MediaType))
	}
	if m.Config.Size < 0 || m.Config.Size > lim.ManifestBytes {
		return fail(overLimit("", "config of %d bytes, %d are allowed", m.Config.Size, lim.ManifestBytes))
	}
	if m.Config.Digest.Algorithm != "sha256" {
		return fail(invalid("", "the config has no SHA-256 digest"))
	}
	config, err := readConfig(ctx, src, m.Config)
	if err != nil {
		return nil, err
	}
	r := &resolved{digest: digest.String(), configDigest: m.Config.Digest.String(), config: config, platform: want}
	if p := config.Platform(); p != nil && p.Architecture != "" {
		if p.OS == "" {
			p.OS = want.OS
		}
		if !fits(*p, want) {
			return fail(platformError(want, map[string]bool{platformString(*p): true}))
		}
		r.platform = v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return fail(invalid("", "%d layers, but the config names %d", len(m.Layers), len(config.RootFS.DiffIDs)))
	}
	var total int64
	for i, d := range m.Layers {
		if err := checkLayerType(d.MediaType); err != nil {
			return fail(err)
		}
		if total += d.Size; d.Size < 0 || total > lim.Bytes || total < 0 {
			return fail(overLimit("", "layers of more than %d bytes", lim.Bytes))
		}
		if d.Digest.Algorithm != "sha256" || config.RootFS.DiffIDs[i].Algorithm != "sha256" {
			return fail(invalid("", "layer %d has a digest that is not SHA-256", i))
		}
		r.layers = append(r.layers, layer{Descriptor: d, diffID: config.RootFS.DiffIDs[i].String()})
	}
	return r, nil
}

// checkLayerType refuses layers that are not tars. How they are compressed is found out from their bytes.
func checkLayerType(t types.MediaType) error {
	if t.IsLayer() || t == "" || strings.HasSuffix(string(t), ".tar+zstd") || strings.HasSuffix(string(t), ".tar.zstd") {
		return nil
	}
	return invalid("", "layer of media type %.100q cannot be read", t)
}

func readConfig(ctx context.Context, src source, d v1.Descriptor) (*v1.ConfigFile, error) {
	r, _, err := src.blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, readError(err, d.Digest.String())
	}
	if err := checkBytes(raw, d); err != nil {
		return nil, err
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, withContext(invalid("", "config: %w", err), "", "", d.Digest.String())
	}
	return config, nil
}
