package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/trace"
)

// bakeForBench makes a snapshot in a store that is removed by the returned function.
func bakeForBench(ctx context.Context, spec core.BakeSpec) (*core.Snapshot, func(), error) {
	dir, err := os.MkdirTemp("", "bench-snapshots-")
	if err != nil {
		return nil, nil, err
	}
	store, err := core.OpenSnapshots(dir, nil)
	if err == nil {
		var snap *core.Snapshot
		if snap, err = store.Bake(ctx, spec); err == nil {
			return snap, func() { snap.Close(); os.RemoveAll(dir) }, nil
		}
	}
	os.RemoveAll(dir)
	return nil, nil, err
}

func answer(ctx context.Context, vm *core.VM) error {
	out, err := vm.Run(ctx, core.Exec{Args: []string{"/bin/true"}})
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("/bin/true failed with status %d", out.Code)
	}
	return err
}

// firstExec: from Snapshot.Start's call until a first program has run, with nginx running in the snapshot, against the same from a cold boot
// (where nginx does not even run yet). The page faults until then tell where the rest goes.
func firstExec(ctx context.Context, o options) ([]result, error) {
	snap, done, err := bakeForBench(ctx, core.BakeSpec{Ref: o.debian, GuestPort: 80})
	if err != nil {
		return nil, err
	}
	defer done()
	img, err := pull(ctx, o.debian)
	if err != nil {
		return nil, err
	}
	var ours, floor []time.Duration
	var faults []float64
	steps, remove := traceSteps()
	defer remove()
	for i := range o.restores + 1 {
		start := time.Now()
		vm, err := snap.Start(ctx, core.StartOptions{})
		if err != nil {
			return nil, err
		}
		err = answer(ctx, vm)
		took := time.Since(start)
		n, ferr := vm.PageFaults()
		vm.Close()
		if err = errors.Join(err, ferr); err != nil {
			return nil, err
		}
		if i > 0 { // the first shows the working set
			ours, faults = append(ours, took), append(faults, float64(n))
		} else {
			steps.reset()
		}
	}
	for i := range o.boots + 1 {
		start := time.Now()
		vm, err := core.Start(ctx, img, core.Config{})
		if err != nil {
			return nil, err
		}
		err = answer(ctx, vm)
		took := time.Since(start)
		vm.Close()
		if err != nil {
			return nil, err
		}
		if i > 0 {
			floor = append(floor, took)
		}
	}
	steps.print()
	return []result{milliseconds("start.first_exec", ours, floor), counts("start.first_exec.faults", "faults", faults)}, nil
}

// forkPrivate: the memory that each of 100 children of a running VM has for itself, after each has run a program.
func forkPrivate(ctx context.Context, o options) ([]result, error) {
	vm, err := startVM(ctx, o.busybox)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	if err := answer(ctx, vm); err != nil {
		return nil, err
	}
	start := time.Now()
	children, err := vm.Fork(ctx, o.forks, core.ForkOptions{})
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	defer closeAll(children)
	var private []float64
	for _, c := range children {
		n, err := c.PrivateBytes()
		if err != nil {
			return nil, err
		}
		private = append(private, float64(n)/(1<<20))
	}
	if err := answerAll(ctx, children); err != nil {
		return nil, err
	}
	answered := time.Since(start)
	return []result{
		counts("fork.private_bytes", "MiB", private),
		{Name: "fork.all", Value: float64(took) / 1e6, Unit: "ms", N: len(children)},
		{Name: "fork.all_answered", Value: float64(answered) / 1e6, Unit: "ms", N: len(children)},
	}, nil
}

// density: as many VMs of one snapshot at once, each of which runs a program while all are alive. The value is how many did.
func density(ctx context.Context, o options) ([]result, error) {
	snap, done, err := bakeForBench(ctx, core.BakeSpec{Ref: o.busybox, BootOnly: true})
	if err != nil {
		return nil, err
	}
	defer done()
	vms := make([]*core.VM, o.dense)
	defer func() { closeAll(vms) }()
	start := time.Now()
	err = each(len(vms), func(i int) (err error) {
		vms[i], err = snap.Start(ctx, core.StartOptions{Timeout: 5 * time.Minute}) // an emulated host with hundreds of guests is slow
		return err
	})
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	if err := answerAll(ctx, vms); err != nil {
		return nil, err
	}
	var private []float64
	for _, vm := range vms {
		n, err := vm.PrivateBytes()
		if err != nil {
			return nil, err
		}
		private = append(private, float64(n)/(1<<20))
	}
	return []result{
		{Name: fmt.Sprintf("density.%d", o.dense), Value: float64(len(vms)), Unit: "VMs", Floor: float64(o.dense), Ratio: 1, N: 1},
		{Name: "density.start", Value: float64(took) / 1e6, Unit: "ms", N: len(vms)},
		counts("density.private", "MiB", private),
	}, nil
}

// each calls f for 0 to n-1, eight at a time.
func each(n int, f func(i int) error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = f(i)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func answerAll(ctx context.Context, vms []*core.VM) error {
	errs := make([]error, len(vms))
	var wg sync.WaitGroup
	for i, vm := range vms {
		wg.Go(func() { errs[i] = answer(ctx, vm) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func closeAll(vms []*core.VM) {
	each(len(vms), func(i int) error {
		if vms[i] != nil {
			vms[i].Close()
		}
		return nil
	})
}

// counts turns samples that have no floor into a result.
func counts(name, unit string, samples []float64) result {
	s := append([]float64(nil), samples...)
	sort.Float64s(s)
	at := func(p int) float64 { return s[(len(s)*p+99)/100-1] }
	return result{Name: name, Value: at(50), Unit: unit, N: len(s), P50: at(50), P99: at(99)}
}

// stepTimes collects the steps of restores.
type stepTimes struct {
	mu    sync.Mutex
	names []string
	took  map[string][]time.Duration
}

// traceSteps collects from now on.
func traceSteps() (t *stepTimes, remove func()) {
	t = &stepTimes{took: map[string][]time.Duration{}}
	remove = trace.Add(func(s trace.Step) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.took[s.Name] == nil {
			t.names = append(t.names, s.Name)
		}
		t.took[s.Name] = append(t.took[s.Name], s.Took)
	}, trace.Restore)
	return t, remove
}

func (t *stepTimes) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names, t.took = nil, map[string][]time.Duration{}
}

func (t *stepTimes) print() {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintln(os.Stderr, "steps of a restore, median:")
	for _, name := range t.names {
		fmt.Fprintf(os.Stderr, "  %8.3f ms  %s\n", float64(quantile(t.took[name], 50))/1e6, name)
	}
}
