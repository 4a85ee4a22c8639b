package core

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/supermachine/supermachine/core/hostdir"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/fs"
)

// Mount is a directory of the host that a guest sees (virtio-fs).
type Mount struct {
	Dir      string // on the host; it must exist
	Path     string // where the guest finds it: absolute, made if it is missing
	ReadOnly bool
	Symlinks Symlinks // default: SymlinksOpaque

	// UID and GID are the guest's owner of what belongs to the host process's user: everything that the guest makes there. What belongs to others is
	// nobody's. By default it is root.
	UID, GID uint32
	// Identity passes owners through by number instead, both ways. It takes a host process that may change owners, and lets a guest make
	// setuid programs in the directory.
	Identity bool
}

// Symlinks is what becomes of symbolic links in a Mount.
type Symlinks = hostdir.Policy

// The values of Symlinks.
const (
	SymlinksOpaque = hostdir.Opaque // the guest makes links, which the host never follows; links of the host that lead out of the directory are refused
	SymlinksDeny   = hostdir.Deny   // besides, the guest can make no links at all
	SymlinksFollow = hostdir.Follow // links of the host that lead out of the directory are followed: for trusted trees
)

// ParseMount reads HOST_DIR:GUEST_PATH[:ro][:symlinks=opaque|deny|follow][:uid=N][:gid=N][:ids=identity].
func ParseMount(s string) (Mount, error) {
	m := Mount{}
	var options []string
	var err error
	if m.Dir, m.Path, options, err = splitAttachment(s, "mount", "DIR:/PATH[:ro][:symlinks=deny]"); err != nil {
		return m, err
	}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case o == "ro":
			m.ReadOnly = true
		case key == "symlinks":
			if m.Symlinks, err = hostdir.ParsePolicy(value); err != nil {
				return m, badAttachment("mount", s, err.Error())
			}
		case key == "uid" || key == "gid":
			id, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return m, badAttachment("mount", s, o+" is not a number")
			}
			if key == "uid" {
				m.UID = uint32(id)
			} else {
				m.GID = uint32(id)
			}
		case o == "ids=identity":
			m.Identity = true
		default:
			return m, badAttachment("mount", s, fmt.Sprintf("there is no option %q; ro, symlinks=, uid=, gid= and ids=identity are", o))
		}
	}
	return m, nil
}

// openMount returns the device of a mount, and its tag; i tells mounts of one VM apart.
func openMount(m Mount, i int) (virtio.Device, string, error) {
	o := hostdir.Options{ReadOnly: m.ReadOnly, Symlinks: m.Symlinks, UID: m.UID, GID: m.GID}
	if m.Identity {
		o.IDs = hostdir.Identity
	}
	dir, err := hostdir.Open(m.Dir, o)
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", &Error{Code: ErrNotFound, Op: "mount", Object: m.Dir, Err: errors.New("there is no such directory")}
	}
	if err != nil {
		return nil, "", err
	}
	tag := "mount" + strconv.Itoa(i)
	dev, err := fs.New(fs.Config{Tag: tag, NewSession: func() fs.Handler { return dir.NewSession() }, Closed: dir.Close})
	if err != nil {
		dir.Close()
		return nil, "", err
	}
	return dev, tag, nil
}
