package core

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/supermachine/supermachine/core/trace"
)

// idler pauses a VM that nobody uses. A use is a program that runs, a file that is transferred or a connection that is open; what the guest
// does by itself is none, nor is the workload or following its output.
type idler struct {
	timeout time.Duration // 0: never

	mu     sync.Mutex
	uses   int
	timer  *time.Timer
	asleep bool // paused by this
	ended  bool
}

// begin notes a use, for which a VM that sleeps is woken up. The caller calls end after it.
func (vm *VM) begin() (end func()) {
	i := &vm.idle
	if i.timeout == 0 {
		return func() {}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.uses++
	i.timer.Stop()
	if i.asleep {
		i.asleep = false
		vm.machine.Resume() // it fails only for a machine that has ended, which the use itself will see
	}
	var once sync.Once
	return func() { once.Do(vm.endUse) }
}

func (vm *VM) endUse() {
	i := &vm.idle
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.uses--; i.uses == 0 && !i.ended {
		i.timer.Reset(i.timeout)
	}
}

// watchIdle begins to look for times without use.
func (vm *VM) watchIdle(timeout time.Duration) {
	i := &vm.idle
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timeout = timeout; timeout > 0 {
		i.timer = time.AfterFunc(timeout, vm.sleep)
	}
}

// sleep pauses the VM, if it is still unused and nobody else has paused it or is saving it.
func (vm *VM) sleep() {
	i := &vm.idle
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.uses > 0 || i.ended || i.asleep || vm.isPaused() {
		return
	}
	if !vm.saving.TryLock() {
		i.timer.Reset(i.timeout)
		return
	}
	defer vm.saving.Unlock()
	i.asleep = vm.machine.Pause() == nil
	trace.Event(trace.Exec, vm.id, "sleep")
}

// wake ends a sleep, before the VM is paused, saved or brought back for somebody who then decides about it. The caller holds saving.
func (vm *VM) wake() {
	i := &vm.idle
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.asleep {
		i.asleep = false
		vm.machine.Resume()
	}
	if i.timeout > 0 && !i.ended && i.uses == 0 {
		i.timer.Reset(i.timeout)
	}
}

func (vm *VM) stopIdling() {
	i := &vm.idle
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	if i.timer != nil {
		i.timer.Stop()
	}
}

// Asleep reports whether the VM is paused because nobody has used it for its idle timeout. The next use wakes it up.
func (vm *VM) Asleep() bool {
	vm.idle.mu.Lock()
	defer vm.idle.mu.Unlock()
	return vm.idle.asleep
}

// usedConn is a connection that counts as a use while it is open.
type usedConn struct {
	net.Conn
	end func()
}

// CloseWrite ends this direction; the other goes on.
func (c usedConn) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// Close implements net.Conn.
func (c usedConn) Close() error {
	defer c.end()
	return c.Conn.Close()
}

// dial connects to a vsock port of the guest; the connection counts as a use.
func (vm *VM) dial(ctx context.Context, port uint32) (net.Conn, error) {
	end := vm.begin()
	op := trace.Begin(trace.VSock, vm.id)
	conn, err := vm.vsock.Dial(ctx, port)
	op.Step("connect to port %d", port)
	if err != nil {
		end()
		return nil, err
	}
	if vm.idle.timeout == 0 {
		return conn, nil
	}
	return usedConn{conn, end}, nil
}
