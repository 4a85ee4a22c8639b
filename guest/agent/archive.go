package agent

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// pack sends a tree or a file as an archive.
func (st *stream) pack(req *wire.Pack) error {
	name, err := cleanPath("pack", req.Path)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	if req.Contents || base == "" || base == "." || base == ".." {
		dir, base = name, "."
	}
	f, err := st.openDir("pack", name, dir, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	var s unix.Stat_t
	if err := unix.Fstatat(int(f.Fd()), base, &s, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "pack", Path: name, Err: err}
	}
	st.reply(wire.Reply{})
	w := bufio.NewWriterSize(st.out, wire.MaxData)
	if err := tree.Pack(w, f, base, tree.PackOptions{OneFS: req.OneFS, Stop: st.stopped}); err != nil {
		return under("pack", name, err)
	}
	return w.Flush()
}

// unpack unpacks an archive.
func (st *stream) unpack(req *wire.Unpack) error {
	const op = "unpack"
	o := tree.Options{Owners: req.Owners, Setuid: req.Setuid, Special: req.Special, Skip: req.Skip, Stop: st.stopped}
	place := tree.Place{Dir: req.Path}
	err := st.onPath(op, req.Path, func(name string) error {
		u, err := owner(req.Owner)
		if err != nil {
			return err
		}
		if u != nil {
			o.UID, o.GID = int(u.uid), int(u.gid)
		}
		if !req.Copy {
			place.Root, err = os.OpenRoot(name)
			return notDirectory(op, name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer func() {
		if place.Root != nil {
			place.Root.Close()
		}
	}()
	u, err := tree.NewUnpacker(st.in, o)
	if err != nil {
		return under(op, req.Path, err)
	}
	if req.Copy {
		if strings.ContainsAny(req.Base, "/\x00") || (req.Base == "" || req.Base == "." || req.Base == "..") && !req.Whole {
			return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("copy to %s: %q is no name for the copy", req.Path, req.Base)}
		}
		err := st.inside(func() (err error) {
			place, err = tree.OpenPlace(req.Path, tree.Source{Base: req.Base, Contents: req.Whole}, u.Directory())
			return err
		})
		if err != nil {
			return err
		}
	}
	return under(op, place.Dir, u.Extract(place.Root, place.As, place.New))
}
