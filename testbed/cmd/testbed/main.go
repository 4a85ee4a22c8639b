//go:build linux

// Command testbed runs a command where KVM works: on this machine if it does here, otherwise in an emulated host that QEMU makes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/testbed/link"
)

// Exit statuses that are not the command's.
const (
	exitUsage      = 2
	exitTimeLimit  = 124 // as timeout(1)
	exitBroken     = 125 // the testbed failed
	exitCannotRun  = 126 // as a shell
	exitNotFound   = 127 // as a shell
	exitSignalBase = 128
)

// forwarded are the signals that the command gets instead of this program.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// options are what the command line asks for.
type options struct {
	root      string
	memory    int
	cpus      int
	timeLimit float64
	again     int
	kernel    string
	emulated  bool
	terminal  bool
	shares    list
	command   []string
}

type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(s string) error {
	p, err := filepath.Abs(s)
	*l = append(*l, p)
	return err
}

func main() {
	// The kernel ends QEMU when the thread that started it ends; the main thread lives as long as the process.
	runtime.LockOSThread()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		os.Exit(exitUsage)
	}
	status, err := run(o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testbed: %v\n", err)
	}
	os.Exit(status)
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("testbed/run", flag.ContinueOnError)
	f.StringVar(&o.root, "root", ".", "`directory` of the repository")
	f.IntVar(&o.memory, "mem", 4096, "memory of the emulated host in `MiB`")
	f.IntVar(&o.cpus, "cpus", 2, "`number` of the emulated host's CPUs")
	f.Float64Var(&o.timeLimit, "time-limit", 0, "end the command after this many `seconds`; 0 never does")
	f.IntVar(&o.again, "again", 0, "run the command again, without its standard input, up to `N` times if the emulated host itself hangs or dies")
	f.StringVar(&o.kernel, "kernel", "", "`file` with the emulated host's kernel; built if not given")
	f.BoolVar(&o.emulated, "emulated", false, "use the emulated host even if KVM works here")
	f.BoolVar(&o.terminal, "t", false, "give the command a terminal in the emulated host if standard input is one")
	f.Var(&o.shares, "share", "`path` below "+strings.Join(link.TempDirs, ", ")+" that is this machine's in the emulated host too")
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "usage: testbed/run [options] -- COMMAND [ARGUMENT…]\n\n"+
			"Runs COMMAND on this machine if KVM works here, otherwise in an emulated host that sees this machine's files.\n"+
			"The exit status is the command's, 128+n if signal n ended it, %d at the time limit and %d if the testbed failed.\n\n",
			exitTimeLimit, exitBroken)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.command = f.Args()
	if len(o.command) == 0 || o.memory < 256 || o.cpus < 1 || o.timeLimit < 0 || o.again < 0 {
		f.Usage()
		return nil, errors.New("bad usage")
	}
	return o, nil
}

func run(o *options) (int, error) {
	path, err := exec.LookPath(o.command[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		if errors.Is(err, fs.ErrPermission) {
			return exitCannotRun, err
		}
		return exitNotFound, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return exitBroken, err
	}
	if !o.emulated && usableKVM() {
		fmt.Fprintln(os.Stderr, "testbed: KVM works here: running on this machine")
		return runHere(o, path)
	}
	if runtime.GOARCH != "amd64" {
		return exitBroken, fmt.Errorf("no usable KVM here, and the emulated host is made for amd64 only, not for %s", runtime.GOARCH)
	}
	fmt.Fprintln(os.Stderr, "testbed: no usable KVM here: running in the emulated host")
	return emulate(o, path)
}

// usableKVM says whether ordinary guests run here. On amd64 an open device is not enough: without the CPU's own virtualization KVM
// interprets a guest's kernel, which no Linux survives.
func usableKVM() bool {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	if runtime.GOARCH != "amd64" {
		return true
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if strings.HasPrefix(line, "flags") {
			words := strings.Fields(line)
			return slices.Contains(words, "vmx") || slices.Contains(words, "svm")
		}
	}
	return false
}

// runHere runs the command on this machine.
func runHere(o *options, path string) (int, error) {
	if o.timeLimit == 0 {
		return exitCannotRun, syscall.Exec(path, o.command, os.Environ())
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	cmd := exec.Command(path)
	cmd.Args = o.command
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if isTerminal(0) {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, 0
	}
	if err := cmd.Start(); err != nil {
		return exitCannotRun, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := time.After(o.limit())
	for {
		select {
		case s := <-signals:
			unix.Kill(-cmd.Process.Pid, s.(syscall.Signal))
		case <-limit:
			unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			<-ended
			return exitTimeLimit, o.limitError()
		case <-ended:
			ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if ws.Signaled() {
				return exitSignalBase + int(ws.Signal()), nil
			}
			return ws.ExitStatus(), nil
		}
	}
}

func (o *options) limit() time.Duration { return time.Duration(o.timeLimit * float64(time.Second)) }

func (o *options) limitError() error {
	return fmt.Errorf("%s: ended at the time limit of %v s", o.command[0], o.timeLimit)
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}
