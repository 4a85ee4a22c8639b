package core

import (
	"context"
	"net"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ServeAgent accepts connections on l and connects each to the guest's agent, so that other processes can use package agent on this VM. It
// returns when l fails, which it does once l is closed.
func (vm *VM) ServeAgent(l net.Listener) error {
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			guest, err := vm.dial(context.Background(), wire.ControlPort)
			if err != nil {
				return
			}
			defer guest.Close()
			wire.Splice(client, guest)
		}()
	}
}
