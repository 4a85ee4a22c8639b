package admission

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Host tells how much memory this process may still use. Its methods may be called from any goroutine.
type Host struct {
	root string

	mu     sync.Mutex
	mounts []mount         // nil until they are known
	buf    [128 << 10]byte // for the file that is being read; the longest has a path of up to 4 KiB for each cgroup hierarchy
}

// NewHost returns the host whose /proc and /sys are in the directory root: "/", or a test's.
func NewHost(root string) *Host { return &Host{root: root} }

var thisHost = NewHost("/")

// Headroom is that of the host this process runs on.
func Headroom() (bytes int64, source string, err error) { return thisHost.Headroom() }

// Headroom returns how many bytes this process can come to use before the kernel has to kill or throttle something, and the limit that
// says so: the least of the host's available memory and of what each cgroup from the process's own up to the root leaves, version 1 or
// 2. Page cache that is easily dropped counts as free; swap does not count. It reads some files in /proc and /sys, some 100 µs. A
// file that cannot be understood is an error; a cgroup without limit, or without files, is not.
func (h *Host) Headroom() (bytes int64, source string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	bytes, source, err = h.headroom()
	if err != nil {
		return 0, "", fmt.Errorf("admission: measure free memory: %w", err)
	}
	return bytes, source, nil
}

const memInfo = "/proc/meminfo"

func (h *Host) headroom() (int64, string, error) {
	available, err := h.field(memInfo, "MemAvailable:")
	if err != nil {
		return 0, "", err
	}
	if available > math.MaxInt64>>10 {
		return 0, "", fmt.Errorf("%s: MemAvailable of %d KiB is too large", memInfo, available)
	}
	least, source := available<<10, "MemAvailable of "+memInfo
	dirs, err := h.memoryCgroups()
	if err != nil {
		return 0, "", err
	}
	for _, c := range dirs {
		// From the process's own cgroup to the topmost one that is visible.
		for dir := c.own; ; dir = path.Dir(dir) {
			free, file, err := h.left(dir, c.version)
			if err != nil {
				return 0, "", err
			}
			if file != "" && free < least {
				least, source = free, file
			}
			if dir == c.top {
				break
			}
		}
	}
	return least, source, nil
}

// memoryFiles are the names that a version of cgroups has.
type memoryFiles struct {
	limits       []string
	usage        string
	inactiveFile string // the field of memory.stat that includes the cgroups below
}

var filesOf = map[int]memoryFiles{
	1: {[]string{"memory.limit_in_bytes"}, "memory.usage_in_bytes", "total_inactive_file"},
	2: {[]string{"memory.max", "memory.high"}, "memory.current", "inactive_file"},
}

// unlimited is the least value that is no limit: version 1 says so with the largest multiple of the page size.
const unlimited = 1 << 62

// left returns what a cgroup leaves and the file with its limit, "" if it has none.
func (h *Host) left(dir string, version int) (free int64, file string, err error) {
	names := filesOf[version]
	limit := int64(unlimited)
	for _, name := range names.limits {
		p := path.Join(dir, name)
		v, err := h.number(p)
		if errors.Is(err, fs.ErrNotExist) { // the root cgroup, or one without memory controller
			continue
		}
		if err != nil {
			return 0, "", err
		}
		if v < limit {
			limit, file = v, p
		}
	}
	if file == "" {
		return 0, "", nil
	}
	used, err := h.number(path.Join(dir, names.usage))
	if err != nil {
		return 0, "", err
	}
	cache, err := h.field(path.Join(dir, "memory.stat"), names.inactiveFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // without it, all that is used counts
		return 0, "", err
	}
	return max(0, limit-max(0, used-cache)), file, nil
}

// number reads a file that holds one number, or "max".
func (h *Host) number(name string) (int64, error) {
	content, err := h.read(name)
	if err != nil {
		return 0, err
	}
	text := string(bytes.TrimSpace(content))
	if text == "max" {
		return math.MaxInt64, nil
	}
	return parse(name, text)
}

// field reads the number after a name at the beginning of a line. It is an fs.ErrNotExist if there is no file or no such line.
func (h *Host) field(name, field string) (int64, error) {
	content, err := h.read(name)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(content) {
		words := bytes.Fields(line)
		if len(words) >= 2 && string(words[0]) == field {
			return parse(name, string(words[1]))
		}
	}
	return 0, fmt.Errorf("%s has no %s: %w", name, strings.TrimSuffix(field, ":"), fs.ErrNotExist)
}

func parse(name, text string) (int64, error) {
	v, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%s: %.40q is not a number of bytes", name, text)
	}
	return int64(v), nil
}

// read returns the content of a file, valid until the next read. It makes three system calls, half of what os.ReadFile does.
func (h *Host) read(name string) ([]byte, error) {
	fd, err := retry(func() (int, error) { return unix.Open(filepath.Join(h.root, name), unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for n < len(h.buf) {
		m, err := retry(func() (int, error) { return unix.Read(fd, h.buf[n:]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if m == 0 {
			return h.buf[:n], nil
		}
		n += m
	}
	return nil, fmt.Errorf("%s is longer than %d bytes", name, len(h.buf))
}

func retry(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return n, err
		}
	}
}
