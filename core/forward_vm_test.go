package core_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// ask sends a question, ends its direction and returns all of the answer.
func ask(t *testing.T, c net.Conn, question string) string {
	t.Helper()
	defer c.Close()
	_, err := io.WriteString(c, question)
	require.NoError(t, err)
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	return string(answer)
}

// The workload's port needs no number: with no EXPOSE it is the one on which a program has listened longest.
func TestWorkloadsPortIsFound(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{})
	require.NoError(t, err)
	defer vm.Close()
	_, err = vm.Connect(t.Context(), 0)
	require.ErrorIs(t, err, core.ErrRefused)
	require.ErrorContains(t, err, "no program listens")
	require.NoError(t, vm.StartWorkload(t.Context(), core.Exec{Args: []string{"sh", "-c", "echo page > /tmp/hello; exec httpd -f -p 7100 -h /tmp"}}))
	eventually(t, func() bool { c, err := vm.Connect(t.Context(), 7100); return err == nil && c.Close() == nil }, "the server listens")
	c, err := vm.Connect(t.Context(), 0)
	require.NoError(t, err)
	const get = "GET /hello HTTP/1.0\r\n\r\n"
	require.Contains(t, ask(t, c, get), "page")

	path, err := vm.SocketPath()
	require.NoError(t, err)
	again, err := vm.SocketPath()
	require.NoError(t, err)
	require.Equal(t, path, again)
	info, err := os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.EqualValues(t, 0o700, info.Mode().Perm())
	c, err = net.Dial("unix", path)
	require.NoError(t, err)
	require.Contains(t, ask(t, c, get), "page")

	vm.Close()
	_, err = os.Stat(filepath.Dir(path))
	require.ErrorIs(t, err, os.ErrNotExist, "the socket goes with the VM")
	_, err = vm.SocketPath()
	require.ErrorIs(t, err, core.ErrVMEnded)
}

// A program in the guest reaches a server on the host, which copies of the VM do not.
func TestGuestsReachTheHostWhereTheyMay(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{})
	require.NoError(t, err)
	defer vm.Close()
	server, err := net.Listen("unix", filepath.Join(t.TempDir(), "server.sock"))
	require.NoError(t, err)
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				question, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%s: 42", question)
			}()
		}
	}()
	f, err := vm.ForwardToHost(t.Context(), 8000, "unix", server.Addr().String())
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:8000", f.Addr().String())
	_, err = vm.ForwardToHost(t.Context(), 8000, "unix", server.Addr().String())
	require.ErrorIs(t, err, core.ErrInUse)
	const script = "echo -n 6 x 7 | nc 127.0.0.1 8000"
	require.Equal(t, "6 x 7: 42", vmtest.Shell(t, vm, script))
	require.Equal(t, core.ForwardStats{Total: 1, Sent: 5, Received: 9}, settled(t, f))

	children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	defer children[0].Close()
	require.NotEqual(t, "6 x 7: 42", vmtest.Shell(t, children[0], script+" 2>&1; true"))
	require.Equal(t, "6 x 7: 42", vmtest.Shell(t, vm, script))

	gone, err := vm.ForwardToHost(t.Context(), 0, "tcp", "127.0.0.1:1")
	require.NoError(t, err)
	require.NotZero(t, gone.Port())
	require.Equal(t, "", vmtest.Shell(t, vm, fmt.Sprintf("nc 127.0.0.1 %d </dev/null; true", gone.Port())))
	require.EqualValues(t, 1, settled(t, gone).Failed)
	require.NoError(t, f.Close())
	eventually(t, func() bool { return vmtest.Shell(t, vm, script+" 2>/dev/null; true") == "" }, "the guest listens no more")
	_, err = vm.ForwardToHost(t.Context(), 0, "udp", "127.0.0.1:1")
	require.ErrorIs(t, err, core.ErrInvalidArgument)
}

// settled returns a forward's counts once no connection is open.
func settled(t *testing.T, f *core.Forward) (st core.ForwardStats) {
	t.Helper()
	eventually(t, func() bool { st = f.Stats(); return st.Open == 0 && st.Total > 0 }, "the connection has ended")
	return st
}

// Many connections through one forward are open at once, and each has its own bytes.
func TestManyConnectionsGoThroughOneForward(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	n := vmtest.Times(200, 10_000)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if need := uint64(4*n + 200); limit.Cur < need {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: need, Max: max(need, limit.Max)}); err != nil {
			t.Skipf("needs %d file descriptors: %v", need, err)
		}
	}
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 256 + n/4})
	require.NoError(t, err)
	defer vm.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go echoAll(l)
	// In through one forward and out through another: the guest in between needs no server.
	back, err := vm.ForwardToHost(t.Context(), 7000, "tcp", l.Addr().String())
	require.NoError(t, err)
	f, err := vm.Forward("tcp", "127.0.0.1:0", 7000)
	require.NoError(t, err)
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	turn := make(chan struct{}, 64)
	each := func(do func(i int)) {
		for i := range conns {
			turn <- struct{}{}
			wg.Go(func() { do(i); <-turn })
		}
		wg.Wait()
	}
	each(func(i int) {
		c, err := net.Dial("tcp", f.Addr().String())
		if err == nil {
			_, err = fmt.Fprintf(c, "%6d", i)
		}
		var echo [6]byte
		if err == nil {
			_, err = io.ReadFull(c, echo[:])
		}
		if err != nil || string(echo[:]) != fmt.Sprintf("%6d", i) {
			t.Errorf("connection %d: %q, %v", i, echo, err)
		}
		conns[i] = c
	})
	require.False(t, t.Failed())
	require.EqualValues(t, n, f.Stats().Open)
	require.EqualValues(t, n, back.Stats().Open)
	each(func(i int) {
		if got := ask(t, conns[i], "end"); got != "end" {
			t.Errorf("connection %d: %q", i, got)
		}
	})
	st := settled(t, f)
	require.Equal(t, core.ForwardStats{Total: int64(n), Sent: int64(9 * n), Received: int64(9 * n)}, st)
}

func echoAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}
