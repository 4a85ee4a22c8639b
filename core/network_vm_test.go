package core_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// hostServer answers on the host's loopback address, and returns its port.
func hostServer(t *testing.T, answer string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				question, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%s %s", answer, question)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func network(rules ...string) *core.Network { return &core.Network{Default: "deny", Rules: rules} }

// There is no network unless it is asked for, and then it leads where the rules say.
func TestNetworkLeadsWhereItMay(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	port := hostServer(t, "you said")
	ask := func(p int) string {
		return fmt.Sprintf("echo -n hello | nc -w 5 192.168.127.1 %d 2>/dev/null; true", p)
	}
	without, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{})
	require.NoError(t, err)
	defer without.Close()
	vmtest.Shell(t, without, "[ ! -e /sys/class/net/eth0 ]")

	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Network: network(fmt.Sprintf("allow 127.0.0.1:%d/tcp", port))})
	require.NoError(t, err)
	defer vm.Close()
	require.Equal(t, "nameserver 192.168.127.1", vmtest.Shell(t, vm, "cat /etc/resolv.conf"))
	require.Equal(t, "you said hello", vmtest.Shell(t, vm, ask(port)))
	other := hostServer(t, "never")
	require.Equal(t, "", vmtest.Shell(t, vm, ask(other)))
	require.Equal(t, "", vmtest.Shell(t, vm, "nc -w 5 169.254.169.254 80 </dev/null 2>/dev/null; true"))
	st, err := vm.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, st.Network.ConnsRefused)
	require.Positive(t, st.Network.BytesFromGuest)
	sum := vmtest.Shell(t, vm, fmt.Sprintf("dd if=/dev/zero bs=64k count=64 2>/dev/null | nc -w 20 192.168.127.1 %d | wc -c", port))
	require.Equal(t, fmt.Sprint(64*64<<10+len("you said ")), sum)
}

// Copies have a network of their own, or none, and connections of before are reset.
func TestNetworksBelongToOneVM(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	port := hostServer(t, "answer")
	rule := fmt.Sprintf("allow 127.0.0.1:%d", port)
	vm, err := snap.Start(t.Context(), core.StartOptions{Network: network(rule)})
	require.NoError(t, err)
	defer vm.Close()
	ask := fmt.Sprintf("echo -n x | nc -w 5 192.168.127.1 %d 2>/dev/null; true", port)
	require.Equal(t, "answer x", vmtest.Shell(t, vm, ask))
	// A connection that is open while the VM is saved, and says how it ends.
	require.NoError(t, vm.StartWorkload(t.Context(), core.Exec{Args: []string{
		"sh", "-c", fmt.Sprintf("(echo open > /tmp/open; cat /tmp/fifo) | nc 192.168.127.1 %d; echo ended > /tmp/ended; exec sleep 1000", port),
	}}))
	vmtest.Shell(t, vm, "mkfifo /tmp/fifo; while ! [ -e /tmp/open ]; do sleep 0.1; done")
	eventually(t, func() bool { st, err := vm.Stats(t.Context()); return err == nil && st.Network.ConnsOpen == 1 }, "it is connected")
	saved, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
	require.NoError(t, err)
	defer saved.Close()

	none, err := saved.Start(t.Context(), core.StartOptions{})
	require.NoError(t, err)
	defer none.Close()
	require.Equal(t, "", vmtest.Shell(t, none, ask))
	require.Equal(t, "down", vmtest.Shell(t, none, "cat /sys/class/net/eth0/operstate"))
	again, err := saved.Start(t.Context(), core.StartOptions{Network: network(rule)})
	require.NoError(t, err)
	defer again.Close()
	require.Equal(t, "answer x", vmtest.Shell(t, again, ask))
	vmtest.Shell(t, again, "(echo more > /tmp/fifo) & while ! [ -e /tmp/ended ]; do sleep 0.1; done")
	children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	defer children[0].Close()
	require.Equal(t, "answer x", vmtest.Shell(t, children[0], ask), "a fork has a network like its parent's")
	denied, err := saved.Start(t.Context(), core.StartOptions{Network: network()})
	require.NoError(t, err)
	defer denied.Close()
	require.Equal(t, "", vmtest.Shell(t, denied, ask), "its rules are its own")
	_, err = snap.Start(t.Context(), core.StartOptions{Network: network("allow 300.0.0.0/8")})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
}
