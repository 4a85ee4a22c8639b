package core

import (
	"context"
	"fmt"
	"sync"

	"github.com/supermachine/supermachine/core/trace"
)

// MaxFork is the most children of one Fork.
const MaxFork = 1024

// ForkOptions say how children are made. The zero value gives them the defaults. A child whose StartOptions have no Volumes and Mounts, nil, gets
// the mounts of the VM, and its volumes that are only read. One without a Network gets one like the VM's, if that has any.
type ForkOptions struct {
	// Child, if set, returns the options of child number i, 0 ≤ i < n.
	Child func(i int) StartOptions
}

// Fork makes n VMs (1 to MaxFork) that go on from this instant, each with an identity of its own, while this VM goes on too. They share its
// memory and disk copy-on-write. What Snapshot says of programs that were started by Exec is true of the children. After an error there are
// no children.
func (vm *VM) Fork(ctx context.Context, n int, o ForkOptions) ([]*VM, error) {
	if n < 1 || n > MaxFork {
		return nil, rangeError("fork VM", "number of children", n, 1, MaxFork)
	}
	children, err := vm.fork(ctx, n, o)
	return children, vm.wrapEnded("fork VM", err)
}

func (vm *VM) fork(ctx context.Context, n int, o ForkOptions) ([]*VM, error) {
	c := capture{category: trace.Snapshot, share: true}
	if vm.origin != nil {
		c.keep = vm.origin.disk
	}
	cp, err := vm.checkpoint(ctx, c)
	if err != nil {
		return nil, err
	}
	defer cp.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	children := make([]*VM, n)
	var wg sync.WaitGroup
	for i := range children {
		wg.Go(func() {
			var opts StartOptions
			if o.Child != nil {
				opts = o.Child(i)
			}
			if opts.Volumes == nil && opts.Mounts == nil {
				opts.Volumes, opts.Mounts = vm.shared()
			}
			if opts.Network == nil {
				opts.Network = vm.cfg.Network
			}
			child, err := cp.startGated(ctx, opts, nil)
			if err != nil {
				cancel(fmt.Errorf("child %d: %w", i, err)) // the others' errors are only that they were canceled
				return
			}
			child.noteStart(&counters.forked)
			child.origin, child.meta = vm.origin, vm.meta
			children[i] = child
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		for _, child := range children {
			if child != nil {
				wg.Go(func() { child.Close() })
			}
		}
		wg.Wait()
		return nil, err
	}
	return children, nil
}

// shared returns what is attached to the VM and can be attached to its children too.
func (vm *VM) shared() ([]Volume, []Mount) {
	var volumes []Volume
	for _, v := range vm.cfg.Volumes {
		if v.ReadOnly {
			volumes = append(volumes, v)
		}
	}
	return volumes, vm.cfg.Mounts
}
