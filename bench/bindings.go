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

// The programs in bench/bindings measure themselves; bench/run sets their environment up.
var languages = []struct {
	name    string
	program []string
}{
	{"c", []string{"build/bench/bindings"}}, {"python", []string{"/usr/bin/python3", "bench/bindings/bench.py"}},
	{"node", []string{"node", "bench/bindings/bench.mjs"}}, {"ruby", []string{"ruby", "bench/bindings/bench.rb"}},
}

// samples is what they say.
type samples struct {
	Call   []time.Duration
	Stream []float64 // seconds
	Stall  []float64 // milliseconds
}

func measure(ctx context.Context, program []string, args ...string) (s samples, err error) {
	cmd := exec.CommandContext(ctx, program[0], append(append([]string(nil), program[1:]...), args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	return s, err
}

// bindingCalls: what a call costs in each language that does next to nothing, against the same in Go. It needs no guest.
func bindingCalls(ctx context.Context, o options) ([]result, error) {
	var floor []time.Duration
	for range 10000 {
		start := time.Now()
		if core.Version() == "" {
			return nil, errors.New("there is no version")
		}
		floor = append(floor, time.Since(start))
	}
	var results []result
	for _, l := range languages {
		s, err := measure(ctx, l.program)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		r := milliseconds("call."+l.name, s.Call, floor)
		r.Value, r.Floor, r.P50, r.P99, r.Unit = r.Value*1e3, r.Floor*1e3, r.P50*1e3, r.P99*1e3, "us"
		results = append(results, r)
	}
	return results, nil
}

// bindingStreams: how fast a program's output comes in each language, against Go, and how long Node's event loop stands still beside 100 of them.
func bindingStreams(ctx context.Context, o options) ([]result, error) {
	snap, done, err := bakeForBench(ctx, core.BakeSpec{Ref: o.busybox, BootOnly: true})
	if err != nil {
		return nil, err
	}
	defer done()
	floor, err := streamsInGo(ctx, snap, o.bytes)
	if err != nil {
		return nil, err
	}
	var results []result
	for _, l := range languages[1:] {
		s, err := measure(ctx, l.program, o.busybox, strconv.FormatInt(o.bytes, 10))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		var took []time.Duration
		for _, seconds := range s.Stream {
			took = append(took, time.Duration(seconds*float64(time.Second)))
		}
		results = append(results, throughput("stream."+l.name, o.bytes, took, floor))
		for _, ms := range s.Stall {
			results = append(results, result{Name: "node.stall", Value: ms, Unit: "ms", N: 100, P99: ms})
		}
	}
	return results, nil
}

func streamsInGo(ctx context.Context, snap *core.Snapshot, bytes int64) (took []time.Duration, err error) {
	vm, err := snap.Start(ctx, core.StartOptions{})
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	for range 3 {
		p, err := vm.Exec(ctx, core.Exec{Args: []string{"head", "-c", strconv.FormatInt(bytes, 10), "/dev/zero"}, Pipes: true})
		if err != nil {
			return nil, err
		}
		start := time.Now()
		n, err := io.Copy(io.Discard, p.Stdout)
		took = append(took, time.Since(start))
		if err != nil || n != bytes {
			return nil, errors.Join(err, fmt.Errorf("%d bytes came", n))
		}
		if _, err := p.Wait(); err != nil {
			return nil, err
		}
	}
	return took, nil
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
