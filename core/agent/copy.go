package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// UnpackOptions say what Unpack and CopyIn make of an archive or a tree in the guest.
type UnpackOptions struct {
	Owners      bool   // keep owners, by number
	Owner       string // else files belong to NAME|UID[:GROUP|GID] of the image's accounts; empty: root
	Setuid      bool   // keep set-user-ID and set-group-ID bits
	Special     bool   // make devices and FIFOs; else they are an error
	SkipSpecial bool   // leave devices and FIFOs out
}

// CopyOutOptions say what CopyOut makes of a tree on the host.
type CopyOutOptions struct {
	Owners        bool  // keep owners, by number, which takes root; else files belong to the caller
	Setuid        bool  // keep set-user-ID and set-group-ID bits
	SkipSpecial   bool  // leave devices and FIFOs out; else they are tree.ErrSpecial
	OneFileSystem bool  // leave out what is mounted in the tree
	MaxBytes      int64 // more than that in all files together is tree.ErrLimit; 0: no limit, and a guest can fill the host's disk
	MaxEntries    int64 // more files and directories than that are tree.ErrLimit; 0: no limit
}

// Pack returns a file or a tree of the guest as a PAX archive: a directory is "./" and what is in it, anything else one entry. A symbolic link is
// packed as one. The archive is the guest's: unpack it as one that is hostile. The reader must be closed; it fails when ctx is done.
func (c *Client) Pack(ctx context.Context, path string, options ...WalkOption) (io.ReadCloser, error) {
	return c.pack(ctx, wire.Pack{Path: path, OneFS: walkOptionsOf(options).oneFS})
}

func (c *Client) pack(ctx context.Context, req wire.Pack) (io.ReadCloser, error) {
	_, r, err := c.receive(ctx, wire.Request{Files: &wire.Files{Pack: &req}})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Unpack unpacks a tar archive into an existing directory of the guest, whose own mode and owner stay. Whatever names and links are in the archive,
// nothing outside of the directory is touched: names that are absolute or have "..", and links in their way that lead out (absolute ones do), are an error. Existing
// files are replaced; a directory is replaced by nothing. After an error a part has been unpacked.
func (c *Client) Unpack(ctx context.Context, path string, r io.Reader, o UnpackOptions) error {
	return c.unpack(ctx, unpackRequest(path, o), r)
}

func unpackRequest(path string, o UnpackOptions) *wire.Unpack {
	return &wire.Unpack{Path: path, Owners: o.Owners, Owner: o.Owner, Setuid: o.Setuid, Special: o.Special, Skip: o.SkipSpecial}
}

func (c *Client) unpack(ctx context.Context, req *wire.Unpack, r io.Reader) error {
	return c.transmit(ctx, wire.Request{Files: &wire.Files{Unpack: req}}, r)
}

// CopyIn copies a file or a tree of the host into the guest, as cp -a does: links are copied as links, modes and times are kept. If guestPath is a
// directory the copy goes into it, under its own name; else guestPath is the copy's name. A hostPath that ends in "/." means what is in the
// directory. Sockets are left out. After an error a part has been copied.
func (c *Client) CopyIn(ctx context.Context, hostPath, guestPath string, o UnpackOptions) error {
	parent, source, err := tree.NewSource(hostPath)
	if err != nil {
		return err
	}
	dir, err := os.Open(parent)
	if err != nil {
		return err
	}
	name := source.Base
	if source.Contents {
		name = "."
	}
	if _, err := os.Lstat(hostPath); err != nil {
		dir.Close()
		return err
	}
	req := unpackRequest(guestPath, o)
	req.Copy, req.Base, req.Whole = true, source.Base, source.Contents
	r, w := io.Pipe()
	go func() {
		defer dir.Close()
		buffered := bufio.NewWriterSize(w, wire.MaxData)
		err := tree.Pack(buffered, dir, name, tree.PackOptions{})
		if err == nil {
			err = buffered.Flush()
		}
		w.CloseWithError(err)
	}()
	err = c.unpack(ctx, req, r)
	r.CloseWithError(io.ErrClosedPipe)
	return err
}

// CopyOut copies a file or a tree of the guest to the host, by the same rule as CopyIn. Nothing in the guest can make the host write outside of the
// copy: names that lead out are tree.ErrUnsafe, devices and FIFOs tree.ErrSpecial, and links are made but never followed out of the copy. They
// point where the guest says: whoever follows them later decides whether to trust that. After an error a part has been copied.
func (c *Client) CopyOut(ctx context.Context, guestPath, hostPath string, o CopyOutOptions) error {
	_, source, err := tree.NewSource(guestPath)
	if err != nil {
		return err
	}
	r, err := c.pack(ctx, wire.Pack{Path: guestPath, Contents: source.Contents, OneFS: o.OneFileSystem})
	if err != nil {
		return err
	}
	defer r.Close()
	return canceled(ctx, extract(r, hostPath, source, tree.Options{
		Owners: o.Owners, Setuid: o.Setuid, Skip: o.SkipSpecial, MaxBytes: o.MaxBytes, MaxEntries: o.MaxEntries, Stop: ctx.Err,
	}))
}

// extract unpacks the guest's archive to its place.
func extract(r io.Reader, hostPath string, source tree.Source, o tree.Options) error {
	buffered := bufio.NewReaderSize(r, wire.MaxData)
	u, err := tree.NewUnpacker(buffered, o)
	if err != nil {
		return err
	}
	if source.Contents && !u.Directory() {
		return fmt.Errorf("%w: the guest sent no directory", wire.ErrProtocol)
	}
	place, err := tree.OpenPlace(hostPath, source, u.Directory())
	if err != nil {
		return err
	}
	defer place.Root.Close()
	if err := u.Extract(place.Root, place.As, place.New); err != nil {
		var e *os.PathError
		if errors.As(err, &e) && !filepath.IsAbs(e.Path) {
			return &os.PathError{Op: "copy to", Path: filepath.Join(place.Dir, printable(e.Path)), Err: e.Err}
		}
		return err
	}
	rest, err := io.Copy(io.Discard, io.LimitReader(buffered, maxPadding))
	if err == nil && rest == maxPadding {
		return fmt.Errorf("%w: data after the archive's end", wire.ErrProtocol)
	}
	return err
}

const maxPadding = 1 << 20 // more than any tar writer adds
