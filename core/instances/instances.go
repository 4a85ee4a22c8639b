// Package instances is the list of the VMs that this user's processes keep running on this host. There is no daemon: each VM has a
// directory, made and locked by the process that owns the VM, so that a process that died in any way is told by its lock.
package instances

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotFound means that no running VM has the ID or name.
var ErrNotFound = errors.New("no such VM is running")

// ErrAmbiguous means that several running VMs match.
var ErrAmbiguous = errors.New("several VMs match")

// ErrNameTaken means that a running VM has the name already.
var ErrNameTaken = errors.New("a running VM has this name already")

// Info is what others may know about a VM.
type Info struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Image     string    `json:"image"`  // the reference it was started with
	Digest    string    `json:"digest"` // of the image's manifest
	Command   []string  `json:"command"`
	Ports     []string  `json:"ports"` // "127.0.0.1:8080->80"
	PID       int       `json:"pid"`   // the process that owns the VM
	Created   time.Time `json:"created"`
	MemoryMiB int       `json:"memory_mib"`
	VCPUs     int       `json:"vcpus"`
	Socket    string    `json:"socket"` // Unix socket that speaks the agent's protocol
}

// Dir returns the directory of the list: "supermachine/vms" in $XDG_RUNTIME_DIR, else in /run for root, else in a directory of the
// user's own in the temporary directory.
func Dir() string {
	base := os.Getenv("XDG_RUNTIME_DIR")
	switch {
	case base != "":
	case os.Geteuid() == 0:
		base = "/run"
	default:
		return filepath.Join(os.TempDir(), fmt.Sprintf("supermachine-%d", os.Geteuid()), "vms")
	}
	return filepath.Join(base, "supermachine", "vms")
}

const (
	lockName = "lock"
	infoName = "info.json"
	// socketName is short: the whole path must fit into the 107 bytes of a Unix address.
	socketName = "agent.sock"
	logName    = "output.log"
	logLimit   = 16 << 20
)

// Instance is the entry of a VM that this process owns.
type Instance struct {
	dir     string
	lock    *os.File
	log     boundedLog
	logOnce sync.Once
}

// Create reserves the entry for VM id. The caller fills it with Publish and removes it with Close.
func Create(dir, id string) (*Instance, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("list VM %s: %w", id, err)
	}
	path := filepath.Join(dir, id)
	if len(filepath.Join(path, socketName)) > 107 {
		return nil, fmt.Errorf("list VM %s: the path %s is too long for a Unix socket; set XDG_RUNTIME_DIR to a shorter one", id, path)
	}
	// Under a hidden name until it is locked: others take an unlocked entry for abandoned.
	hidden := filepath.Join(dir, "."+id)
	if err := os.Mkdir(hidden, 0o700); err != nil {
		return nil, fmt.Errorf("list VM %s: %w", id, err)
	}
	lock, err := os.OpenFile(filepath.Join(hidden, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		os.RemoveAll(hidden)
		return nil, fmt.Errorf("list VM %s: %w", id, err)
	}
	return &Instance{dir: path, lock: lock}, nil
}

// Socket returns the path where the owner is to listen for connections to the VM's agent.
func (i *Instance) Socket() string { return filepath.Join(i.dir, socketName) }

// Log returns the file for what the VM's program writes while nobody is attached. It takes the first 16 MiB; the rest is dropped.
func (i *Instance) Log() io.Writer {
	i.logOnce.Do(func() {
		f, err := os.OpenFile(filepath.Join(i.dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_CLOEXEC, 0o600)
		if err == nil {
			i.log.file = f
		}
	})
	return &i.log
}

// boundedLog is a file that stops growing.
type boundedLog struct {
	mu   sync.Mutex
	file *os.File // nil: everything is dropped
	size int
}

func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := logLimit - l.size; l.file != nil && room > 0 {
		n, _ := l.file.Write(p[:min(room, len(p))])
		l.size += n
	}
	return len(p), nil
}

// OpenLog opens what a running VM's program has written in the background.
func OpenLog(dir string, info Info) (*os.File, error) {
	return os.Open(filepath.Join(dir, info.ID, logName))
}

// Publish makes the VM visible to List and Find. A running VM that has the name already gives ErrNameTaken.
func (i *Instance) Publish(info Info) error {
	all, err := List(filepath.Dir(i.dir))
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Name == info.Name {
			return fmt.Errorf("list VM %s: %q: %w", info.ID, info.Name, ErrNameTaken)
		}
	}
	info.Socket = i.Socket()
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	tmp := filepath.Join(i.dir, "."+infoName)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("list VM %s: %w", info.ID, err)
	}
	return os.Rename(tmp, filepath.Join(i.dir, infoName))
}

// Close removes the entry.
func (i *Instance) Close() error {
	err := os.RemoveAll(i.dir)
	if i.log.file != nil {
		i.log.file.Close()
	}
	return errors.Join(err, i.lock.Close())
}

// List returns the running VMs, oldest first, and removes what dead owners left.
func List(dir string) ([]Info, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	var all []Info
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if st, err := e.Info(); strings.HasPrefix(e.Name(), ".") && (err != nil || time.Since(st.ModTime()) < time.Minute) {
			continue // being created
		}
		if abandoned(path) {
			os.RemoveAll(path)
			continue
		}
		b, err := os.ReadFile(filepath.Join(path, infoName))
		if err != nil {
			continue // not published yet, or just gone
		}
		var info Info
		if json.Unmarshal(b, &info) == nil {
			all = append(all, info)
		}
	}
	sort.Slice(all, func(a, b int) bool { return all[a].Created.Before(all[b].Created) })
	return all, nil
}

// abandoned reports whether the owner of the entry is dead: then its lock can be had.
func abandoned(path string) bool {
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if err != nil {
		return false // being created or removed right now
	}
	defer lock.Close()
	return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// Find returns the running VM that has the name, the ID, or an ID that begins like this.
func Find(dir, name string) (Info, error) {
	all, err := List(dir)
	if err != nil {
		return Info{}, err
	}
	var found []Info
	for _, info := range all {
		if info.ID == name || info.Name == name {
			return info, nil
		}
		if name != "" && strings.HasPrefix(info.ID, name) {
			found = append(found, info)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Info{}, fmt.Errorf("%q: %w", name, ErrNotFound)
	default:
		return Info{}, fmt.Errorf("%q: %w (%d of them)", name, ErrAmbiguous, len(found))
	}
}
