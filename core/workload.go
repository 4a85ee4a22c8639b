package core

import "context"

// StartWorkload starts a program as the workload: it runs by itself, without streams, and gets the stop signal when the VM is stopped. The
// guest keeps the last 256 KiB of its output for Follow. The request's streams must be unset. It returns once the program runs; errors are
// those of Exec.
func (vm *VM) StartWorkload(ctx context.Context, req Exec) error {
	if err := vm.agent.StartWorkload(ctx, req); err != nil {
		return vm.wrapEnded("start the workload "+programName(req)+" in VM", err)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.meta.Workload, vm.meta.Command, vm.meta.Env, vm.meta.Dir, vm.meta.User = true, req.Args, req.Env, req.Dir, req.User
	return nil
}

// Follow attaches to the workload that StartWorkload or a bake started: what the guest has kept of its output comes first, then what it
// writes. The Process ends with the workload and signals go to it; when ctx is done only the following ends.
func (vm *VM) Follow(ctx context.Context, to Attachment) (*Process, error) {
	p, err := vm.agent.Follow(ctx, to)
	if err != nil {
		return nil, vm.wrapEnded("follow the workload of VM", err)
	}
	vm.noteAnswer()
	return &Process{p, vm}, nil
}

// GuestPort returns the TCP port of the workload as the snapshot's bake was told, or as the image exposes it; 0 if neither says any.
func (vm *VM) GuestPort() uint16 {
	if vm.meta.GuestPort != 0 {
		return vm.meta.GuestPort
	}
	return exposedPort(vm.image)
}
