package api

import (
	"context"
	"strings"

	"github.com/supermachine/supermachine/core/agent/wire"
)

func init() {
	define("vm_connect", KindVM, 0, "Opens a byte stream to a TCP port on the guest's loopback address.", connect)
	define("vm_socket_path", KindVM, 0, "Returns the path of a Unix socket that leads to the workload's port, for other processes of the same user. It is in a directory that nobody "+
		"else may enter, and goes with the VM.",
		func(ctx context.Context, e *env, m *vm, _ *None) (pathResult, error) {
			path, err := m.SocketPath()
			return pathResult{path}, err
		})
	define("vm_forward", KindVM, 0, "Listens on the host and connects everything that arrives to the guest's TCP port, until the handle or the VM is closed.", startForward)
	define("vm_forward_to_host", KindVM, 0, "Has the guest listen on a TCP port of its loopback address and connects everything that arrives to a server of the host, until the handle or the VM "+
		"is closed. Copies of the VM do not have it.", forwardToHost)
	define("forward_stats", KindForward, quick, "Says what a forward has done so far.",
		func(ctx context.Context, e *env, f forward, _ *None) (forwardStats, error) {
			st := f.Stats()
			return forwardStats{st.Open, st.Total, st.Failed, st.Sent, st.Received}, nil
		})
	defineClose("forward_close", KindForward, "Stops listening. Connections that are open stay open.")
}

type pathResult struct {
	Path string `msgpack:"path" doc:"Absolute."`
}

type forwardStats struct {
	Open     int64 `msgpack:"open" doc:"Connections that are open."`
	Total    int64 `msgpack:"total" doc:"Connections that came."`
	Failed   int64 `msgpack:"failed" doc:"Of them, those whose other end could not be reached."`
	Sent     int64 `msgpack:"sent" doc:"Bytes from who connects."`
	Received int64 `msgpack:"received" doc:"Bytes to who connects."`
}

type connectResult struct {
	FD int `msgpack:"fd" holds:"fd" doc:"The stream; the caller's to close."`
}

func connect(ctx context.Context, e *env, m *vm, o *struct {
	Port uint16 `msgpack:"port" doc:"1 to 65535; default: the workload's, as the bake or the image says, or else the one on which a program has listened longest."`
}) (connectResult, error) {
	guest, err := m.Connect(ctx, o.Port)
	if err != nil {
		return connectResult{}, err
	}
	host, fd, err := socketPair()
	if err != nil {
		guest.Close()
		return connectResult{}, err
	}
	go func() {
		defer guest.Close()
		defer host.Close()
		wire.Splice(host, guest)
	}()
	return connectResult{fd}, nil
}

type forwardOptions struct {
	Address string `msgpack:"address" doc:"Where to listen: HOST:PORT, where port 0 takes a free one, or the path of a Unix socket; default 127.0.0.1:0."`
	Port    uint16 `msgpack:"port" doc:"The guest's, 1 to 65535; default: as vm_connect."`
}

type forwardResult struct {
	Forward uint64 `msgpack:"forward" holds:"handle" doc:"The listener."`
	Address string `msgpack:"address" doc:"Where it listens."`
}

func startForward(ctx context.Context, e *env, m *vm, o *forwardOptions) (forwardResult, error) {
	address := o.Address
	if address == "" {
		address = "127.0.0.1:0"
	}
	f, err := m.Forward(networkOf(address), address, o.Port)
	if err != nil {
		return forwardResult{}, err
	}
	return forwardResult{e.lib.handles.put(KindForward, forward{f}), f.Addr().String()}, nil
}

// networkOf tells paths of Unix sockets from HOST:PORT.
func networkOf(address string) string {
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, ".") {
		return "unix"
	}
	return "tcp"
}

type toHostOptions struct {
	Port    uint16 `msgpack:"port" doc:"The guest's, 1 to 65535; default: any that is free."`
	Address string `msgpack:"address" doc:"Of the host's server: HOST:PORT, or the path of a Unix socket; required."`
}

type toHostResult struct {
	Forward uint64 `msgpack:"forward" holds:"handle" doc:"The listener."`
	Port    uint16 `msgpack:"port" doc:"The guest's port."`
}

func forwardToHost(ctx context.Context, e *env, m *vm, o *toHostOptions) (toHostResult, error) {
	f, err := m.ForwardToHost(ctx, o.Port, networkOf(o.Address), o.Address)
	if err != nil {
		return toHostResult{}, err
	}
	return toHostResult{e.lib.handles.put(KindForward, forward{f}), f.Port()}, nil
}
