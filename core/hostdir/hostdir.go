// Package hostdir serves one directory of the host to a guest that does not have to be trusted, as a FUSE file system (protocol 7.28, as Linux
// speaks it). The device that carries the requests is core/virtio/fs.
//
// Every file is reached from a descriptor of its directory by one component of a path, with openat2 and RESOLVE_BENEATH, and without following
// symbolic links; what is done to it then is done through that descriptor. So neither the guest nor a host program that swaps directories and links
// at any moment can make the server touch a file outside. A directory that a host program moves out of the tree stays reachable to a
// guest that already knows it, as to any program that has it open. FIFOs, sockets and device nodes are never opened on the host.
//
// # Descriptors
//
// The guest's kernel remembers as many files as its memory allows, and each has a node here. A node keeps an O_PATH descriptor, and the
// session closes those used least recently when it has Options.MaxFiles; a node that is needed again is opened by its parent and name and must be
// the same inode (device, number, mount and time of birth), or else the request fails with ESTALE, upon which Linux looks the path up
// anew. Refusing further files instead (ENFILE) would be simpler, but a tree of node_modules alone has more files than a process may have
// descriptors. Open files, and removed ones that the guest still refers to, keep theirs: when nothing can be closed, the answer is ENFILE.
package hostdir

import (
	"errors"
	"fmt"
	"time"
)

// Policy says what becomes of symbolic and hard links.
type Policy uint8

const (
	// Opaque lets the guest make symbolic and hard links, whose targets are bytes that the host never follows. A link that it did not make and that
	// leads out of the directory is refused with EACCES when it is looked up; links that stay inside, dangling or not, are links to the guest too.
	// A Dir remembers up to 65536 links that guests made: older ones, and those of an earlier Dir, count as the host's.
	Opaque Policy = iota
	// Deny is Opaque, but the guest can make no links of either kind (EPERM).
	Deny
	// Follow shows a link that leads out of the directory as what it leads to, which is then as reachable to the guest as what is inside. It is for trees
	// whose links can be trusted. The guest can only make links that lead to a place inside, seen from where they are, and can only move links and
	// directories to where this stays so: directories between parents not at all (EXDEV, upon which mv copies).
	Follow
)

var policies = [...]string{Opaque: "opaque", Deny: "deny", Follow: "follow"}

// String returns the policy's name: opaque, deny or follow.
func (p Policy) String() string {
	if int(p) < len(policies) {
		return policies[p]
	}
	return fmt.Sprintf("Policy(%d)", uint8(p))
}

// ParsePolicy returns the policy of that name, Opaque for the empty one.
func ParsePolicy(s string) (Policy, error) {
	for p, name := range policies {
		if s == name {
			return Policy(p), nil
		}
	}
	if s == "" {
		return Opaque, nil
	}
	return 0, fmt.Errorf("links policy %q is none of opaque, deny and follow", s)
}

// IDs says how owners appear to the guest and are set by it.
type IDs uint8

const (
	// Squash shows what the host process's effective user or group owns as Options.UID or GID, and everything else as Nobody. What the guest makes
	// belongs to the host process; changing the owner to Options.UID and GID does nothing, to any other fails with EPERM. Setuid and setgid
	// bits are neither shown nor set: they are masked out of every mode without an error, since tar and cp set them in passing.
	Squash IDs = iota
	// Identity passes ids through both ways, and what the guest makes belongs to the guest's caller: it needs a host process with CAP_CHOWN, CAP_FOWNER and
	// CAP_DAC_OVERRIDE. A guest can so make setuid programs of the host's root in the directory.
	Identity
)

// Nobody is the owner that Squash shows for files of others (the kernel's overflowuid).
const Nobody = 65534

// Defaults and limits of Options.
const (
	DefaultValidity = time.Second
	DefaultMaxFiles = 16384 // or a quarter of RLIMIT_NOFILE, if that is less
	DefaultMaxNodes = 1 << 20
	MinFiles        = 16
)

// Options says how a directory is served. The zero value is writable, Opaque and Squash to guest root.
type Options struct {
	ReadOnly bool   // everything that changes something fails with EROFS
	Symlinks Policy // what becomes of links
	IDs      IDs    // how owners are mapped
	UID, GID uint32 // Squash: the guest's ids for what belongs to the host process

	// Validity is how long the guest may use a name or attributes without asking again, so how late it may see changes made on the host; 0 means
	// DefaultValidity, negative not at all. That a name does not exist is never kept.
	Validity time.Duration

	// MaxFiles bounds a session's descriptors, at least MinFiles; 0 means DefaultMaxFiles. MaxNodes bounds the files that the guest may refer to
	// at once, some 300 bytes each; beyond, looking up another one fails with ENFILE. 0 means DefaultMaxNodes.
	MaxFiles, MaxNodes int
}

// Errors of Open, wrapped in an *OpenError. A missing directory matches fs.ErrNotExist.
var (
	ErrUnsupported  = errors.New("directories can only be shared from Linux 5.8 or later with /proc mounted")
	ErrNotDirectory = errors.New("not a directory")
	ErrOptions      = errors.New("options out of range")
)

// OpenError says why a directory cannot be served.
type OpenError struct {
	Path string // as given to Open
	Err  error
}

func (e *OpenError) Error() string { return fmt.Sprintf("share directory %q: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Err }

// withDefaults checks o and fills in what is zero; files is the process's limit on descriptors.
func (o Options) withDefaults(files uint64) (Options, error) {
	switch {
	case o.Symlinks > Follow || o.IDs > Identity:
		return o, fmt.Errorf("%w: unknown policy %d or id mapping %d", ErrOptions, o.Symlinks, o.IDs)
	case o.MaxFiles != 0 && o.MaxFiles < MinFiles:
		return o, fmt.Errorf("%w: MaxFiles %d is less than %d", ErrOptions, o.MaxFiles, MinFiles)
	case o.MaxNodes < 0:
		return o, fmt.Errorf("%w: MaxNodes %d", ErrOptions, o.MaxNodes)
	}
	if o.MaxFiles == 0 {
		o.MaxFiles = int(max(min(files/4, DefaultMaxFiles), MinFiles))
	}
	if o.MaxNodes == 0 {
		o.MaxNodes = DefaultMaxNodes
	}
	if o.Validity == 0 {
		o.Validity = DefaultValidity
	}
	o.Validity = max(o.Validity, 0)
	return o, nil
}
