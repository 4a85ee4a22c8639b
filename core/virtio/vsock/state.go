package vsock

import (
	"fmt"
	"net"
	"sort"

	"github.com/vmihailenco/msgpack/v5"
)

// deviceState is what the device keeps across a snapshot. Listeners belong to the program, not to the device.
type deviceState struct {
	CID      uint64
	NextPort uint32
	Conns    []connSaved
}

type connSaved struct {
	Host, Guest                uint32
	State                      uint8
	LocalFlags, PeerFlags      uint32
	Unread                     []byte
	RxCount, FwdCount, ToldFwd uint32
	TxCount                    uint32
	PeerAlloc, PeerFwd         uint32
	Wants                      uint8
}

// SaveState implements virtio.Stateful. Connections live on; a Write that is under way is saved as far as the guest has it.
func (d *Device) SaveState() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := deviceState{CID: d.cid, NextPort: d.nextPort}
	for _, c := range d.conns {
		unread := make([]byte, c.rx.n)
		c.rx.peek(unread)
		st.Conns = append(st.Conns, connSaved{
			Host: c.key.host, Guest: c.key.guest, State: uint8(c.state), LocalFlags: c.localFlags, PeerFlags: c.peerFlags,
			Unread: unread, RxCount: c.rxCount, FwdCount: c.fwdCount, ToldFwd: c.toldFwd, TxCount: c.txCount,
			PeerAlloc: c.peerAlloc, PeerFwd: c.peerFwd, Wants: c.wants,
		})
	}
	sort.Slice(st.Conns, func(i, j int) bool {
		a, b := st.Conns[i], st.Conns[j]
		return a.Host < b.Host || a.Host == b.Host && a.Guest < b.Guest
	})
	return msgpack.Marshal(st)
}

// RestoreState implements virtio.Stateful. Restored finds the connections again.
func (d *Device) RestoreState(b []byte) error {
	var st deviceState
	if err := msgpack.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("vsock: state: %w", err)
	}
	if st.CID != d.cid {
		return fmt.Errorf("vsock: state of a device with CID %d, this one has %d", st.CID, d.cid)
	}
	if len(st.Conns) > MaxConnections {
		return fmt.Errorf("vsock: state has %d connections, at most %d are possible", len(st.Conns), MaxConnections)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nextPort = max(st.NextPort, firstPort)
	for _, s := range st.Conns {
		k := key{s.Host, s.Guest}
		if s.State > uint8(stateClosing) || len(s.Unread) > BufferSize || d.conns[k] != nil {
			return fmt.Errorf("vsock: state of connection %d to %d is invalid", s.Host, s.Guest)
		}
		c := d.newConn(k)
		c.state = connState(s.State)
		if c.state != stateConnecting {
			close(c.established)
		}
		c.localFlags, c.peerFlags = s.LocalFlags&shutdownBoth, s.PeerFlags&shutdownBoth
		c.rx.put([][]byte{s.Unread}, 0, len(s.Unread))
		c.rxCount, c.fwdCount, c.toldFwd, c.txCount = s.RxCount, s.FwdCount, s.ToldFwd, s.TxCount
		c.peerAlloc, c.peerFwd = s.PeerAlloc, s.PeerFwd
		if w := s.Wants & (wantRequest | wantResponse | wantShutdown | wantCredit); w != 0 {
			c.want(w)
		}
	}
	return nil
}

// Restored returns the connection between a host port and a guest port after RestoreState.
func (d *Device) Restored(hostPort, guestPort uint32) (net.Conn, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.conns[key{hostPort, guestPort}]
	if c == nil {
		return nil, false
	}
	return c, true
}
