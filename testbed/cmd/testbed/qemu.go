//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/guest/initramfs"
	"github.com/supermachine/supermachine/testbed/link"
)

// qemu is a running emulated host.
type qemu struct {
	cmd     *exec.Cmd
	control *os.File
	stdin   *os.File
	console console
	ended   chan struct{} // closed when the process is gone
}

// prepareQEMU installs QEMU and returns the path of the emulated host's kernel, which may have to be built.
func (o *options) prepareQEMU() (kernel string, err error) {
	if err := tool(filepath.Join(o.root, "scripts/install-packages"), "qemu-system-x86").Run(); err != nil {
		return "", fmt.Errorf("install QEMU: %w", err)
	}
	if o.kernel != "" {
		return o.kernel, nil
	}
	dir := filepath.Join(o.root, "testbed")
	out, err := tool(filepath.Join(o.root, "guest/kernel/build"), "--patch", filepath.Join(dir, "kernel.patch"), "testbed", filepath.Join(dir, "kernel.config")).Output()
	if err != nil {
		return "", fmt.Errorf("build the emulated host's kernel: %w", err)
	}
	return lastLine(string(out)), nil
}

// startQEMU starts the emulated host. It must be called on the main thread, whose end ends QEMU.
func startQEMU(o *options, kernel string) (*qemu, error) {
	initrd, err := packInitramfs()
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	control, controlPeer, err := socketPair(link.Control)
	if err != nil {
		return nil, err
	}
	defer controlPeer.Close()
	stdin, stdinPeer, err := socketPair(link.Stdin)
	if err != nil {
		return nil, err
	}
	defer stdinPeer.Close()

	q := &qemu{control: control, stdin: stdin, console: console{hung: make(chan struct{})}, ended: make(chan struct{})}
	q.cmd = exec.Command("qemu-system-x86_64",
		// KVM's own emulation of interrupt delivery (vgif) can leave both CPUs asleep for ever.
		// TCG runs "rep movsb" byte by byte: without erms and fsrm Linux copies by words, several times as fast. It also lets a guest's
		// XSETBV pass its hypervisor by, after which KVM has a wrong idea of the guest's XSAVE area.
		"-accel", "tcg,thread=multi", "-cpu", "max,vgif=off,erms=off,fsrm=off,xsave=off", "-smp", strconv.Itoa(o.cpus), "-m", strconv.Itoa(o.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-initrd", "/proc/self/fd/3",
		// With nested paging TCG sometimes leaves a guest twice for one exit; the second time overwrites the guest's state with the host's, and
		// its vCPU stands still for ever. Shadow paging is as fast here.
		"-append", "console=ttyS0 quiet panic=-1 oops=panic printk.time=1 random.trust_cpu=on kvm_amd.npt=0 "+tscParameter(),
		"-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap",
		"-device", "virtio-serial-pci,max_ports=3",
		"-chardev", "socket,id=control,fd=4", "-device", "virtserialport,chardev=control,nr=1,name="+link.Control,
		"-chardev", "socket,id=stdin,fd=5", "-device", "virtserialport,chardev=stdin,nr=2,name="+link.Stdin,
	)
	q.cmd.ExtraFiles = []*os.File{initrd, controlPeer, stdinPeer}
	q.cmd.Stdout, q.cmd.Stderr = &q.console, &q.console
	// A session of its own keeps the terminal's signals away: they are the command's.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		q.cmd.Wait()
		close(q.ended)
	}()
	return q, nil
}

// kill ends the emulated host and waits until it is gone.
func (q *qemu) kill() {
	q.cmd.Process.Kill()
	<-q.ended
}

// tool is a program of the repository whose messages go to stderr.
func tool(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

func lastLine(s string) string {
	s = strings.TrimSuffix(s, "\n")
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// packInitramfs returns a file in memory with the init that lies beside this program.
func packInitramfs() (*os.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(self), "init"))
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	err = initramfs.Write(f, []initramfs.File{
		{Name: "init", Mode: initramfs.TypeRegular | 0o755, Data: data},
		{Name: "dev/console", Mode: initramfs.TypeCharacter | 0o600, Major: 5, Minor: 1},
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// socketPair returns both ends of a stream: ours and QEMU's.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

func (q *qemu) broken(what string) error { return &brokenError{what, q.console.tail(25)} }

// console keeps the end of what QEMU and the emulated host's kernel say.
type console struct {
	mu   sync.Mutex
	text []byte

	hung chan struct{} // closed when the kernel says a second time that it waits for the same grace period
}

// stall finds the grace period in the kernel's complaint. Rarely one of QEMU's CPUs sleeps for ever, as it takes no interrupts any more, and
// the other waits for it. One complaint alone may come of a machine that stood still as a whole.
var stall = regexp.MustCompile(`t=\d+ jiffies,? (g=-?\d+)`)

// maxConsole is how many bytes of it are kept.
const maxConsole = 32 << 10

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, b...)
	if over := len(c.text) - maxConsole; over > 0 {
		c.text = append(c.text[:0], c.text[over:]...)
	}
	c.watch()
	return len(b), nil
}

func (c *console) watch() {
	seen := map[string]bool{}
	for _, m := range stall.FindAllSubmatch(c.text, -1) {
		if seen[string(m[1])] {
			select {
			case <-c.hung:
			default:
				close(c.hung)
			}
		}
		seen[string(m[1])] = true
	}
}

// tail returns the last lines, indented.
func (c *console) tail(lines int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := strings.Split(strings.TrimSpace(string(bytes.ReplaceAll(c.text, []byte("\r"), nil))), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}
