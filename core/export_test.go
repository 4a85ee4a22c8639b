package core

import "github.com/supermachine/supermachine/core/hypervisor"

// Memory returns the guest's RAM, for tests that look into it.
func (vm *VM) Memory() *hypervisor.Memory { return vm.machine.Memory() }
