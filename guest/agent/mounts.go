package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// mounted are the file systems that the host has given to this guest, in the order of their mounting.
type mounted struct {
	mu   sync.Mutex
	list []wire.FileSystem

	network string // the interface that is up; empty: none
}

// setUp brings up what the host has given to this guest.
func (s *Server) setUp(m *wire.Mount) error {
	if err := s.setNetwork(m.Network); err != nil {
		return err
	}
	return s.mount(m.FileSystems)
}

// mount mounts file systems of the host's in the workload's root. After an error none of them is mounted.
func (s *Server) mount(list []wire.FileSystem) (err error) {
	if len(list) > wire.MaxFileSystems {
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%d file systems, at most %d can be mounted", len(list), wire.MaxFileSystems)}
	}
	a := &s.mounted
	a.mu.Lock()
	defer a.mu.Unlock()
	before := len(a.list)
	defer func() {
		if err != nil {
			s.unmount(a.list[before:], unix.MNT_DETACH)
			a.list = a.list[:before]
		}
	}()
	for _, one := range list {
		if err := s.mountOne(one); err != nil {
			return fmt.Errorf("mount %s %s: %w", one.Kind, one.Target, err)
		}
		a.list = append(a.list, one)
	}
	return nil
}

func (s *Server) mountOne(a wire.FileSystem) (err error) {
	if err := checkPath(a.Target); err != nil {
		return err
	}
	device, err := bindDevice(a.Slot)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unbindDevice(a.Slot)
		}
	}()
	var root int
	switch a.Kind {
	case wire.FSVolume:
		var node string
		if node, err = blockNode(device); err != nil {
			return err
		}
		root, err = openMount("ext4", node, a.ReadOnly, unix.MOUNT_ATTR_NODEV)
	case wire.FSMount:
		if root, err = openMount("virtiofs", a.Tag, a.ReadOnly, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID); err == nil {
			readAhead(root)
		}
	default:
		err = &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("this agent knows no %q to mount", a.Kind)}
	}
	if err != nil {
		return err
	}
	defer unix.Close(root)
	s.threads.do(func() { err = moveMount(root, a) })
	return err
}

// readAhead has the kernel ask for as much as fits into one request, where it would ask for 128 KiB.
func readAhead(root int) {
	var st unix.Stat_t
	if unix.Fstat(root, &st) == nil {
		os.WriteFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)), []byte("1024"), 0)
	}
}

// moveMount puts a mount in its place, on a thread in the container.
func moveMount(root int, a wire.FileSystem) error {
	if err := os.MkdirAll(a.Target, 0o755); err != nil {
		return err
	}
	if a.Fresh {
		if err := adoptOwner(root, a.Target); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, a.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount on", Path: a.Target, Err: err}
	}
	return nil
}

// adoptOwner gives a new file system's root to whom the image wants to own the directory, and leaves it empty: many a program takes no other
// directory for its data.
func adoptOwner(root int, target string) error {
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return &os.PathError{Op: "stat", Path: target, Err: err}
	}
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the new file system: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Unlinkat(fd, "lost+found", unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return fmt.Errorf("empty the new file system: %w", err)
	}
	if err := errors.Join(unix.Fchown(fd, int(st.Uid), int(st.Gid)), unix.Fchmod(fd, st.Mode&0o7777)); err != nil {
		return fmt.Errorf("give the new file system its owner: %w", err)
	}
	return nil
}

// openMount makes a mount that is nowhere yet, in the agent's own namespaces, and returns a descriptor of its root.
func openMount(fstype, source string, readOnly bool, attr int) (int, error) {
	bad := func(step string, err error) (int, error) {
		return -1, fmt.Errorf("%s %s file system: %w", step, fstype, err)
	}
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return bad("open the", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return bad("find the", err)
	}
	if readOnly {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return bad("read the", err)
		}
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return bad("read the", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return bad("mount the", err)
	}
	return fd, nil
}

// revokeMounts takes away what the guest had that this one was copied from: its devices lead nowhere here. What the workload has
// open there fails from now on.
func (s *Server) revokeMounts() {
	a := &s.mounted
	a.mu.Lock()
	defer a.mu.Unlock()
	s.unmount(a.list, unix.MNT_DETACH)
	for _, one := range a.list {
		unbindDevice(one.Slot)
	}
	a.list = nil
}

// unmountAll leaves the file systems clean, once nothing of the workload runs any more.
func (s *Server) unmountAll() {
	a := &s.mounted
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) == 0 {
		return
	}
	if s.init != nil {
		select { // or its mounts are in use
		case <-s.emptied:
		case <-time.After(resultsTime):
		}
	}
	s.unmount(a.list, 0)
	a.list = nil
}

// unmount takes mounts away, the last one first, as one may be inside another.
func (s *Server) unmount(list []wire.FileSystem, flags int) {
	for i := len(list) - 1; i >= 0; i-- {
		s.threads.do(func() {
			if unix.Unmount(list[i].Target, flags|unix.UMOUNT_NOFOLLOW) != nil {
				unix.Unmount(list[i].Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
		})
	}
}

const driverDir = "/sys/bus/platform/drivers/virtio-mmio"

func deviceName(slot int) string { return fmt.Sprintf("virtio-mmio.%d", slot) }

// bindDevice has the kernel look again at a place on the board, unless it found something there at boot, and returns the device's directory in
// sysfs.
func bindDevice(slot int) (string, error) {
	name := deviceName(slot)
	if err := os.WriteFile(driverDir+"/bind", []byte(name), 0); err != nil && !errors.Is(err, unix.EBUSY) {
		return "", fmt.Errorf("find the device in slot %d: %w", slot, err)
	}
	found, err := filepath.Glob(driverDir + "/" + name + "/virtio*")
	if err != nil || len(found) != 1 {
		unbindDevice(slot)
		return "", &wire.Error{Kind: wire.KindIO, Message: fmt.Sprintf("the device in slot %d has no driver", slot)}
	}
	return found[0], nil
}

func unbindDevice(slot int) { os.WriteFile(driverDir+"/unbind", []byte(deviceName(slot)), 0) }

// blockNode returns the device node of the disk behind a virtio device. The kernel has made it before bind returned (devtmpfs).
func blockNode(device string) (string, error) {
	found, err := filepath.Glob(device + "/block/*")
	if err != nil || len(found) != 1 {
		return "", &wire.Error{Kind: wire.KindIO, Message: "the volume's device is no disk"}
	}
	return "/dev/" + path.Base(found[0]), nil
}
