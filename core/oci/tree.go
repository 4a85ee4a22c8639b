package oci

import (
	"path"
	"strings"

	"github.com/supermachine/supermachine/core/oci/erofs"
)

// tree is the image's directory tree while layers are applied to it. The Mark
// of an entry is the number of the last layer that brought or touched it.
type tree struct {
	w     *erofs.Writer
	root  *erofs.Dir
	layer int32
	lim   Limits
}

// maxSymlinks is how many symbolic links one path may lead through, as in Linux.
const maxSymlinks = 40

func newTree(w *erofs.Writer, lim Limits) *tree {
	return &tree{w: w, root: newDir(), lim: lim}
}

// newDir returns a directory as it is made for a missing parent.
func newDir() *erofs.Dir {
	return &erofs.Dir{Meta: erofs.Meta{Mode: 0o755}, Entries: map[string]erofs.Entry{}}
}

// splitName returns the components of an entry's name, none for the root. Names
// are relative to the image's root whether they begin with a slash or not.
func (t *tree) splitName(name string) ([]string, error) {
	if len(name) > t.lim.PathBytes {
		return nil, overLimit(name, "name of %d bytes, %d are allowed", len(name), t.lim.PathBytes)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, invalid(name, "NUL in the name")
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "." {
		return nil, nil
	}
	parts := strings.Split(clean, "/")
	if parts[0] == ".." {
		return nil, invalid(name, "the name leads out of the image")
	}
	if len(parts) > t.lim.Depth {
		return nil, overLimit(name, "%d levels deep, %d are allowed", len(parts), t.lim.Depth)
	}
	for _, p := range parts {
		if len(p) > erofs.MaxName {
			return nil, overLimit(name, "component of %d bytes, %d are allowed", len(p), erofs.MaxName)
		}
	}
	return parts, nil
}

// makeParent returns the directory that the parts lead to, making those that
// are missing. Symbolic links of the same layer are followed; whatever a lower
// layer left in the place of a directory is replaced, as an overlay would.
func (t *tree) makeParent(parts []string) (*erofs.Dir, error) {
	w := walk{stack: []*erofs.Dir{t.root}, rest: parts}
	for w.more() {
		name, ok := w.step()
		if !ok {
			continue
		}
		if len(w.stack) > t.lim.Depth {
			return nil, overLimit(path.Join(parts...), "more than %d levels deep", t.lim.Depth)
		}
		dir := w.dir()
		e, found := dir.Entries[name]
		switch {
		case found && e.Dir != nil:
			if e.Mark != t.layer {
				e.Mark = t.layer
				dir.Entries[name] = e
			}
			w.stack = append(w.stack, e.Dir)
		case found && e.Mark == t.layer && e.Inode.Target != "":
			if !w.follow(e.Inode.Target) {
				return nil, invalid(path.Join(parts...), "more than %d symbolic links", maxSymlinks)
			}
		case found && e.Mark == t.layer:
			return nil, invalid(path.Join(parts...), "%q is not a directory", name)
		default:
			sub := newDir()
			if err := t.put(dir, name, erofs.Entry{Dir: sub}); err != nil {
				return nil, err
			}
			w.stack = append(w.stack, sub)
		}
	}
	return w.dir(), nil
}

// findDir returns the directory that the parts lead to, nil if there is none.
// Links are followed if all is set or the same layer made them.
func (t *tree) findDir(parts []string, all bool) *erofs.Dir {
	w := walk{stack: []*erofs.Dir{t.root}, rest: parts}
	for w.more() {
		name, ok := w.step()
		if !ok {
			continue
		}
		e, found := w.dir().Entries[name]
		switch {
		case found && e.Dir != nil:
			w.stack = append(w.stack, e.Dir)
		case found && e.Inode.Target != "" && (all || e.Mark == t.layer):
			if !w.follow(e.Inode.Target) {
				return nil
			}
		default:
			return nil
		}
	}
	return w.dir()
}

// walk is the state of resolving one path inside the tree; it cannot leave the root.
type walk struct {
	stack []*erofs.Dir
	rest  []string
	links int
}

func (w *walk) more() bool      { return len(w.rest) > 0 }
func (w *walk) dir() *erofs.Dir { return w.stack[len(w.stack)-1] }

// step takes the next component; ok is false if it was handled here.
func (w *walk) step() (name string, ok bool) {
	name, w.rest = w.rest[0], w.rest[1:]
	switch name {
	case "", ".":
		return "", false
	case "..":
		if len(w.stack) > 1 {
			w.stack = w.stack[:len(w.stack)-1]
		}
		return "", false
	}
	return name, true
}

// follow puts a link's target in front of what is left; false if there were too many.
func (w *walk) follow(target string) bool {
	if w.links++; w.links > maxSymlinks {
		return false
	}
	if strings.HasPrefix(target, "/") {
		w.stack = w.stack[:1]
	}
	w.rest = append(strings.Split(target, "/"), w.rest...)
	return true
}

// put makes name in dir the entry, for the current layer. Directories merge: the
// one that is there takes the new one's metadata.
func (t *tree) put(dir *erofs.Dir, name string, e erofs.Entry) error {
	e.Mark = t.layer
	if old, found := dir.Entries[name]; found {
		if old.Dir != nil && e.Dir != nil {
			old.Dir.Meta = e.Dir.Meta
			e.Dir = old.Dir
		} else if err := t.discard(old); err != nil {
			return err
		}
	}
	dir.Entries[name] = e
	return nil
}

// hide applies a whiteout: name goes, except for what the current layer brought.
func (t *tree) hide(dir *erofs.Dir, name string) error {
	e, found := dir.Entries[name]
	switch {
	case !found:
		return nil
	case e.Mark != t.layer:
		delete(dir.Entries, name)
		return t.discard(e)
	case e.Dir != nil:
		return t.hideAll(e.Dir)
	}
	return nil
}

// hideAll applies an opaque marker: everything of lower layers below dir goes.
func (t *tree) hideAll(dir *erofs.Dir) error {
	for name := range dir.Entries {
		if err := t.hide(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// discard gives up an entry and all below it.
func (t *tree) discard(e erofs.Entry) error {
	if e.Inode != nil {
		return t.w.Discard(e.Inode)
	}
	for _, child := range e.Dir.Entries {
		if err := t.discard(child); err != nil {
			return err
		}
	}
	return nil
}
