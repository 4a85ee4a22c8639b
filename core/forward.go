package core

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// Connect opens a byte stream to a TCP port on the guest's loopback address, where its server listens.
func (vm *VM) Connect(ctx context.Context, port uint16) (net.Conn, error) {
	conn, err := vm.vsock.Dial(ctx, agent.ProxyPort)
	if err == nil {
		if err = agent.DialPort(ctx, conn, port); err == nil {
			vm.noteAnswer()
			return conn, nil
		}
		conn.Close()
	}
	return nil, vm.wrapEnded("connect to the guest's port", err)
}

// DialVsock connects to a vsock port of the guest, for programs in it that speak AF_VSOCK.
func (vm *VM) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vm.vsock.Dial(ctx, port)
	return conn, vm.wrapEnded("connect to the guest's vsock port", err)
}

// Forward is a host listener whose connections go to a port of the guest.
type Forward struct {
	vm       *VM
	listener net.Listener
	port     uint16
	wg       sync.WaitGroup
}

// Forward listens on the host and connects everything that arrives to the guest's TCP port. network is "tcp" or "unix", address as for
// net.Listen; the guest's server need not run yet. The caller or VM.Close closes it.
func (vm *VM) Forward(network, address string, port uint16) (*Forward, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, wrap("forward "+address+" to VM", vm.id, err)
	}
	f := &Forward{vm: vm, listener: l, port: port}
	vm.mu.Lock()
	vm.forwards[f] = struct{}{}
	vm.mu.Unlock()
	f.wg.Add(1)
	go f.accept()
	return f, nil
}

// Addr returns the address that the host listens on.
func (f *Forward) Addr() net.Addr { return f.listener.Addr() }

// Port returns the guest's port.
func (f *Forward) Port() uint16 { return f.port }

// Close stops listening. Connections that are open stay open until either side ends them or the VM ends.
func (f *Forward) Close() error {
	f.vm.mu.Lock()
	delete(f.vm.forwards, f)
	f.vm.mu.Unlock()
	err := f.listener.Close()
	f.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (f *Forward) accept() {
	defer f.wg.Done()
	for {
		host, err := f.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer host.Close()
			guest, err := f.vm.Connect(context.Background(), f.port)
			if err != nil {
				return // the client sees its connection closed, as from a port where nothing listens
			}
			defer guest.Close()
			wire.Splice(host, guest)
		}()
	}
}
