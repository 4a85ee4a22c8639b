package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/netstack"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/net"
)

// Network lets a guest reach other computers, by a TCP/IP stack in this process that takes no privileges. The guest has the address 192.168.127.2, and
// the gateway 192.168.127.1, which answers for names and stands for the host's 127.0.0.1. Nothing reaches the guest that way but answers.
//
// Without rules it may reach the public Internet. Always denied, unless a rule allows it by an address within: the host, private and link-local
// networks, and the metadata services of clouds.
type Network struct {
	// Default is "allow" or "deny", for what no rule is about; empty: allow.
	Default string
	// Rules are looked at in order, and the first that fits decides: "allow|deny WHAT[:PORTS][/tcp|udp]". WHAT is an address, a network such as
	// 10.0.0.0/8, a name, *.NAME for all below it, or *; PORTS is a number or a range: "allow *.npmjs.org:443", "deny 203.0.113.0/24".
	Rules []string
	// BytesPerSecond limits each direction; 0: no limit.
	BytesPerSecond int64
	// Log is told of connections that were refused, a bounded number of them; nil: nobody is.
	Log *slog.Logger
}

// NetworkStats is what a guest's network has done since the VM was started here. Bytes are those of Ethernet frames.
type NetworkStats = netstack.Stats

// networkSlot is the network device's place on the board.
const networkSlot = 6

// guestMAC is every guest's address, as none is connected to another: copies keep it.
var guestMAC = net.MAC{0x02, 's', 'u', 'p', 'e', 'r'}

// check returns what is wrong with the rules.
func (n *Network) check() error {
	if n == nil {
		return nil
	}
	_, err := n.policy()
	if err == nil && n.BytesPerSecond < 0 {
		return rangeError("check configuration", "bytes per second", n.BytesPerSecond, 0, 1<<62)
	}
	return err
}

func (n *Network) policy() (netstack.Policy, error) {
	def := netstack.Allow
	var err error
	switch n.Default {
	case "", "allow":
	case "deny":
		def = netstack.Deny
	default:
		err = fmt.Errorf("%q is neither allow nor deny", n.Default)
	}
	p, perr := netstack.ParsePolicy(def, n.Rules...)
	if err = errors.Join(err, perr); err != nil {
		return p, &Error{Code: ErrInvalidArgument, Op: "read the network's rules", Err: err}
	}
	return p, nil
}

// openNetwork returns the network's device, nil if there is none and the guest knows of none. A guest that does, in the saved state, gets one that
// leads nowhere.
func (vm *VM) openNetwork(n *Network, saved []virtio.State) (virtio.Device, error) {
	known := len(saved) > networkSlot && saved[networkSlot].DeviceID != 0
	if n == nil && !known {
		return nil, nil
	}
	c := net.Config{MAC: guestMAC, Link: nowhere{}}
	if n != nil {
		policy, err := n.policy()
		if err != nil {
			return nil, err
		}
		if vm.network, err = netstack.New(netstack.Config{MAC: guestMAC, Policy: policy, HostNames: []string{gatewayName}, Log: slog.New(refusals{vm.id, n.Log})}); err != nil {
			return nil, wrap("make the network of VM", vm.id, err)
		}
		c.Link, c.FromGuest, c.ToGuest = vm.network, n.BytesPerSecond, n.BytesPerSecond
	}
	dev, err := net.New(c)
	if err != nil {
		vm.closeNetwork()
		return nil, err
	}
	return dev, nil
}

// refusals tells the trace and the caller's log, if there is one, of what was refused. netstack bounds how much that is.
type refusals struct {
	id string
	to *slog.Logger
}

// Enabled implements slog.Handler.
func (r refusals) Enabled(ctx context.Context, level slog.Level) bool {
	return r.to != nil && r.to.Enabled(ctx, level) || trace.Wanted(trace.Net)
}

// Handle implements slog.Handler.
func (r refusals) Handle(ctx context.Context, rec slog.Record) error {
	if trace.Wanted(trace.Net) {
		text := rec.Message
		rec.Attrs(func(a slog.Attr) bool {
			text += " " + a.String()
			return true
		})
		trace.Event(trace.Net, r.id, "%s", text)
	}
	if r.to == nil || !r.to.Enabled(ctx, rec.Level) {
		return nil
	}
	rec = rec.Clone()
	rec.AddAttrs(slog.String("vm", r.id))
	return r.to.Handler().Handle(ctx, rec)
}

// WithAttrs and WithGroup implement slog.Handler; netstack uses neither.
func (r refusals) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r refusals) WithGroup(string) slog.Handler      { return r }

// gatewayName is a name of the gateway.
const gatewayName = "host.supermachine.internal"

// closeNetwork ends all connections.
func (vm *VM) closeNetwork() {
	if vm.network != nil {
		vm.network.Close()
	}
}

// guestNetwork is what the guest is told; nil takes its network down.
func (vm *VM) guestNetwork() *agent.Network {
	if vm.network == nil {
		return nil
	}
	return &agent.Network{
		Slot: networkSlot, Address: netstack.GuestIP, PrefixBits: netstack.PrefixBits, Gateway: netstack.Gateway, MTU: netstack.MaxMTU,
	}
}

// nowhere is the other end of a cable that is not plugged in.
type nowhere struct{}

func (nowhere) Attach(func([][]byte) bool) {}
func (nowhere) Send([][]byte)              {}
