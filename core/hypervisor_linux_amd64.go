package core

import (
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/kvm"
)

// openHypervisor returns this platform's backend.
func openHypervisor() (hypervisor.Hypervisor, error) {
	s, err := kvm.Open()
	if err != nil {
		return nil, err
	}
	return s, nil
}
