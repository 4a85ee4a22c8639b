package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
)

// The tests run the server natively, against a container made of this machine's namespaces and busybox. containerEnv makes the
// test binary that container's PID 1.
const containerEnv = "AGENT_TEST_CONTAINER"

func TestMain(m *testing.M) {
	if root := os.Getenv(containerEnv); root != "" {
		signal.Ignore()
		if err := enterTestRoot(root); err != nil {
			fmt.Fprint(os.NewFile(3, "status"), err)
			os.Exit(1)
		}
		unix.Close(3)
		for {
			unix.Pause()
		}
	}
	// nohup and shells' background jobs start this process with signals ignored, which the programs of the tests would inherit. PID 1 of a
	// guest inherits nothing.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	os.Exit(m.Run())
}

// enterTestRoot makes root the root of this mount namespace.
func enterTestRoot(root string) error {
	at := func(p string) string { return filepath.Join(root, p) }
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{root, root, "", unix.MS_BIND, ""},
		{"proc", at("proc"), "proc", 0, ""},
		{"tmpfs", at("dev"), "tmpfs", 0, "mode=0755"},
		{"tmpfs", at("small"), "tmpfs", 0, "size=64k"},
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5} {
		if err := unix.Mknod(at("dev/"+name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
		unix.Chmod(at("dev/"+name), 0o666)
	}
	os.Symlink("/proc/self/fd/1", at("dev/stdout"))
	os.Mkdir(at("dev/pts"), 0o755)
	if err := unix.Mount("devpts", at("dev/pts"), "devpts", 0, "newinstance,ptmxmode=0666"); err != nil {
		return fmt.Errorf("mount devpts: %w", err)
	}
	if err := unix.PivotRoot(root, at("old")); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// testRoot makes a root file system: busybox, if wanted, and a few accounts.
func testRoot(t testing.TB, programs bool) string {
	root := t.TempDir()
	for _, dir := range []string{"bin", "proc", "dev", "etc", "old", "tmp", "small", "home/app"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky))
	for name, content := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\napp:x:1000:100:App:/home/app:/bin/sh\n",
		"etc/group":   "root:x:0:\nusers:x:100:\nvideo:x:44:app,other\naudio:x:45:other,app\n",
		"bin/notexec": "data",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin/nointerpreter"), []byte("#!/no/such\n"), 0o755))
	if !programs {
		return root
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (Debian: busybox-static)")
	}
	b, err := os.ReadFile(busybox)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755))
	for _, name := range strings.Fields(`sh cat echo true false id env pwd sleep kill ps stty yes head tr ls grep mkfifo readlink reboot poweroff
		trap touch wc setsid dd tty mkdir ln rm chmod stat sha256sum mount`) {
		require.NoError(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	return root
}

// testGuest is a server with a container.
type testGuest struct {
	server *Server
	root   string // as seen from outside
	off    chan struct{}
	addr   string
}

// newGuest starts a container and a server for it.
func newGuest(t testing.TB) *testGuest { return startGuest(t, testRoot(t, true)) }

func startGuest(t testing.TB, root string) *testGuest {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	self, err := os.Executable()
	require.NoError(t, err)
	pid, err := syscall.ForkExec(self, os.Args[:1], &syscall.ProcAttr{
		Dir: "/", Env: append(os.Environ(), containerEnv+"="+root), Files: []uintptr{0, 1, 2, w.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
			Setsid:     true, Pdeathsig: syscall.SIGKILL,
		},
	})
	w.Close()
	require.NoError(t, err)
	failure, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Empty(t, string(failure))

	g := &testGuest{server: NewServer(), root: root, off: make(chan struct{}, 1), addr: filepath.Join(t.TempDir(), "agent")}
	l, err := net.Listen("unix", g.addr)
	require.NoError(t, err)
	go g.server.Serve(l)
	t.Cleanup(func() {
		l.Close()
		syscall.Kill(pid, syscall.SIGKILL)
	})
	require.NoError(t, g.server.Ready(Config{
		Defaults:  Defaults{Env: []string{"FROM=image", "BAD"}, StopSignal: "SIGUSR1"},
		Container: Container{PID: pid, Cgroup: -1},
		PowerOff:  func() { g.off <- struct{}{} },
	}))
	return g
}

func (g *testGuest) dial(t testing.TB) net.Conn {
	c, err := net.Dial("unix", g.addr)
	require.NoError(t, err)
	return c
}

// client returns a new client of the guest.
func (g *testGuest) client(t testing.TB) *agent.Client {
	c, err := agent.NewClient(g.dial(t))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// testContext ends with the test, or when the test hangs.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func sh(script string) agent.ExecRequest {
	return agent.ExecRequest{Args: []string{"sh", "-c", script}}
}

// run runs a shell script and returns its output.
func run(t testing.TB, c *agent.Client, script string) agent.Output {
	t.Helper()
	out, err := c.Run(testContext(t), sh(script))
	require.NoError(t, err)
	return out
}

// processes returns how many processes of the container have a command line that begins with prefix.
func processes(t testing.TB, c *agent.Client, prefix string) int {
	n := 0
	for _, line := range strings.Split(string(run(t, c, "ps -o args").Stdout), "\n") {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// eventually waits for what must come about.
func eventually(t testing.TB, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, 30*time.Second, 10*time.Millisecond, what)
}
