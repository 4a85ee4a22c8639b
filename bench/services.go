package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/supermachine/supermachine/bench/stream"
	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/agent"
)

// runner runs programs in a guest, ours or the peer's.
type runner interface {
	Run(context.Context, agent.ExecRequest) (agent.Output, error)
}

// nanoseconds runs the guest's half and returns the times that it prints.
func nanoseconds(ctx context.Context, r runner, args ...string) ([]time.Duration, error) {
	out, err := r.Run(ctx, agent.ExecRequest{Args: append([]string{"/tmp/bench"}, args...)})
	if err != nil {
		return nil, err
	}
	var all []time.Duration
	for _, line := range strings.Fields(string(out.Stdout)) {
		ns, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, time.Duration(ns))
	}
	if out.Code != 0 || len(all) == 0 {
		return nil, fmt.Errorf("%v in the guest: status %d: %s", args, out.Code, out.Stderr)
	}
	return all, nil
}

// forwards: a TCP connection through a forward to a server in the guest, against one through socat to the same server on this machine.
func forwards(ctx context.Context, o options) ([]result, error) {
	vm, err := startWithGuest(ctx, o)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	server, err := vm.Exec(ctx, core.Exec{Args: []string{"/tmp/bench", "listen", "7000"}, Pipes: true})
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	if _, err := server.Stdout.Read(make([]byte, 16)); err != nil {
		return nil, err
	}
	f, err := vm.Forward("tcp", "127.0.0.1:0", 7000)
	if err != nil {
		return nil, err
	}
	ours, err := net.Dial("tcp", f.Addr().String())
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	native, err := serveTCP()
	if err != nil {
		return nil, err
	}
	defer native.Close()
	socat := exec.CommandContext(ctx, "socat", "TCP-LISTEN:7001,bind=127.0.0.1,reuseaddr,fork", "TCP:"+native.Addr().String())
	if err := socat.Start(); err != nil {
		return nil, err
	}
	defer func() { socat.Process.Kill(); socat.Wait() }()
	theirs, err := dialSoon("127.0.0.1:7001")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	var samples, floor, latency, latencyFloor []time.Duration
	for i := range 6 {
		for _, side := range []struct {
			c            net.Conn
			bulk, trips_ *[]time.Duration
		}{{ours, &samples, &latency}, {theirs, &floor, &latencyFloor}} {
			took, err := stream.Transfer(side.c, stream.Receive, o.bytes)
			if err != nil {
				return nil, err
			}
			trips, err := stream.RoundTrips(side.c, 50)
			if err != nil {
				return nil, err
			}
			if i > 0 {
				*side.bulk, *side.trips_ = append(*side.bulk, took), append(*side.trips_, trips...)
			}
		}
	}
	return []result{throughput("forward.throughput", o.bytes, samples, floor), milliseconds("forward.latency", latency, latencyFloor)}, nil
}

func serveTCP() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go stream.Serve(c)
		}
	}()
	return l, nil
}

// dialSoon connects to a server that is being started.
func dialSoon(address string) (net.Conn, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil || time.Now().After(end) {
			return c, err
		}
	}
}

// execParallel: 100 execs of true at once, all of them together, against 100 that the guest itself runs one after another.
func execParallel(ctx context.Context, o options) ([]result, error) {
	vm, err := startWithGuest(ctx, o)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	const n = 100
	var samples, floor []time.Duration
	for i := range 6 {
		begin := time.Now()
		var wg sync.WaitGroup
		failed := make(chan error, n)
		for range n {
			wg.Go(func() {
				if _, err := vm.Run(ctx, core.Exec{Args: []string{"/bin/true"}}); err != nil {
					failed <- err
				}
			})
		}
		wg.Wait()
		took := time.Since(begin)
		select {
		case err := <-failed:
			return nil, err
		default:
		}
		each, err := nanoseconds(ctx, vm, "spawn", strconv.Itoa(n), "/bin/true")
		if err != nil {
			return nil, err
		}
		var local time.Duration
		for _, d := range each {
			local += d
		}
		if i > 0 {
			samples, floor = append(samples, took), append(floor, local)
		}
	}
	return []result{milliseconds("exec.parallel", samples, floor)}, nil
}

// withPeer starts a VM of ours and a peer, with the guest's half in both.
func withPeer(ctx context.Context, o options, cfg core.Config, devices func(dir string) []string, f func(ours *core.VM, theirs *agent.Client) error) error {
	img, err := pull(ctx, o.debian)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-peer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	qemu, err := newPeer(dir, img)
	if err != nil {
		return err
	}
	defer qemu.calls.Close()
	if o.peerKernel != "" {
		qemu.kernel = o.peerKernel
	}
	qemu.extra = devices(dir)
	vm, err := core.Start(ctx, img, cfg)
	if err != nil {
		return err
	}
	defer vm.Close()
	client, stop, _, err := qemu.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	b, err := os.ReadFile(o.guest)
	if err != nil {
		return err
	}
	if err := errors.Join(vm.WriteFile(ctx, "/tmp/bench", bytes.NewReader(b), 0o755), client.WriteFile(ctx, "/tmp/bench", bytes.NewReader(b), 0o755)); err != nil {
		return err
	}
	return f(vm, client)
}

// blocks: a volume, against the same kind of file as a disk of the peer.
func blocks(ctx context.Context, o options) ([]result, error) {
	dir, err := os.MkdirTemp("", "bench-volume-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ours := core.Volume{File: filepath.Join(dir, "ours"), Path: "/data", SizeMiB: 512}
	disk := func(dir string) []string {
		file := filepath.Join(dir, "theirs")
		exec.Command("mkfs.ext4", "-q", file, "512M").Run() // a failure shows when it is mounted
		return []string{"-drive", "if=none,id=data,format=raw,file=" + file, "-device", "virtio-blk-device,drive=data,bus=virtio-mmio-bus.3"}
	}
	var results []result
	err = withPeer(ctx, o, core.Config{Volumes: []core.Volume{ours}}, disk, func(vm *core.VM, theirs *agent.Client) error {
		const slot = 3 // of the disk: its bus comes after those of the root, the scratch disk and the socket
		if err := theirs.Mount(ctx, agent.Mount{FileSystems: []agent.FileSystem{{Slot: slot, Kind: "volume", Target: "/data"}}}); err != nil {
			return err
		}
		for _, b := range []struct {
			name string
			n    int
		}{{"rand4k", 2000}, {"seq1m", 64}} {
			var samples, floor []time.Duration
			for i := range 4 {
				a, err1 := nanoseconds(ctx, vm, b.name, strconv.Itoa(b.n), "/data/"+b.name)
				t, err2 := nanoseconds(ctx, theirs, b.name, strconv.Itoa(b.n), "/data/"+b.name)
				if err := errors.Join(err1, err2); err != nil {
					return err
				}
				if i > 0 {
					samples, floor = append(samples, a...), append(floor, t...)
				}
			}
			bytes := int64(b.n) * 4 << 10
			if b.name == "seq1m" {
				bytes = int64(b.n) * 2 << 20
			}
			results = append(results, throughput("block."+b.name, bytes, samples, floor))
		}
		return nil
	})
	return results, err
}

// network: TCP from the guest to a server on this machine, against the peer with QEMU's user network.
func network(ctx context.Context, o options) ([]result, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	cfg := core.Config{Network: &core.Network{Rules: []string{fmt.Sprintf("allow 127.0.0.1:%d", port)}}}
	user := func(string) []string {
		return []string{"-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net,bus=virtio-mmio-bus.3"}
	}
	var results []result
	err = withPeer(ctx, o, cfg, user, func(vm *core.VM, theirs *agent.Client) error {
		const slot = 3
		if err := theirs.Mount(ctx, agent.Mount{Network: &agent.Network{Slot: slot, Address: "10.0.2.15", PrefixBits: 24, Gateway: "10.0.2.2", MTU: 1500}}); err != nil {
			return err
		}
		connect := func(r runner, gateway string) (net.Conn, error) {
			go r.Run(ctx, agent.ExecRequest{Args: []string{"/tmp/bench", "dial", net.JoinHostPort(gateway, strconv.Itoa(port))}})
			l.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
			return l.Accept()
		}
		a, err := connect(vm, "192.168.127.1")
		if err != nil {
			return fmt.Errorf("ours: %w", err)
		}
		defer a.Close()
		b, err := connect(theirs, "10.0.2.2")
		if err != nil {
			return fmt.Errorf("the peer's: %w", err)
		}
		defer b.Close()
		for _, d := range []struct {
			name      string
			direction byte
		}{{"net.tcp", stream.Receive}, {"net.tcp.in", stream.Send}} {
			var samples, floor []time.Duration
			for i := range 4 {
				ours, err1 := stream.Transfer(a, d.direction, o.bytes)
				peers, err2 := stream.Transfer(b, d.direction, o.bytes)
				if err := errors.Join(err1, err2); err != nil {
					return err
				}
				if i > 0 {
					samples, floor = append(samples, ours), append(floor, peers)
				}
			}
			results = append(results, throughput(d.name, o.bytes, samples, floor))
		}
		return nil
	})
	return results, err
}

// directories: a mount, against the peer's by 9p: reading a large file, and looking at every file of a large tree as git status does.
func directories(ctx context.Context, o options) ([]result, error) {
	dir, err := os.MkdirTemp("", "bench-tree-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	const files, perDir, size = 20_000, 200, 64 << 20
	for i := range files / perDir {
		sub := filepath.Join(dir, "tree", strconv.Itoa(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, err
		}
		for j := range perDir {
			if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(j)), []byte("x"), 0o644); err != nil {
				return nil, err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), bytes.Repeat([]byte("x"), size), 0o644); err != nil {
		return nil, err
	}
	share := func(string) []string {
		return []string{"-fsdev", "local,id=tree,security_model=none,path=" + dir, "-device", "virtio-9p-device,fsdev=tree,mount_tag=tree,bus=virtio-mmio-bus.3"}
	}
	var results []result
	err = withPeer(ctx, o, core.Config{Mounts: []core.Mount{{Dir: dir, Path: "/src"}}}, share, func(vm *core.VM, theirs *agent.Client) error {
		out, err := theirs.Run(ctx, agent.ExecRequest{Args: []string{"/tmp/bench", "mount9p", "tree", "/src"}})
		if err != nil || out.Code != 0 {
			return fmt.Errorf("mount by 9p: %v: %s", err, out.Stderr)
		}
		ours, err1 := nanoseconds(ctx, vm, "read", "3", "/src/large")
		floor, err2 := nanoseconds(ctx, theirs, "read", "3", "/src/large")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		results = append(results, throughput("fs.seq", size, ours[1:], floor[1:]))
		ours, err1 = nanoseconds(ctx, vm, "lstat", "2", "/src/tree")
		floor, err2 = nanoseconds(ctx, theirs, "lstat", "2", "/src/tree")
		results = append(results, milliseconds("fs.git_status", ours[1:], floor[1:]))
		return errors.Join(err1, err2)
	})
	return results, err
}
