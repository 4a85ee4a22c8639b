package agent

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func TestRequestsWaitForTheContainer(t *testing.T) {
	s := NewServer()
	host, guest := net.Pipe()
	go s.ServeConn(guest)
	c, err := agent.NewClient(host)
	require.NoError(t, err)
	defer c.Close()
	answered := make(chan error)
	go func() { answered <- c.Ping(testContext(t)) }()
	select {
	case err := <-answered:
		t.Fatal("answered before there is a container", err)
	default:
	}
	require.NoError(t, s.Ready(Config{Container: Container{Cgroup: -1}}))
	require.NoError(t, <-answered)
}

// frame encodes one frame.
func frame(t testing.TB, typ wire.Type, stream uint32, channel uint8, body any) []byte {
	b, err := msgpack.Marshal(body)
	require.NoError(t, err)
	r, w := io.Pipe()
	writer := wire.NewWriter(w, nil)
	go func() {
		writer.Write(nil, wire.Frame{Type: typ, Stream: stream, Channel: channel, Body: b})
		writer.Flush(nil)
		w.Close()
	}()
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	return out
}

func hello(t testing.TB) []byte {
	return frame(t, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version})
}

func open(t testing.TB, stream uint32, req wire.Request) []byte {
	return frame(t, wire.TypeOpen, stream, 0, req)
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestClientsThatBreakTheProtocolAreCutOff(t *testing.T) {
	g := newGuest(t)
	write := open(t, 1, wire.Request{Write: &wire.WriteFile{Path: "/tmp/x", Mode: 0o600}})
	var flood []byte
	for range wire.InitialWindow/wire.MaxData + 1 {
		flood = append(flood, frame(t, wire.TypeData, 1, wire.ChannelIn, make([]byte, wire.MaxData-5))...)
	}
	for name, sent := range map[string][]byte{
		"no greeting":        write,
		"wrong version":      frame(t, wire.TypeHello, 0, 0, wire.Hello{Version: 99}),
		"garbage":            join(hello(t), []byte("GET / HTTP/1.1\r\n\r\n")),
		"stream zero":        join(hello(t), open(t, 0, wire.Request{Ping: &wire.Empty{}})),
		"stream twice":       join(hello(t), write, write),
		"unknown stream":     join(hello(t), frame(t, wire.TypeSignal, 5, 0, wire.Signal{Number: 9})),
		"server's frame":     join(hello(t), write, frame(t, wire.TypeResult, 1, 0, wire.Result{})),
		"body of wrong type": join(hello(t), frame(t, wire.TypeOpen, 1, 0, []int{1, 2, 3})),
		"too much data":      join(hello(t), open(t, 1, wire.Request{Exec: &wire.Exec{Args: []string{"sleep", "6661"}, Stdin: true}}), flood),
		"data for stdout":    join(hello(t), write, frame(t, wire.TypeData, 1, wire.ChannelOut, []byte("x"))),
		"window for stdin":   join(hello(t), write, frame(t, wire.TypeWindow, 1, wire.ChannelIn, wire.Window{Bytes: 1})),
		"absurd window":      join(hello(t), write, frame(t, wire.TypeWindow, 1, wire.ChannelOut, wire.Window{Bytes: 1 << 31})),
	} {
		t.Run(name, func(t *testing.T) {
			c := g.dial(t)
			defer c.Close()
			go c.Write(sent)
			_, err := io.Copy(io.Discard, c) // ends only if the agent closes the connection
			if err != nil {
				require.ErrorIs(t, err, unix.ECONNRESET)
			}
		})
	}
	c := g.client(t)
	require.NoError(t, c.Ping(testContext(t)), "the others are not touched")
	eventually(t, func() bool { return processes(t, c, "sleep 6661") == 0 }, "what they ran is killed")
}

func TestRequestsOfTheFutureAreRefused(t *testing.T) {
	g := newGuest(t)
	c := g.dial(t)
	defer c.Close()
	_, err := c.Write(join(hello(t), frame(t, wire.TypeOpen, 1, 0, map[string]any{"teleport": map[string]any{"to": "mars"}})))
	require.NoError(t, err)
	r := wire.NewReader(c)
	_, err = r.Read()
	require.NoError(t, err)
	f, err := r.Read()
	require.NoError(t, err)
	var result wire.Result
	require.Equal(t, wire.TypeResult, f.Type)
	require.NoError(t, wire.Decode(f, &result))
	require.Equal(t, wire.KindInvalid, result.Error.Kind)
}

// File systems of the workload may never answer; others take over from the threads that they block.
func TestABlockedThreadDelaysNobody(t *testing.T) {
	threads, err := newNSThreads(Container{Cgroup: -1})
	require.NoError(t, err)
	t.Cleanup(func() { close(threads.work) }) // its threads end
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range maxThreads - 1 {
		wg.Go(func() { threads.do(func() { <-release }) })
	}
	for range 10 {
		threads.do(func() {})
	}
	close(release)
	wg.Wait()
	_, err = newNSThreads(Container{PID: 1 << 30})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestProgramsBelongToTheCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a cgroup")
	}
	root := t.TempDir()
	require.NoError(t, unix.Mount("cgroup2", root, "cgroup2", 0, ""))
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	cgroup, err := os.MkdirTemp(root, "supermachine-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.Remove(cgroup) })
	fd, err := unix.Open(cgroup, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })

	g := newGuest(t)
	g.server.cfg.Cgroup = fd
	c := g.client(t)
	require.Contains(t, string(run(t, c, "cat /proc/self/cgroup").Stdout), filepath.Base(cgroup))
}

// Whatever a client sends, the server ends the connection or waits for more, and stays whole. The container is empty, so that
// nothing a fuzzer makes up can run.
func FuzzServer(f *testing.F) {
	g := startGuest(f, testRoot(f, false))
	exec := wire.Request{Exec: &wire.Exec{Args: []string{"x"}, Env: []string{"A=b"}, Dir: "/", User: "app", TTY: true, Stdin: true, Timeout: 1}}
	f.Add(join(hello(f), open(f, 1, exec), open(f, 2, wire.Request{Read: &wire.ReadFile{Path: "/etc/passwd"}})))
	f.Add(join(hello(f), open(f, 1, wire.Request{Write: &wire.WriteFile{Path: "/tmp/x", Mode: 0o644}}),
		frame(f, wire.TypeData, 1, wire.ChannelIn, []byte("x")), frame(f, wire.TypeEOF, 1, wire.ChannelIn, nil)))
	f.Add(join(hello(f), open(f, 1, wire.Request{Ping: &wire.Empty{}}), frame(f, wire.TypeWindow, 1, wire.ChannelErr, wire.Window{Bytes: 1})))
	f.Add(join(hello(f), open(f, 9, wire.Request{Info: &wire.Empty{}}), frame(f, wire.TypeAbandon, 9, 0, nil)))
	f.Add(join(hello(f), frame(f, wire.TypeSignal, 1, 0, wire.Signal{Number: 9}), frame(f, wire.TypeResize, 1, 0, wire.Resize{Rows: 1})))
	f.Add(join(hello(f), open(f, 1, wire.Request{Freeze: &wire.Freeze{Lean: true}}),
		open(f, 2, wire.Request{Thaw: &wire.Thaw{Identity: &wire.Identity{ID: "x", Entropy: make([]byte, wire.EntropySize), Hostname: "x"}}})))
	detached := wire.Request{Exec: &wire.Exec{Args: []string{"x"}, Main: true, Detach: true}}
	f.Add(join(hello(f), open(f, 1, detached), open(f, 2, wire.Request{Follow: &wire.Empty{}}), frame(f, wire.TypeSignal, 2, 0, wire.Signal{Number: 9})))
	free := wire.Request{Exec: &wire.Exec{Args: []string{"x"}, Detach: true, Stdin: true, Limits: []wire.Rlimit{{Name: "core", Hard: 1}}}}
	f.Add(join(hello(f), open(f, 1, free), open(f, 2, wire.Request{Attach: &wire.Attach{ID: 1, Stdin: true}}), frame(f, wire.TypeData, 2, wire.ChannelIn, []byte("x")),
		open(f, 3, wire.Request{Detach: &wire.Detach{ID: 1}}), open(f, 4, wire.Request{List: &wire.Empty{}})))
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.Contains(in, []byte("shutdown")) {
			return // it would be the end of the container
		}
		host, guest := net.Pipe()
		served := make(chan struct{})
		go func() { g.server.ServeConn(guest); close(served) }()
		go io.Copy(io.Discard, host)
		host.Write(in)
		host.Close()
		<-served
		g.server.mu.Lock()
		defer g.server.mu.Unlock()
		require.Empty(t, g.server.conns)
	})
}
