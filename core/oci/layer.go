package oci

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math"
	"strings"

	"github.com/supermachine/supermachine/core/oci/erofs"
)

// Names with a special meaning in a layer (OCI image spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	reservedPrefix = ".wh..wh." // what AUFS kept for itself
	xattrRecord    = "SCHILY.xattr."
)

// applier applies layer tars to a tree, counting against the limits.
type applier struct {
	*tree
	entries int
	bytes   int64
}

// apply reads one layer's tar to its end and changes the tree accordingly.
func (a *applier) apply(ctx context.Context, r io.Reader) error {
	a.layer++
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		// Names are checked here whatever GODEBUG=tarinsecurepath says.
		if err != nil && !(errors.Is(err, tar.ErrInsecurePath) && hdr != nil) {
			return tarError("", err)
		}
		if a.entries++; a.entries > a.lim.Entries {
			return overLimit(hdr.Name, "more than %d entries", a.lim.Entries)
		}
		if err := a.entry(hdr, tr); err != nil {
			return err
		}
	}
}

// tarError makes errors of the tar reader ours; those of the stream below it are already.
func tarError(name string, err error) error {
	var e *Error
	switch {
	case errors.As(err, &e), isContextError(err):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid(name, "the layer ends in the middle of an entry")
	}
	return invalid(name, "bad tar: %w", err)
}

func (a *applier) entry(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := a.splitName(hdr.Name)
	if err != nil {
		return err
	}
	meta, err := a.meta(hdr)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return invalid(hdr.Name, "the root can only be a directory")
		}
		a.root.Meta = meta
		return nil
	}
	parents, name := parts[:len(parts)-1], parts[len(parts)-1]
	if strings.HasPrefix(name, whiteoutPrefix) {
		return a.whiteout(hdr.Name, parents, name)
	}
	dir, err := a.makeParent(parents)
	if err != nil {
		return err
	}
	e, err := a.makeEntry(hdr, meta, body)
	if err != nil {
		return err
	}
	return a.put(dir, name, e)
}

func (a *applier) whiteout(full string, parents []string, name string) error {
	hidden := strings.TrimPrefix(name, whiteoutPrefix)
	switch {
	case name == opaqueMarker:
		if dir := a.findDir(parents, false); dir != nil {
			return a.hideAll(dir)
		}
		return nil
	case strings.HasPrefix(name, reservedPrefix):
		return nil
	case hidden == "", hidden == ".", hidden == "..":
		return invalid(full, "a whiteout of nothing")
	}
	if dir := a.findDir(parents, false); dir != nil {
		return a.hide(dir, hidden)
	}
	return nil
}

// makeEntry writes what the header describes, except for its name.
func (a *applier) makeEntry(hdr *tar.Header, meta erofs.Meta, body io.Reader) (e erofs.Entry, err error) {
	switch hdr.Typeflag {
	case tar.TypeDir:
		return erofs.Entry{Dir: &erofs.Dir{Meta: meta, Entries: map[string]erofs.Entry{}}}, nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return a.file(hdr, meta, body)
	case tar.TypeLink:
		return a.hardLink(hdr)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return e, invalid(hdr.Name, "symbolic link to %q", hdr.Linkname)
		}
		e.Inode, err = a.w.Symlink(meta, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return e, invalid(hdr.Name, "device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		kind := uint16(erofs.ModeChar)
		if hdr.Typeflag == tar.TypeBlock {
			kind = erofs.ModeBlock
		}
		e.Inode, err = a.w.Node(meta, kind, erofs.Rdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	case tar.TypeFifo:
		e.Inode, err = a.w.Node(meta, erofs.ModeFIFO, 0)
	default:
		return e, invalid(hdr.Name, "entry of unknown type %q", hdr.Typeflag)
	}
	return e, atPath(err, hdr.Name)
}

func (a *applier) file(hdr *tar.Header, meta erofs.Meta, body io.Reader) (e erofs.Entry, err error) {
	if hdr.Size < 0 {
		return e, invalid(hdr.Name, "negative size")
	}
	if hdr.Size > a.lim.FileBytes {
		return e, overLimit(hdr.Name, "file of %d bytes, %d are allowed", hdr.Size, a.lim.FileBytes)
	}
	// The stream is counted too, but holes of a sparse entry are not in it.
	if a.bytes += hdr.Size; a.bytes > a.lim.Bytes {
		return e, overLimit(hdr.Name, "contents of more than %d bytes", a.lim.Bytes)
	}
	in := &sourceReader{r: body}
	e.Inode, err = a.w.File(meta, hdr.Size, in)
	if in.err != nil {
		return e, tarError(hdr.Name, in.err)
	}
	return e, atPath(err, hdr.Name)
}

// hardLink finds the inode that the entry is to be another name of. Unlike an
// overlay, where a link cannot reach into a lower layer, any layer will do.
func (a *applier) hardLink(hdr *tar.Header) (e erofs.Entry, err error) {
	parts, err := a.splitName(hdr.Linkname)
	if err != nil {
		return e, invalid(hdr.Name, "hard link: %w", err)
	}
	var target erofs.Entry
	if len(parts) > 0 {
		if dir := a.findDir(parts[:len(parts)-1], true); dir != nil {
			target = dir.Entries[parts[len(parts)-1]]
		}
	} else {
		target.Dir = a.root
	}
	switch {
	case target.Dir != nil:
		return e, invalid(hdr.Name, "hard link to the directory %.300q", hdr.Linkname)
	case target.Inode == nil:
		return e, invalid(hdr.Name, "hard link to %.300q, which does not exist", hdr.Linkname)
	}
	a.w.Link(target.Inode)
	return erofs.Entry{Inode: target.Inode}, nil
}

// meta checks and converts the header's metadata.
func (a *applier) meta(hdr *tar.Header) (m erofs.Meta, err error) {
	if hdr.Uid < 0 || int64(hdr.Uid) > math.MaxUint32 || hdr.Gid < 0 || int64(hdr.Gid) > math.MaxUint32 {
		return m, invalid(hdr.Name, "owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	m = erofs.Meta{
		Mode: uint16(hdr.Mode & 0o7777), UID: uint32(hdr.Uid), GID: uint32(hdr.Gid),
		Mtime: hdr.ModTime.Unix(), MtimeNs: uint32(hdr.ModTime.Nanosecond()),
	}
	total := 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if total += len(name) + len(value); total > a.lim.XattrBytes {
			return m, overLimit(hdr.Name, "extended attributes of more than %d bytes", a.lim.XattrBytes)
		}
		if m.Xattrs == nil {
			m.Xattrs = map[string]string{}
		}
		m.Xattrs[name] = value
	}
	return m, nil
}

// atPath names the entry in an error of the image writer.
func atPath(err error, name string) error {
	if err == nil {
		return nil
	}
	e := storeError(err)
	e.Path = name
	return e
}

// sourceReader remembers an error of what is read, so that it can be told from one of what is written.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
