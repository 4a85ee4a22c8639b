package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supermachine/supermachine/core/admission"
	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/netstack"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio/balloon"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/core/virtio/console"
	"github.com/supermachine/supermachine/core/virtio/vsock"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// EndReason is why a VM ended.
type EndReason int

const (
	EndStopped    EndReason = iota // the host asked: Stop, Kill or Close
	EndPoweredOff                  // the guest shut itself down
	EndRebooted                    // the guest rebooted; a VM does not come up again by itself
	EndPanicked                    // the guest's kernel panicked
	EndCrashed                     // the guest's processor state went wrong beyond repair (triple fault)
	EndFailed                      // the host could not run the guest any further
	EndExpired                     // its lifetime has passed
)

// String returns a short description, such as "kernel panic".
func (r EndReason) String() string {
	return [...]string{"stopped", "powered off", "rebooted", "kernel panic", "crashed", "host failure", "expired"}[r]
}

// End tells how a VM ended.
type End struct {
	Reason EndReason
	Detail string // for EndPanicked the kernel's message, for EndFailed the host's error; else empty
}

func (e End) String() string {
	if e.Detail != "" {
		return e.Reason.String() + ": " + e.Detail
	}
	return e.Reason.String()
}

// VM is a running microVM. Its methods may be called from any goroutine. It must be closed.
type VM struct {
	id      string
	cfg     Config
	image   *Image
	machine *machine.Machine
	vsock   *vsock.Device
	calls   net.Listener // where the guest's agent calls at boot
	console *console.Ring
	agent   *agent.Client
	balloon *balloon.Device
	scratch *scratch
	disks   []*block.Device
	started time.Time

	restoreID   string
	own         agent.Mount     // what the guest is told of the VM's devices
	network     *netstack.Stack // nil: none
	memory      *memory.Image   // that the machine's memory was mapped from; nil for a VM that was booted
	origin      *Snapshot       // that it goes back to; nil for none
	meta        SnapshotMeta    // what a snapshot of it says, as far as it is known: the workload
	firstAnswer func()          // called once after the first program has run; may be nil
	answered    sync.Once
	op          *trace.Operation
	saving      sync.Mutex             // held while a checkpoint is made
	room        *admission.Reservation // of host memory
	closeOnce   sync.Once
	counted     bool // by noteStart

	idle     idler
	lifetime *time.Timer // ends the VM; nil for none

	mu       sync.Mutex
	paused   bool // by Pause
	stopping bool // the host asked for the end
	expired  bool // because its lifetime has passed
	forwards map[*Forward]struct{}

	socketing    sync.Mutex // held while SocketPath makes the socket
	socketDir    string     // of SocketPath, empty before
	reversePorts atomic.Uint32
}

// ID returns the VM's random identifier, 12 hexadecimal digits.
func (vm *VM) ID() string { return vm.id }

// Name returns the VM's name, which is also the guest's host name.
func (vm *VM) Name() string { return vm.cfg.Name }

// Image returns the image that the VM runs.
func (vm *VM) Image() *Image { return vm.image }

// Config returns the configuration with all defaults filled in.
func (vm *VM) Config() Config { return vm.cfg }

// Started returns when the guest's agent first answered.
func (vm *VM) Started() time.Time { return vm.started }

// ConsoleTail returns the last lines, at most n bytes, of what the guest's kernel and init wrote to the console.
func (vm *VM) ConsoleTail(n int) string { return string(vm.console.Tail(n)) }

// FollowConsole reads what is kept of the console, the last 64 KiB, and then what comes, until the VM ends. A reader that is slow misses some. The
// caller closes it, which ends a Read that waits.
func (vm *VM) FollowConsole() io.ReadCloser {
	r := vm.console.NewReader()
	go func() {
		select {
		case <-vm.Done():
		case <-r.Closed():
		}
	}()
	return r
}

// Pause stops the guest's processors and devices; its memory stays. Connections wait. Pausing a paused VM does nothing.
func (vm *VM) Pause() error {
	vm.saving.Lock()
	defer vm.saving.Unlock()
	vm.wake() // from now on it sleeps for the caller
	err := vm.machine.Pause()
	vm.setPaused(err == nil)
	return vm.wrapEnded("pause VM", err)
}

// Resume continues a paused VM.
func (vm *VM) Resume() error {
	vm.saving.Lock()
	defer vm.saving.Unlock()
	vm.setPaused(false)
	vm.wake()
	return vm.wrapEnded("resume VM", vm.machine.Resume())
}

func (vm *VM) setPaused(paused bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.paused = paused
}

func (vm *VM) isPaused() bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.paused
}

// Done is closed when the VM has ended, for whatever reason.
func (vm *VM) Done() <-chan struct{} { return vm.machine.Ended() }

// Wait blocks until the VM has ended and tells how.
func (vm *VM) Wait(ctx context.Context) (End, error) {
	select {
	case <-vm.Done():
		return vm.End(), nil
	case <-ctx.Done():
		return End{}, wrap("wait for VM", vm.id, ctx.Err())
	}
}

// End tells how the VM ended; it is only meaningful after Done is closed.
func (vm *VM) End() End {
	exit := vm.machine.Exit()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch exit.Reason {
	case machine.ExitFailed:
		return End{EndFailed, exit.Err.Error()}
	case machine.ExitTripleFault:
		return End{Reason: EndCrashed}
	case machine.ExitReset:
		if msg, ok := panicMessage(vm.console.Tail(console.RingSize)); ok {
			return End{EndPanicked, msg}
		}
		switch {
		case vm.stopping:
			return End{Reason: EndStopped}
		case vm.agent != nil && vm.agent.StopReason() == agent.StopPowerOff:
			return End{Reason: EndPoweredOff}
		}
		return End{Reason: EndRebooted}
	}
	if vm.expired {
		return End{Reason: EndExpired}
	}
	return End{Reason: EndStopped}
}

// panicMessage finds the kernel's reason for a panic in the console's output.
func panicMessage(out []byte) (string, bool) {
	const mark = "Kernel panic - not syncing: "
	i := strings.LastIndex(string(out), mark)
	if i < 0 {
		return "", false
	}
	msg, _, _ := strings.Cut(string(out[i+len(mark):]), "\n")
	return strings.TrimSpace(msg), true
}

// Stop asks the guest to shut down: the workload gets its stop signal and up to grace to end, then the guest powers off. If the guest
// does not make it until ctx is done or a few seconds past grace, the VM is stopped by force. It returns when the VM has ended.
func (vm *VM) Stop(ctx context.Context, grace time.Duration) error {
	vm.noteStop()
	const powerOff = 5 * time.Second // for syncing and unmounting, after the workload is gone
	ctx, cancel := context.WithTimeout(ctx, grace+powerOff)
	defer cancel()
	go vm.agent.Shutdown(ctx, grace) // its failure shows as the VM not ending
	select {
	case <-vm.Done():
	case <-ctx.Done():
		vm.Kill()
	}
	<-vm.Done()
	return nil
}

// Kill ends the VM at once, without asking the guest, and returns without waiting for the release of its resources. A volume is left as by a loss of
// power: whole, but without what the guest had not brought to disk.
func (vm *VM) Kill() {
	vm.noteStop()
	vm.machine.Stop()
}

// expire ends the VM because its lifetime has passed.
func (vm *VM) expire() {
	vm.mu.Lock()
	select {
	case <-vm.Done():
	default:
		vm.expired = true
	}
	vm.mu.Unlock()
	vm.Kill()
}

// watch begins what ends or pauses the VM by itself.
func (vm *VM) watch() {
	if vm.cfg.Lifetime > 0 {
		vm.lifetime = time.AfterFunc(vm.cfg.Lifetime, vm.expire)
	}
	vm.watchIdle(vm.cfg.IdleTimeout)
}

// noteStop notes that the host asked for the end, unless the VM has ended by itself before.
func (vm *VM) noteStop() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	select {
	case <-vm.Done():
	default:
		vm.stopping = true
	}
}

// haltTime is how long a guest may take to leave its volumes whole.
const haltTime = 5 * time.Second

// Halt ends the VM by force if it still runs. One with volumes that it may write to is shut down first, without a stop signal, so that what was
// written is kept; it gets 5 seconds for that. Everything else is released by Close.
func (vm *VM) Halt() {
	select {
	case <-vm.Done():
		return
	default:
	}
	if vm.agent != nil && slices.ContainsFunc(vm.cfg.Volumes, func(v Volume) bool { return !v.ReadOnly }) {
		if vm.isPaused() {
			vm.Resume()
		}
		ctx, cancel := context.WithTimeout(context.Background(), haltTime)
		defer cancel()
		vm.Stop(ctx, 0)
	}
	vm.Kill()
}

// Close ends the VM as Halt does and waits until everything is released: memory, files, listeners. Closing twice is allowed.
func (vm *VM) Close() error {
	vm.Halt()
	vm.stopIdling()
	if vm.lifetime != nil {
		vm.lifetime.Stop()
	}
	vm.closeForwards()
	if vm.agent != nil {
		vm.agent.Close()
	}
	<-vm.machine.Done()
	vm.closeOnce.Do(func() {
		vm.noteClose()
		vm.console.Close()
		vm.closeNetwork()
		if vm.memory != nil {
			vm.memory.Close()
		}
		if vm.room != nil {
			vm.room.Release()
		}
	})
	return nil
}

// lastWords is how long a guest may take from the end of its agent, without which it does not last, to its own.
const lastWords = 5 * time.Second

// wrapEnded gives err its operation, and ErrVMEnded as its code if the VM is no more.
func (vm *VM) wrapEnded(op string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, agent.ErrClosed) && !errors.Is(err, context.Canceled) { // a guest that shuts down closes its connections some time before its end
		timer := time.NewTimer(lastWords)
		defer timer.Stop()
		select {
		case <-vm.Done():
		case <-timer.C:
		}
	}
	select {
	case <-vm.Done():
		if !errors.Is(err, context.Canceled) {
			return &Error{Code: ErrVMEnded, Op: op, Object: vm.id, Err: fmt.Errorf("the VM has ended (%v): %w", vm.End(), err)}
		}
	default:
	}
	return wrap(op, vm.id, err)
}
