package agent

import (
	"bytes"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func startMain(t *testing.T, c *agent.Client, script string) (*agent.Process, *lockedBuffer) {
	out := &lockedBuffer{}
	req := sh(script)
	req.Main, req.Stdout = true, out
	p, err := c.Exec(testContext(t), req)
	require.NoError(t, err)
	eventually(t, func() bool { return out.String() == "ready\n" }, "start")
	return p, out
}

func TestShutdownStopsTheWorkload(t *testing.T) {
	g := newGuest(t)
	c, other := g.client(t), g.client(t)
	main, _ := startMain(t, c, "trap 'exit 9' USR1; echo ready; while true; do sleep 0.01; done")
	_, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"true"}, Main: true})
	require.ErrorContains(t, err, "the workload runs already")
	info, err := c.Info(testContext(t))
	require.NoError(t, err)
	require.True(t, info.Running)
	require.Equal(t, 1, info.Execs)
	require.NotEmpty(t, info.Kernel)
	require.Positive(t, info.Uptime)

	background, err := other.Exec(testContext(t), sh("sleep 1000"))
	require.NoError(t, err)
	require.NoError(t, c.Shutdown(testContext(t), time.Minute))
	st, err := main.Wait()
	require.NoError(t, err, "the workload's result comes before the end")
	require.Equal(t, 9, st.Code, "it got the image's stop signal")
	st, err = background.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, st.Signal)
	for _, c := range []*agent.Client{c, other} {
		<-c.Done()
		require.Equal(t, agent.StopPowerOff, c.StopReason())
	}
	<-g.off
}

func TestShutdownKillsAfterItsGrace(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	main, _ := startMain(t, c, "trap '' USR1 TERM; echo ready; while true; do sleep 0.01; done")
	require.NoError(t, c.Shutdown(testContext(t), 50*time.Millisecond))
	st, err := main.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, st.Signal)
	<-g.off
}

func TestNothingRunsOnceTheGuestGoesDown(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	main, out := startMain(t, c, "trap 'echo stopping' USR1; echo ready; while true; do sleep 0.01; done")
	stopped := make(chan error)
	go func() { stopped <- c.Shutdown(testContext(t), time.Minute) }()
	eventually(t, func() bool { return out.String() == "ready\nstopping\n" }, "signal")
	_, err := c.Run(testContext(t), sh("true"))
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindUnavailable, e.Kind)
	require.ErrorAs(t, c.Shutdown(testContext(t), 0), &e)
	require.NoError(t, main.Kill())
	require.NoError(t, <-stopped)
	<-g.off
}

func TestShutdownWithoutWorkload(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	require.NoError(t, c.Shutdown(testContext(t), time.Minute))
	<-g.off
	require.Equal(t, agent.StopPowerOff, c.StopReason())
}

// Hosts that do not read must not keep the guest from going down.
func TestAStalledHostDoesNotDelayTheEnd(t *testing.T) {
	g := newGuest(t)
	stalled := g.dial(t)
	defer stalled.Close()
	w := wire.NewWriter(stalled, nil)
	require.NoError(t, w.Send(nil, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}))
	require.NoError(t, w.Send(nil, wire.TypeOpen, 1, 0, wire.Request{Exec: &wire.Exec{Args: []string{"yes"}}}))
	c := g.client(t)
	eventually(t, func() bool { return processes(t, c, "yes") == 1 }, "start")
	require.NoError(t, c.Shutdown(testContext(t), time.Minute))
	<-g.off
}

// A timeout fires although the host reads nothing.
func TestAStalledHostDoesNotDelayATimeout(t *testing.T) {
	g := newGuest(t)
	stalled := g.dial(t)
	defer stalled.Close()
	w := wire.NewWriter(stalled, nil)
	require.NoError(t, w.Send(nil, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}))
	for id := range uint32(20) {
		exec := &wire.Exec{Args: []string{"yes"}, Timeout: 300 * time.Millisecond}
		require.NoError(t, w.Send(nil, wire.TypeOpen, id+1, 0, wire.Request{Exec: exec}))
	}
	c := g.client(t)
	eventually(t, func() bool { return processes(t, c, "yes") > 0 }, "start")
	eventually(t, func() bool { return processes(t, c, "yes") == 0 }, "end")
}

func TestTheWorkloadCanEndItsContainer(t *testing.T) {
	for program, reason := range map[string]string{"poweroff": agent.StopPowerOff, "reboot": agent.StopReboot} {
		t.Run(program, func(t *testing.T) {
			g := newGuest(t)
			c := g.client(t)
			// reboot(2) must be called in a PID namespace of its own, or it would reboot this machine.
			mine, err := os.Readlink("/proc/self/ns/pid")
			require.NoError(t, err)
			theirs := run(t, c, "readlink /proc/self/ns/pid")
			require.NotEmpty(t, theirs.Stdout)
			require.NotEqual(t, mine, string(bytes.TrimSpace(theirs.Stdout)))

			p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{program, "-f"}})
			require.NoError(t, err)
			_, err = p.Wait()
			require.NoError(t, err)
			<-c.Done()
			require.Equal(t, reason, c.StopReason())
			<-g.off
		})
	}
}

func TestSignalsOfImages(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGQUIT": syscall.SIGQUIT, "quit": syscall.SIGQUIT, "3": syscall.SIGQUIT, "SIGWINCH": syscall.SIGWINCH,
		"0": syscall.SIGTERM, "-1": syscall.SIGTERM, "65": syscall.SIGTERM, "nonsense": syscall.SIGTERM,
		"SIGRTMIN+3": 37,
	} {
		require.Equal(t, want, parseSignal(name), name)
	}
}

func TestConnectionsToPorts(t *testing.T) {
	g := newGuest(t)
	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		request := make([]byte, 100)
		n, _ := c.Read(request)
		c.Write(append([]byte("got "), request[:n]...))
	}()
	proxy, err := net.Listen("unix", t.TempDir()+"/proxy")
	require.NoError(t, err)
	defer proxy.Close()
	go g.server.ServeProxy(proxy)
	dial := func() net.Conn {
		c, err := net.Dial("unix", proxy.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}

	port := uint16(server.Addr().(*net.TCPAddr).Port)
	c := dial()
	require.NoError(t, agent.DialPort(testContext(t), c, port))
	_, err = c.Write([]byte("request"))
	require.NoError(t, err)
	answer := make([]byte, len("got request"))
	_, err = c.Read(answer)
	require.NoError(t, err)
	require.Equal(t, "got request", string(answer))

	server.Close()
	err = agent.DialPort(testContext(t), dial(), port)
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindRefused, e.Kind)
	bad := dial()
	_, err = bad.Write([]byte{0, 0, 0, 1, 0xc0})
	require.NoError(t, err)
	_, err = bad.Read(answer)
	require.Error(t, err, "a broken request ends the connection")
}
