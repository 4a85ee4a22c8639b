// Command oci measures how fast image layers become a root filesystem, beside
// `tar -x` of the same layers in the same run.
//
//	go run ./bench/oci [-n RUNS] [-dir TMPFS] [-json] LAYER...
//
// Layers are files, bottom first, compressed or not; they are decompressed
// before anything is measured. Both sides read from and write to the tmpfs; the
// conversion includes all checks of a pull from a local image layout.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/supermachine/supermachine/core/oci"
)

// result is one element of build/bench.json.
type result struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"`
	Ratio float64 `json:"ratio"`
	N     int     `json:"n"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
}

func main() {
	n := flag.Int("n", 9, "runs of each side")
	dir := flag.String("dir", "/dev/shm", "tmpfs to work in")
	asJSON := flag.Bool("json", false, "print one JSON object")
	flag.Parse()
	if flag.NArg() == 0 || *n < 1 {
		flag.Usage()
		os.Exit(2)
	}
	r, err := run(*dir, *n, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/oci:", err)
		os.Exit(1)
	}
	if *asJSON {
		err = json.NewEncoder(os.Stdout).Encode(r)
	} else {
		_, err = fmt.Printf("%s: %.0f %s, tar -x %.0f, ratio %.2f (%d runs; p50 %.0f, p99 %.0f)\n",
			r.Name, r.Value, r.Unit, r.Floor, r.Ratio, r.N, r.P50, r.P99)
	}
	if err != nil {
		os.Exit(1)
	}
}

func run(dir string, n int, files []string) (*result, error) {
	work, err := os.MkdirTemp(dir, "bench-oci-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	layout := filepath.Join(work, "layout")
	layers, bytes, err := writeLayout(layout, files)
	if err != nil {
		return nil, err
	}
	// Taking turns, so that both sides see the same machine.
	var extract, convert []float64
	for range n {
		for _, side := range []struct {
			f     func(string) error
			times *[]float64
		}{
			{func(dir string) error { return untar(dir, layers) }, &extract},
			{func(dir string) error { return pull(dir, layout) }, &convert},
		} {
			out := filepath.Join(work, "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				return nil, err
			}
			runtime.GC()
			start := time.Now()
			if err := side.f(out); err != nil {
				return nil, err
			}
			*side.times = append(*side.times, float64(bytes)/1e6/time.Since(start).Seconds())
			if err := os.RemoveAll(out); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(extract)
	slices.Sort(convert)
	r := &result{Name: "oci.convert", Unit: "MB/s", N: n, P50: convert[n/2], P99: convert[n/100], Floor: extract[n/2]}
	r.Value, r.Ratio = r.P50, r.P50/r.Floor
	return r, nil
}

func untar(dir string, layers []string) error {
	for _, l := range layers {
		if out, err := exec.Command("tar", "-x", "-f", l, "-C", dir).CombinedOutput(); err != nil {
			return fmt.Errorf("tar: %w: %s", err, out)
		}
	}
	return nil
}

func pull(dir, layout string) error {
	store, err := oci.OpenStore(dir)
	if err != nil {
		return err
	}
	_, err = store.Pull(context.Background(), "oci:"+layout, oci.PullOptions{})
	return err
}

// writeLayout writes an OCI layout with the layers decompressed, and returns their paths and size together.
func writeLayout(dir string, files []string) (layers []string, total int64, err error) {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, 0, err
	}
	put := func(t types.MediaType, r io.Reader) (d v1.Descriptor, err error) {
		f, err := os.Create(filepath.Join(blobs, "new"))
		if err != nil {
			return d, err
		}
		defer f.Close()
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(f, sum), r)
		if err != nil {
			return d, err
		}
		d = v1.Descriptor{MediaType: t, Size: n, Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}}
		return d, os.Rename(f.Name(), filepath.Join(blobs, d.Digest.Hex))
	}
	putJSON := func(t types.MediaType, v any) (v1.Descriptor, error) {
		raw, err := json.Marshal(v)
		if err != nil {
			return v1.Descriptor{}, err
		}
		return put(t, bytes.NewReader(raw))
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	config := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
	for _, name := range files {
		r, err := decompress(name)
		if err != nil {
			return nil, 0, err
		}
		d, err := put(types.OCIUncompressedLayer, r)
		r.Close()
		if err != nil {
			return nil, 0, err
		}
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		layers = append(layers, filepath.Join(blobs, d.Digest.Hex))
		total += d.Size
	}
	if manifest.Config, err = putJSON(types.OCIConfigJSON, config); err != nil {
		return nil, 0, err
	}
	d, err := putJSON(types.OCIManifestSchema1, manifest)
	if err != nil {
		return nil, 0, err
	}
	raw, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}})
	if err != nil {
		return nil, 0, err
	}
	return layers, total, os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o644)
}

// decompress opens a file that may be compressed by gzip or zstd.
func decompress(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	var magic [4]byte
	n, _ := f.ReadAt(magic[:], 0)
	var r io.Reader = f
	switch {
	case bytes.HasPrefix(magic[:n], []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(f)
	case bytes.Equal(magic[:n], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err = zstd.NewReader(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}
