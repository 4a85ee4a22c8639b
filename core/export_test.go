package core

import (
	"context"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// Memory returns the guest's RAM, for tests that look into it.
func (vm *VM) Memory() *hypervisor.Memory { return vm.machine.Memory() }

// WriteAgain writes a snapshot under the ID that it has.
func (s *Snapshots) WriteAgain(ctx context.Context, snap *Snapshot) error {
	return s.write(ctx, snap.checkpoint, snap.info, nil)
}
