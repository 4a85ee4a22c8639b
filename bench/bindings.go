package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/supermachine/supermachine/core"
)

// bindings: what a call that does little costs in each language, against the same in Go, and how fast a program's output comes. The programs in
// bench/bindings measure themselves; bench/run sets their environment up.
func bindings(ctx context.Context, o options) ([]result, error) {
	snap, done, err := bakeForBench(ctx, core.BakeSpec{Ref: o.busybox, BootOnly: true})
	if err != nil {
		return nil, err
	}
	defer done()
	calls, streams, err := inGo(ctx, snap, o.bytes)
	if err != nil {
		return nil, err
	}
	var results []result
	for _, l := range []struct {
		name    string
		program []string
	}{
		{"c", []string{"build/bench/bindings"}}, {"python", []string{"/usr/bin/python3", "bench/bindings/bench.py"}},
		{"node", []string{"node", "bench/bindings/bench.mjs"}}, {"ruby", []string{"ruby", "bench/bindings/bench.rb"}},
	} {
		args := append(l.program[1:], snap.Info().ID)
		if l.name != "c" {
			args = append(args, strconv.FormatInt(o.bytes, 10))
		}
		cmd := exec.CommandContext(ctx, l.program[0], args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		var said struct {
			Call   []time.Duration
			Stream []float64
			Stall  []float64
		}
		if err := json.Unmarshal(out, &said); err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		r := milliseconds("call."+l.name, said.Call, calls)
		r.Value, r.Floor, r.P50, r.P99, r.Unit = r.Value*1e3, r.Floor*1e3, r.P50*1e3, r.P99*1e3, "us"
		results = append(results, r)
		if l.name != "c" {
			var took []time.Duration
			for _, s := range said.Stream {
				took = append(took, time.Duration(s*float64(time.Second)))
			}
			results = append(results, throughput("stream."+l.name, o.bytes, took, streams))
		}
		if len(said.Stall) > 0 {
			results = append(results, result{Name: "node.stall", Value: said.Stall[0], Unit: "ms", N: 100, P99: said.Stall[0]})
		}
	}
	return results, nil
}

// inGo measures the same through the Go API.
func inGo(ctx context.Context, snap *core.Snapshot, bytes int64) (calls, streams []time.Duration, err error) {
	vm, err := snap.Start(ctx, core.StartOptions{})
	if err != nil {
		return nil, nil, err
	}
	defer vm.Close()
	for range 3000 {
		start := time.Now()
		_, _, _, _, _ = vm.Config(), vm.Image(), vm.GuestPort(), vm.Started(), vm.Balloon()
		select {
		case <-vm.Done():
		default:
		}
		calls = append(calls, time.Since(start))
	}
	for range 3 {
		start := time.Now()
		p, err := vm.Exec(ctx, core.Exec{Args: []string{"head", "-c", strconv.FormatInt(bytes, 10), "/dev/zero"}, Pipes: true})
		if err != nil {
			return nil, nil, err
		}
		start = time.Now()
		n, err := io.Copy(io.Discard, p.Stdout)
		streams = append(streams, time.Since(start))
		if err != nil || n != bytes {
			return nil, nil, errors.Join(err, fmt.Errorf("%d bytes came", n))
		}
		if _, err := p.Wait(); err != nil {
			return nil, nil, err
		}
	}
	return calls, streams, nil
}

// idleCPU: the share of one CPU that this process takes with 100 VMs that do nothing.
func idleCPU(ctx context.Context, o options) ([]result, error) {
	snap, done, err := bakeForBench(ctx, core.BakeSpec{Ref: o.busybox, BootOnly: true})
	if err != nil {
		return nil, err
	}
	defer done()
	vms := make([]*core.VM, o.idle)
	defer func() { closeAll(vms) }()
	if err := each(len(vms), func(i int) (err error) {
		vms[i], err = snap.Start(ctx, core.StartOptions{Timeout: 5 * time.Minute})
		return err
	}); err != nil {
		return nil, err
	}
	time.Sleep(5 * time.Second) // what the starts have left to do
	cpu := func() (time.Duration, error) {
		var u syscall.Rusage
		err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
	}
	before, err := cpu()
	if err != nil {
		return nil, err
	}
	const span = 20 * time.Second
	time.Sleep(span)
	after, err := cpu()
	if err != nil {
		return nil, err
	}
	share := 100 * float64(after-before) / float64(span)
	return []result{{Name: "idle.cpu", Value: share, Unit: "%", N: len(vms), P50: share}}, nil
}
