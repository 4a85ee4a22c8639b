package admission

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mount is where a hierarchy of cgroups with memory limits is visible.
type mount struct {
	version int    // 1 or 2
	cgroup  string // which cgroup is at dir, as /proc/self/cgroup names it: not "/" in some containers
	dir     string
}

// cgroupDirs are the directories of the process's own cgroup in one hierarchy, and of the topmost one that is visible.
type cgroupDirs struct {
	version  int
	own, top string
}

// memoryCgroups finds the hierarchies that may limit this process's memory: none, one, or two on hosts that are between versions.
func (h *Host) memoryCgroups() ([]cgroupDirs, error) {
	if h.mounts == nil { // they do not change while a process runs, and the list may be long
		mounts, err := h.readMounts()
		if err != nil {
			return nil, err
		}
		h.mounts = mounts
	}
	if len(h.mounts) == 0 {
		return nil, nil
	}
	content, err := h.read("/proc/self/cgroup") // it may change: service managers move processes
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var dirs []cgroupDirs
	for line := range strings.Lines(string(content)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		version := 0
		switch {
		case parts[0] == "0" && parts[1] == "":
			version = 2
		case slices.Contains(strings.Split(parts[1], ","), "memory"):
			version = 1
		}
		if d, ok := h.locate(version, parts[2]); ok {
			dirs = append(dirs, d)
		}
	}
	return dirs, nil
}

// locate finds the directory of a cgroup. Of several mounts that show it, the one that shows the most of the cgroups above it is taken.
// A mount that does not show it, as seen in some containers, is that of a cgroup above it, as a rule, and better than none.
func (h *Host) locate(version int, cgroup string) (found cgroupDirs, ok bool) {
	most := -1
	for _, m := range h.mounts {
		if m.version != version {
			continue
		}
		below, inside := under(m.cgroup, cgroup)
		if inside && len(below) > most {
			most = len(below)
			found = cgroupDirs{version: version, own: path.Join(m.dir, below), top: m.dir}
		} else if !ok {
			found = cgroupDirs{version: version, own: m.dir, top: m.dir}
		}
		ok = true
	}
	return found, ok
}

// under returns the path from top down to the cgroup, if that leads down only. Both are as the kernel says, seen from the process's
// cgroup namespace: "/.." is outside of it.
func under(top, cgroup string) (string, bool) {
	if !strings.HasPrefix(cgroup, "/") || slices.Contains(strings.Split(top+"/"+cgroup, "/"), "..") {
		return "", false
	}
	top, cgroup = path.Clean(top), path.Clean(cgroup)
	if top == "/" {
		return cgroup, true
	}
	below, ok := strings.CutPrefix(cgroup, top)
	return below, ok && (below == "" || below[0] == '/')
}

// readMounts returns where cgroups are mounted; never nil without an error.
func (h *Host) readMounts() ([]mount, error) {
	mounts := []mount{}
	f, err := os.Open(filepath.Join(h.root, "/proc/self/mountinfo"))
	if errors.Is(err, fs.ErrNotExist) {
		return mounts, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			mounts = append(mounts, m)
		}
	}
	return mounts, lines.Err()
}

// parseMount reads a line of mountinfo: ID, parent, device, root, directory, options, some more fields, "-", type, source and the file
// system's options.
func parseMount(line string) (m mount, ok bool) {
	left, right, _ := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if len(l) < 6 || len(r) < 3 {
		return m, false
	}
	switch {
	case r[0] == "cgroup2":
		m.version = 2
	case r[0] == "cgroup" && slices.Contains(strings.Split(r[2], ","), "memory"):
		m.version = 1
	default:
		return m, false
	}
	m.cgroup, m.dir = unescape(l[3]), path.Clean(unescape(l[4]))
	return m, path.IsAbs(m.cgroup) && path.IsAbs(m.dir)
}

// unescape replaces the octal escapes, such as \040 for a space, in a field of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
