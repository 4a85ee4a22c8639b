package agent

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// user is whom a program runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// Bounds on what an image's account files may cost.
const (
	maxAccountFile = 8 << 20
	maxAccountLine = 64 << 10
	maxGroups      = 1 << 16 // NGROUPS_MAX
)

// lookupUser resolves NAME|UID[:GROUP|GID] by the container's /etc/passwd and /etc/group, on a thread that is inside. A number need not
// be in the files.
func lookupUser(spec string) (user, error) {
	passwd, err := openAccounts("/etc/passwd")
	if err != nil {
		return user{}, err
	}
	defer passwd.Close()
	group, err := openAccounts("/etc/group")
	if err != nil {
		return user{}, err
	}
	defer group.Close()
	return resolveUser(spec, passwd, group)
}

// accounts is an open account file, fd -1 for none. It goes without os.File, whose poller such files know nothing of: every exec reads two of them.
type accounts struct{ fd int }

// openAccounts opens a file that may be missing, or be something else than a file, which is as good as empty.
func openAccounts(path string) (*accounts, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		if kind := kindOf(err); kind == wire.KindNotFound || kind == wire.KindInvalid {
			return &accounts{-1}, nil
		}
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var info unix.Stat_t
	if unix.Fstat(fd, &info) != nil || info.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		fd = -1
	}
	return &accounts{fd}, nil
}

// Read implements io.Reader.
func (a *accounts) Read(p []byte) (int, error) {
	if a.fd < 0 {
		return 0, io.EOF
	}
	for {
		n, err := unix.Read(a.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Close implements io.Closer.
func (a *accounts) Close() error {
	if a.fd < 0 {
		return nil
	}
	return unix.Close(a.fd)
}

func resolveUser(spec string, passwd, group io.Reader) (user, error) {
	name, groupName, _ := strings.Cut(spec, ":")
	hasGroup := groupName != ""
	if name == "" {
		name = "0"
	}
	u := user{home: "/"}
	uid, numErr := parseID(name)
	u.uid = uid
	found := false
	login := name
	scanAccounts(passwd, 7, func(f []string) bool {
		id, err := parseID(f[2])
		if err != nil || f[0] != name && (numErr != nil || id != uid) {
			return true
		}
		gid, err := parseID(f[3])
		if err != nil {
			return true
		}
		found, login = true, f[0]
		u.uid, u.gid, u.home = id, gid, firstOf(f[5], "/")
		return false
	})
	if !found && numErr != nil {
		return u, &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf("user %q is not in the image's /etc/passwd", name)}
	}
	if u.uid == 0 && !found {
		u.home = "/root"
	}
	gid, gidErr := parseID(groupName)
	if hasGroup && gidErr == nil {
		u.gid = gid
	}
	groupFound := !hasGroup || gidErr == nil
	scanAccounts(group, 4, func(f []string) bool {
		id, err := parseID(f[2])
		if err != nil {
			return true
		}
		switch {
		case hasGroup && f[0] == groupName && !groupFound:
			u.gid, groupFound = id, true
		case !hasGroup && found && len(u.groups) < maxGroups:
			for _, member := range strings.Split(f[3], ",") {
				if member == login {
					u.groups = append(u.groups, id)
					break
				}
			}
		}
		return true
	})
	if !groupFound {
		return u, &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf("group %q is not in the image's /etc/group", groupName)}
	}
	return u, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange // -1 means "unchanged" to the kernel
	}
	return uint32(n), err
}

var lineReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}

// scanAccounts calls f with the fields of every line that has at least n of them, until it returns false. Lines of absurd length are left out.
func scanAccounts(r io.Reader, n int, f func([]string) bool) {
	br := lineReaders.Get().(*bufio.Reader)
	br.Reset(io.LimitReader(r, maxAccountFile))
	defer func() {
		br.Reset(nil)
		lineReaders.Put(br)
	}()
	var line []byte
	for {
		part, more, err := br.ReadLine()
		if err != nil {
			return
		}
		if len(line) <= maxAccountLine {
			line = append(line, part...)
		}
		if more {
			continue
		}
		if fields := strings.Split(string(line), ":"); len(line) <= maxAccountLine && len(fields) >= n && !f(fields) {
			return
		}
		line = line[:0]
	}
}
