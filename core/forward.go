package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/machine"
)

// Connect opens a byte stream to a TCP port on the guest's loopback address, where its server listens. Port 0 is the workload's: GuestPort, or
// else the port on which some program has listened longest.
func (vm *VM) Connect(ctx context.Context, port uint16) (net.Conn, error) {
	conn, err := vm.connectPort(ctx, port)
	return conn, vm.wrapEnded("connect to the guest's port", err)
}

func (vm *VM) connectPort(ctx context.Context, port uint16) (net.Conn, error) {
	if port == 0 {
		var err error
		if port, err = vm.workloadPort(ctx); err != nil {
			return nil, err
		}
	}
	conn, err := vm.dial(ctx, agent.ProxyPort)
	if err != nil {
		return nil, err
	}
	if err := agent.DialPort(ctx, conn, port); err != nil {
		conn.Close()
		return nil, err
	}
	vm.noteAnswer()
	counters.connections.Add(1)
	return conn, nil
}

func (vm *VM) workloadPort(ctx context.Context) (uint16, error) {
	if port := vm.GuestPort(); port != 0 {
		return port, nil
	}
	ports, err := vm.agent.Ports(ctx)
	if err != nil {
		return 0, err
	}
	if len(ports) == 0 {
		return 0, &Error{Code: ErrRefused, Op: "choose a port of VM", Object: vm.id, Err: errors.New("the image exposes none and no program listens on any")}
	}
	return ports[0], nil
}

// DialVsock connects to a vsock port of the guest, for programs in it that speak AF_VSOCK.
func (vm *VM) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vm.dial(ctx, port)
	return conn, vm.wrapEnded("connect to the guest's vsock port", err)
}

// Forward is a listener, on the host or in the guest, whose connections go to a port on the other side.
type Forward struct {
	vm       *VM
	listener net.Listener
	addr     net.Addr
	port     uint16
	dial     func(context.Context) (net.Conn, error)
	stop     func() // tells the guest to listen no more; nil on the host
	once     sync.Once
	wg       sync.WaitGroup

	open, total, failed atomic.Int64
	bytes               wire.Counts // A is who connects
}

// ForwardStats says what a Forward has done so far.
type ForwardStats struct {
	Open     int64 // connections that are open
	Total    int64 // connections accepted
	Failed   int64 // of them, those whose other end could not be reached
	Sent     int64 // bytes from who connects
	Received int64 // bytes to who connects
}

// Forward listens on the host and connects everything that arrives to the guest's TCP port, 0 as in Connect. network is "tcp" or "unix", address
// as for net.Listen; the guest's server need not run yet. The caller or VM.Close closes it. Errors: ErrInUse for an address that is taken.
func (vm *VM) Forward(network, address string, port uint16) (*Forward, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, wrap("forward "+address+" to VM", vm.id, err)
	}
	f := &Forward{vm: vm, listener: l, addr: l.Addr(), port: port, dial: func(ctx context.Context) (net.Conn, error) { return vm.connectPort(ctx, port) }}
	return f.start()
}

// ForwardToHost has the guest listen on a TCP port of its loopback address, 0 for a free one, and connects everything that arrives to an address
// of the host: network is "tcp" or "unix". The host's server need not run yet. The caller or VM.Close closes it; copies of the VM do not have
// it. Errors: ErrInUse for a port that is taken in the guest.
func (vm *VM) ForwardToHost(ctx context.Context, port uint16, network, address string) (*Forward, error) {
	f, err := vm.forwardToHost(ctx, port, network, address)
	return f, vm.wrapEnded(fmt.Sprintf("forward port %d of the guest to %s for VM", port, address), err)
}

func (vm *VM) forwardToHost(ctx context.Context, port uint16, network, address string) (*Forward, error) {
	if network != "tcp" && network != "unix" {
		return nil, &Error{Code: ErrInvalidArgument, Op: "forward to", Object: address, Err: fmt.Errorf("network %q is neither tcp nor unix", network)}
	}
	host := firstReversePort + vm.reversePorts.Add(1)
	l, err := vm.vsock.Listen(host)
	if err != nil {
		return nil, err
	}
	guest, stop, err := vm.agent.Reverse(ctx, port, host)
	if err != nil {
		l.Close()
		return nil, err
	}
	var d net.Dialer
	f := &Forward{
		vm: vm, listener: l, addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(guest)}, port: guest, stop: stop,
		dial: func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, address) },
	}
	return f.start()
}

// firstReversePort is below the vsock ports of the host that guests connect to for their forwards.
const firstReversePort = 1 << 20

func (f *Forward) start() (*Forward, error) {
	f.vm.mu.Lock()
	f.vm.forwards[f] = struct{}{}
	f.vm.mu.Unlock()
	counters.forwards.Add(1)
	f.wg.Add(1)
	go f.accept()
	select {
	case <-f.vm.Done(): // Close may have looked for forwards before
		f.Close()
		return nil, f.vm.wrapEnded("forward to VM", machine.ErrEnded)
	default:
		return f, nil
	}
}

// Addr returns the address that is listened on: of the host, or the guest's for ForwardToHost.
func (f *Forward) Addr() net.Addr { return f.addr }

// Port returns the guest's port; 0 for the workload's.
func (f *Forward) Port() uint16 { return f.port }

// Stats returns what the forward has done so far.
func (f *Forward) Stats() ForwardStats {
	return ForwardStats{f.open.Load(), f.total.Load(), f.failed.Load(), f.bytes.AToB.Load(), f.bytes.BToA.Load()}
}

// Close stops listening. Connections that are open stay open until either side ends them or the VM ends. Closing twice is allowed.
func (f *Forward) Close() error {
	var err error
	f.once.Do(func() {
		f.vm.mu.Lock()
		delete(f.vm.forwards, f)
		f.vm.mu.Unlock()
		counters.forwards.Add(-1)
		if f.stop != nil {
			f.stop()
		}
		err = f.listener.Close()
		f.wg.Wait()
	})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (f *Forward) accept() {
	defer f.wg.Done()
	for {
		from, err := f.listener.Accept()
		if err != nil {
			return
		}
		go f.serve(from)
	}
}

func (f *Forward) serve(from net.Conn) {
	defer from.Close()
	f.total.Add(1)
	counters.forwarded.Add(1)
	f.open.Add(1)
	defer f.open.Add(-1)
	to, err := f.dial(context.Background())
	if err != nil {
		f.failed.Add(1) // the client sees its connection closed, as from a port where nothing listens
		return
	}
	defer to.Close()
	wire.SpliceCounted(from, to, &f.bytes)
}

// SocketPath returns the path of a Unix socket that leads to the workload's port, Connect's port 0, for other processes of the same user. It is
// made with the first call, in a directory of its own that only the user may enter, whose name no other process can have, and goes with the VM.
func (vm *VM) SocketPath() (string, error) {
	vm.socketing.Lock()
	defer vm.socketing.Unlock()
	vm.mu.Lock()
	dir := vm.socketDir
	vm.mu.Unlock()
	if dir != "" {
		return filepath.Join(dir, socketName), nil
	}
	dir, err := os.MkdirTemp("", "supermachine-") // mode 0700, and the name is taken at once or not at all
	if err != nil {
		return "", wrap("make a socket for VM", vm.id, err)
	}
	path := filepath.Join(dir, socketName)
	if _, err = vm.Forward("unix", path, 0); err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.socketDir = dir
	return path, nil
}

const socketName = "workload.sock"

func (vm *VM) closeForwards() {
	vm.mu.Lock()
	forwards := make([]*Forward, 0, len(vm.forwards))
	for f := range vm.forwards {
		forwards = append(forwards, f)
	}
	dir := vm.socketDir
	vm.socketDir = ""
	vm.mu.Unlock()
	for _, f := range forwards {
		f.Close()
	}
	if dir != "" {
		os.RemoveAll(dir)
	}
}
