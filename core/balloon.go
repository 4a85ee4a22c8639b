package core

import (
	"context"
	"errors"
	"time"

	"github.com/supermachine/supermachine/core/virtio/balloon"
)

// MemoryStats is what the guest says of its memory, in bytes.
type MemoryStats = balloon.Stats

// MemoryStats asks the guest's kernel about its memory. All of it are the guest's claims.
func (vm *VM) MemoryStats(ctx context.Context) (MemoryStats, error) {
	st, err := vm.balloon.Stats(ctx)
	return st, vm.wrapEnded("ask for the memory of VM", err)
}

// SetBalloon asks the guest to give up bytes of its memory, which the host gets back; 0 returns all of it. The guest complies as far as it
// can, without haste; Balloon tells how far. Free memory comes back by itself, without a balloon, some seconds after the guest has freed it.
func (vm *VM) SetBalloon(bytes int64) error {
	if limit := int64(vm.cfg.MemoryMiB) << 20; bytes < 0 || bytes > limit {
		return rangeError("set the balloon of VM", "bytes", bytes, 0, limit)
	}
	vm.balloon.SetTarget(bytes)
	return nil
}

// Balloon returns how many bytes the guest says it has given up.
func (vm *VM) Balloon() int64 { return vm.balloon.Actual() }

const (
	// squeezeMargin is what the guest's kernel keeps when it gives up its free memory, to work with.
	squeezeMargin = 12 << 20
	squeezePoll   = 2 * time.Millisecond
	squeezeStall  = 200 * time.Millisecond // without progress, nothing more is to be had
	squeezeTime   = 15 * time.Second
)

// squeeze makes the guest's free memory read as zeros, so that a saved memory holds none of it: it goes through the balloon once. What a
// large guest does not give up in time makes its image larger, no more.
func (vm *VM) squeeze(ctx context.Context) error {
	inflate, cancel := context.WithTimeout(ctx, squeezeTime)
	defer cancel()
	st, err := vm.balloon.Stats(inflate)
	switch {
	case errors.Is(err, balloon.ErrNoStats):
		return nil // a guest without a balloon has a larger image
	case err != nil:
		return err
	}
	if st.Free <= squeezeMargin {
		return nil
	}
	if err := vm.moveBalloon(inflate, st.Free-squeezeMargin); err != nil && (inflate.Err() == nil || ctx.Err() != nil) {
		return err
	}
	deflate, cancel := context.WithTimeout(ctx, 4*squeezeTime)
	defer cancel()
	return vm.moveBalloon(deflate, 0)
}

// moveBalloon sets the balloon's size and waits until the guest has followed, or follows no further.
func (vm *VM) moveBalloon(ctx context.Context, bytes int64) error {
	vm.balloon.SetTarget(bytes)
	tick := time.NewTicker(squeezePoll)
	defer tick.Stop()
	last, moved := vm.balloon.Actual(), time.Now()
	for last != bytes && (bytes == 0 || time.Since(moved) < squeezeStall) {
		select {
		case <-tick.C:
		case <-vm.Done():
			return errors.New("the VM has ended")
		case <-ctx.Done():
			if bytes != 0 {
				vm.balloon.SetTarget(0)
			}
			return ctx.Err()
		}
		if now := vm.balloon.Actual(); now != last {
			last, moved = now, time.Now()
		}
	}
	return nil
}
