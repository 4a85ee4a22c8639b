package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// files is a directory, or a tar file that stands for one.
type files interface {
	// open returns a regular file; the error matches fs.ErrNotExist if there is none.
	open(name string) (section, error)
	io.Closer
}

// section is an open file or the part of a tar that holds one.
type section struct {
	*io.SectionReader
	io.Closer
}

// dirFiles is a directory of the host.
type dirFiles string

func (d dirFiles) open(name string) (section, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return section{}, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", f.Name())
	}
	if err != nil {
		f.Close()
		return section{}, err
	}
	return section{io.NewSectionReader(f, 0, info.Size()), f}, nil
}

func (d dirFiles) Close() error { return nil }

// tarFiles is an uncompressed tar file, indexed when it is opened.
type tarFiles struct {
	f       *os.File
	members map[string]member
}

type member struct {
	off, size int64
	link      string // target, if it is a symbolic or hard link
}

// maxArchiveEntries bounds the index of an archive.
const maxArchiveEntries = 1 << 16

// openTar indexes a tar file; a compressed one is decompressed into temp first, of which limit bounds the size.
func openTar(name string, temp func() (*os.File, error), limit int64) (*tarFiles, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, sourceError(err, name)
	}
	if f, err = plainTar(f, temp, limit); err != nil {
		return nil, err
	}
	t := &tarFiles{f: f, members: map[string]member{}}
	if err := t.index(); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// plainTar returns f itself, or an unnamed temporary file with its decompressed contents. It closes f if it does not return it.
func plainTar(f *os.File, temp func() (*os.File, error), limit int64) (*os.File, error) {
	in := &sourceReader{r: f}
	r, closeReader, err := decompress(in)
	if err != nil {
		f.Close()
		return nil, invalid("", "%s: bad compressed data: %w", f.Name(), err)
	}
	defer closeReader()
	if plainReader(r) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			f.Close()
			return nil, sourceError(err, f.Name())
		}
		return f, nil
	}
	defer f.Close()
	out, err := temp()
	if err != nil {
		return nil, err
	}
	os.Remove(out.Name())
	w := &writeErrors{w: out}
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	switch {
	case w.err != nil:
		err = storeError(w.err)
	case err != nil:
		err = invalid("", "%s: bad compressed data: %w", f.Name(), err)
	case n > limit:
		err = overLimit("", "%s: more than %d bytes uncompressed", f.Name(), limit)
	default:
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// writeErrors remembers an error of what is written.
type writeErrors struct {
	w   io.Writer
	err error
}

func (w *writeErrors) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.err = err
	return n, err
}

func (t *tarFiles) index() error {
	tr := tar.NewReader(t.f)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil && !(errors.Is(err, tar.ErrInsecurePath) && hdr != nil) {
			return invalid("", "%s: not an image archive: %w", t.f.Name(), err)
		}
		if n == maxArchiveEntries {
			return overLimit("", "%s: more than %d files", t.f.Name(), maxArchiveEntries)
		}
		m := member{size: hdr.Size}
		switch hdr.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink:
			m.link = path.Join(path.Dir(path.Clean(hdr.Name)), hdr.Linkname)
		case tar.TypeLink:
			m.link = path.Clean(hdr.Linkname)
		default:
			continue
		}
		// The tar reader leaves the file at the start of a member's contents. Sparse ones are not there in one piece.
		if m.off, err = t.f.Seek(0, io.SeekCurrent); err != nil {
			return sourceError(err, t.f.Name())
		}
		if !sparseMember(hdr) {
			t.members[path.Clean(hdr.Name)] = m
		}
	}
}

func sparseMember(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (t *tarFiles) open(name string) (section, error) {
	name = path.Clean(name)
	for range maxSymlinks {
		m, ok := t.members[name]
		switch {
		case !ok:
			return section{}, &fs.PathError{Op: "open", Path: t.f.Name() + ":" + name, Err: fs.ErrNotExist}
		case m.link == "":
			return section{io.NewSectionReader(t.f, m.off, m.size), io.NopCloser(nil)}, nil
		}
		name = m.link
	}
	return section{}, invalid(name, "too many links in the archive")
}

func (t *tarFiles) Close() error { return t.f.Close() }

// sourceError makes an error of reading a local image ours.
func sourceError(err error, object string) error {
	var e *Error
	if errors.As(err, &e) || isContextError(err) {
		return err
	}
	hint := ""
	if !errors.Is(err, fs.ErrNotExist) {
		hint = "cannot read " + object
	}
	return &Error{Kind: ErrNotFound, Err: err, Hint: hint}
}
