// Package ocitest builds container images for tests: layers entry by entry,
// also odd and broken ones, pushed to a registry or written as a layout or archive.
//
//	image := ocitest.NewImage(v1.Config{User: "app"},
//		ocitest.Gzip(ocitest.Dir("bin"), ocitest.File("bin/app", "…").Mode(0o755)),
//		ocitest.Gzip(ocitest.Whiteout("bin/old")))
//	err := image.Push(ctx, host, "app", "latest")
package ocitest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"path"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Entry is one entry of a layer's tar.
type Entry struct {
	Header tar.Header
	Body   []byte
	sparse []Piece
}

// Piece is a part of a sparse file that is not a hole.
type Piece struct {
	Offset int64
	Data   string
}

// MTime is the modification time of entries that set no other.
var MTime = time.Unix(1700000000, 0)

func entry(typ byte, name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: MTime}}
}

// File is a regular file, mode 0644.
func File(name, content string) Entry {
	e := entry(tar.TypeReg, name, 0o644)
	e.Body = []byte(content)
	e.Header.Size = int64(len(content))
	return e
}

// Dir is a directory, mode 0755.
func Dir(name string) Entry { return entry(tar.TypeDir, name+"/", 0o755) }

// Symlink is a symbolic link to target.
func Symlink(name, target string) Entry {
	e := entry(tar.TypeSymlink, name, 0o777)
	e.Header.Linkname = target
	return e
}

// Link is a hard link to target, a name in the image.
func Link(name, target string) Entry {
	e := entry(tar.TypeLink, name, 0o644)
	e.Header.Linkname = target
	return e
}

// Char is a character device, mode 0666.
func Char(name string, major, minor int64) Entry {
	e := entry(tar.TypeChar, name, 0o666)
	e.Header.Devmajor, e.Header.Devminor = major, minor
	return e
}

// Block is a block device, mode 0660.
func Block(name string, major, minor int64) Entry {
	e := entry(tar.TypeBlock, name, 0o660)
	e.Header.Devmajor, e.Header.Devminor = major, minor
	return e
}

// FIFO is a named pipe, mode 0600.
func FIFO(name string) Entry { return entry(tar.TypeFifo, name, 0o600) }

// Whiteout hides name of the layers below.
func Whiteout(name string) Entry {
	return File(path.Join(path.Dir(name), ".wh."+path.Base(name)), "")
}

// Opaque hides everything in dir of the layers below.
func Opaque(dir string) Entry { return File(path.Join(dir, ".wh..wh..opq"), "") }

// Sparse is a regular file of size bytes, all holes but for the pieces (four at
// most, in order), as GNU tar writes it.
func Sparse(name string, size int64, pieces ...Piece) Entry {
	e := entry(tar.TypeGNUSparse, name, 0o644)
	e.Header.Size, e.sparse = size, pieces
	return e
}

// Mode returns the entry with other permission bits.
func (e Entry) Mode(mode int64) Entry {
	e.Header.Mode = mode
	return e
}

// Owner returns the entry with another owner.
func (e Entry) Owner(uid, gid int) Entry {
	e.Header.Uid, e.Header.Gid = uid, gid
	return e
}

// Time returns the entry with another modification time.
func (e Entry) Time(t time.Time) Entry {
	e.Header.ModTime, e.Header.Format = t, tar.FormatPAX
	return e
}

// Xattr returns the entry with one more extended attribute.
func (e Entry) Xattr(name, value string) Entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range e.Header.PAXRecords {
		records[k] = v
	}
	e.Header.PAXRecords = records
	return e
}

// Tar returns the entries as a tar. It panics if one cannot be written.
func Tar(entries ...Entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Header.Typeflag == tar.TypeGNUSparse {
			must(w.Flush())
			b.Write(sparseEntry(e))
			continue
		}
		must(w.WriteHeader(&e.Header))
		_, err := w.Write(e.Body)
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("ocitest: %v", err))
	}
}

// sparseEntry writes the old GNU format: the map of pieces is in the header.
func sparseEntry(e Entry) []byte {
	var data bytes.Buffer
	for _, p := range e.sparse {
		data.WriteString(p.Data)
	}
	hdr := e.Header
	hdr.Typeflag, hdr.Size, hdr.Format = tar.TypeReg, int64(data.Len()), tar.FormatGNU
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(w.WriteHeader(&hdr))
	_, err := w.Write(data.Bytes())
	must(err)
	must(w.Flush())
	block := b.Bytes()
	block[156] = tar.TypeGNUSparse
	pieces := append([]Piece{}, e.sparse...)
	if n := len(pieces); n == 0 || pieces[n-1].Offset+int64(len(pieces[n-1].Data)) < e.Header.Size {
		pieces = append(pieces, Piece{Offset: e.Header.Size}) // marks where the last hole ends
	}
	for i, p := range pieces {
		at := 386 + 24*i
		copy(block[at:], fmt.Sprintf("%011o\x00%011o\x00", p.Offset, len(p.Data)))
	}
	copy(block[483:], fmt.Sprintf("%011o\x00", e.Header.Size))
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block[:512] {
		sum += int(c)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return block
}

// Layer is one layer: a tar and the blob that it travels as. Tests of damaged
// images change the fields before the layer becomes part of one.
type Layer struct {
	DiffID    v1.Hash // what the config says of the tar
	Digest    v1.Hash // what the manifest says of the blob
	Size      int64   // likewise
	MediaType types.MediaType
	Blob      []byte
}

func newLayer(t types.MediaType, tar, blob []byte) Layer {
	return Layer{DiffID: digest(tar), Digest: digest(blob), Size: int64(len(blob)), MediaType: t, Blob: blob}
}

func digest(p []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(p))}
}

// Plain is an uncompressed layer.
func Plain(entries ...Entry) Layer { return PlainTar(Tar(entries...)) }

// PlainTar is an uncompressed layer of any bytes.
func PlainTar(tar []byte) Layer { return newLayer(types.OCIUncompressedLayer, tar, tar) }

// Gzip is a layer compressed by gzip.
func Gzip(entries ...Entry) Layer { return GzipTar(Tar(entries...)) }

// GzipTar is a layer of any bytes compressed by gzip.
func GzipTar(tar []byte) Layer {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	must(err)
	_, err = w.Write(tar)
	must(err)
	must(w.Close())
	return newLayer(types.DockerLayer, tar, b.Bytes())
}

// Zstd is a layer compressed by zstd.
func Zstd(entries ...Entry) Layer {
	tar := Tar(entries...)
	w, err := zstd.NewWriter(nil)
	must(err)
	return newLayer(types.OCILayerZStd, tar, w.EncodeAll(tar, nil))
}
