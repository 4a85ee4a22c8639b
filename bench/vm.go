package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/supermachine/supermachine/bench/stream"
	"github.com/supermachine/supermachine/core"
)

func pull(ctx context.Context, ref string) (*core.Image, error) {
	store, err := core.OpenImages("")
	if err != nil {
		return nil, err
	}
	return store.Pull(ctx, ref, core.PullOptions{})
}

func startVM(ctx context.Context, ref string) (*core.VM, error) {
	img, err := pull(ctx, ref)
	if err != nil {
		return nil, err
	}
	return core.Start(ctx, img, core.Config{})
}

// bootAgent: core.Start's call until the agent answers, against QEMU's microvm with the same kernel, initramfs and disks.
func bootAgent(ctx context.Context, o options) ([]result, error) {
	img, err := pull(ctx, o.busybox)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench-boot-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	qemu, err := newPeer(dir, img)
	if err != nil {
		return nil, err
	}
	defer qemu.calls.Close()
	var ours, floor []time.Duration
	for i := range o.boots + 1 {
		start := time.Now()
		vm, err := core.Start(ctx, img, core.Config{})
		if err != nil {
			return nil, err
		}
		took := time.Since(start)
		vm.Close()
		theirs, err := qemu.boot(ctx)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first warms caches on both sides
			ours, floor = append(ours, took), append(floor, theirs)
		}
	}
	return []result{milliseconds("boot.agent", ours, floor)}, nil
}

// execTrue: a round trip of /bin/true, against the guest itself running sh -c /bin/true.
func execTrue(ctx context.Context, o options) ([]result, error) {
	vm, err := startWithGuest(ctx, o)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	var samples []time.Duration
	for i := range o.execs + 10 {
		out, err := vm.Run(ctx, core.Exec{Args: []string{"/bin/true"}})
		if err != nil {
			return nil, err
		}
		if i >= 10 {
			samples = append(samples, out.Duration)
		}
	}
	floor, err := nanoseconds(ctx, vm, "spawn", strconv.Itoa(o.execs+10), "/bin/sh", "-c", "/bin/true")
	if err != nil {
		return nil, err
	}
	if len(floor) <= 10 {
		return nil, fmt.Errorf("the guest's half measured only %d programs", len(floor))
	}
	return []result{milliseconds("exec.true", samples, floor[10:])}, nil
}

// startWithGuest boots a VM with the guest's half in it.
func startWithGuest(ctx context.Context, o options) (*core.VM, error) {
	vm, err := startVM(ctx, o.debian)
	if err != nil {
		return nil, err
	}
	if err := installGuest(ctx, vm, o.guest); err != nil {
		vm.Close()
		return nil, err
	}
	return vm, nil
}

func installGuest(ctx context.Context, vm *core.VM, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return vm.WriteFile(ctx, "/tmp/bench", bytes.NewReader(b), 0o755)
}

const benchPort = 7777

// vsockStreams: bulk transfers over one vsock connection, against the same code over a Unix socket pair on this machine.
func vsockStreams(ctx context.Context, o options) ([]result, error) {
	vm, err := startWithGuest(ctx, o)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	ready, out := io.Pipe()
	server, err := vm.Exec(ctx, core.Exec{Args: []string{"/tmp/bench", "serve", strconv.Itoa(benchPort)}, Stdout: out, Stderr: os.Stderr})
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	go func() {
		_, err := server.Wait()
		out.CloseWithError(fmt.Errorf("the guest's half has ended (%v)", err))
	}()
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		return nil, err
	}
	guest, err := vm.DialVsock(ctx, benchPort)
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	local, remote, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer local.Close()
	go stream.Serve(remote)
	var results []result
	for _, d := range []struct {
		name      string
		direction byte
	}{{"vsock.h2g", stream.Send}, {"vsock.g2h", stream.Receive}} {
		var samples, floor []time.Duration
		for i := range 6 {
			ours, err := stream.Transfer(guest, d.direction, o.bytes)
			if err != nil {
				return nil, err
			}
			theirs, err := stream.Transfer(local, d.direction, o.bytes)
			if err != nil {
				return nil, err
			}
			if i > 0 {
				samples, floor = append(samples, ours), append(floor, theirs)
			}
		}
		results = append(results, throughput(d.name, o.bytes, samples, floor))
	}
	return results, nil
}

func socketPair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}
