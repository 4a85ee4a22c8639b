package vsock

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
)

// maxSavedWrite is how much of a Write under way is saved. A connection that has more left does not survive the restore.
const maxSavedWrite = 1 << 20

// deviceState is what the device keeps across a snapshot. Listeners belong to the program, not to the device.
type deviceState struct {
	CID      uint64
	NextPort uint32
	Broken   string
	Conns    []connSaved
	Resets   []resetSaved
}

type resetSaved struct {
	CID         uint64
	Host, Guest uint32
	Kind        uint16
}

type connSaved struct {
	Host, Guest                uint32
	State                      uint8
	LocalFlags, PeerFlags      uint32
	Unread, Unsent             []byte
	RxCount, FwdCount, ToldFwd uint32
	TxCount                    uint32
	PeerAlloc, PeerFwd         uint32
	Window                     uint32
	Wants                      uint8
}

// SaveState implements virtio.Stateful. Connections live on.
func (d *Device) SaveState() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := deviceState{CID: d.cid, NextPort: d.nextPort}
	if d.broken != nil {
		st.Broken = d.broken.Error()
	}
	for _, r := range d.resets.items[d.resets.done:] {
		st.Resets = append(st.Resets, resetSaved{CID: r.cid, Host: r.key.host, Guest: r.key.guest, Kind: r.kind})
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.conns), key.compare) {
		c := d.conns[k]
		if len(c.pending) > maxSavedWrite {
			st.Resets = append(st.Resets, resetSaved{CID: HostCID, Host: k.host, Guest: k.guest, Kind: typeStream})
			continue
		}
		st.Conns = append(st.Conns, c.save())
	}
	return msgpack.Marshal(st)
}

func (c *Conn) save() connSaved {
	unread := make([]byte, c.rx.n)
	c.rx.peek(unread)
	s := connSaved{
		Host: c.key.host, Guest: c.key.guest, State: uint8(c.state), LocalFlags: c.localFlags, PeerFlags: c.peerFlags,
		Unread: unread, RxCount: c.rxCount, FwdCount: c.fwdCount, ToldFwd: c.toldFwd, TxCount: c.txCount,
		PeerAlloc: c.peerAlloc, PeerFwd: c.peerFwd, Window: c.window, Wants: c.wants,
	}
	if c.sendErr() == nil {
		s.Unsent = c.pending
	}
	return s
}

// RestoreState implements virtio.Stateful. Restored finds the connections again.
func (d *Device) RestoreState(b []byte) error {
	var st deviceState
	if err := msgpack.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("vsock: state: %w", err)
	}
	if err := d.check(&st); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.conns) > 0 {
		return errors.New("vsock: the device is in use")
	}
	d.nextPort = st.NextPort
	if st.Broken != "" {
		d.broken = virtio.DriverErrorf("before the restore: %s", st.Broken)
	}
	for _, r := range st.Resets {
		d.resets.push(resetPacket{cid: r.CID, key: key{host: r.Host, guest: r.Guest}, kind: r.Kind})
	}
	for _, s := range st.Conns {
		d.restore(s)
	}
	return nil
}

func (d *Device) restore(s connSaved) {
	c := d.newConn(key{host: s.Host, guest: s.Guest})
	c.orphan = true
	c.state = connState(s.State)
	if c.state != stateConnecting {
		close(c.established)
	}
	c.localFlags, c.peerFlags = s.LocalFlags, s.PeerFlags
	c.readClosed = s.LocalFlags&shutdownReceive != 0
	if len(s.Unread) > 0 {
		c.rx.put(&d.spares, [][]byte{s.Unread}, 0, len(s.Unread))
	}
	c.rxCount, c.fwdCount, c.toldFwd, c.txCount = s.RxCount, s.FwdCount, s.ToldFwd, s.TxCount
	c.peerAlloc, c.peerFwd, c.window = s.PeerAlloc, s.PeerFwd, s.Window
	if s.Wants != 0 {
		c.want(s.Wants)
	}
	if c.pending = s.Unsent; len(c.pending) > 0 {
		d.writers.add(c)
	}
}

// check returns what is wrong with a state: nothing that SaveState returns, whatever the guest did.
func (d *Device) check(st *deviceState) error {
	switch {
	case st.CID != d.cid:
		return fmt.Errorf("vsock: state of a device with CID %d, this one has %d", st.CID, d.cid)
	case st.NextPort < firstPort || st.NextPort >= lastPort:
		return fmt.Errorf("vsock: state: next port %d is out of range", st.NextPort)
	case len(st.Conns)+len(st.Resets) > MaxConnections+maxResets:
		return fmt.Errorf("vsock: state has %d connections and %d resets, too many", len(st.Conns), len(st.Resets))
	case st.Broken != "" && len(st.Conns)+len(st.Resets) > 0:
		return errors.New("vsock: state of a failed device with connections")
	}
	seen := make(map[key]bool, len(st.Conns))
	for _, s := range st.Conns {
		k := key{host: s.Host, guest: s.Guest}
		if reason := s.invalid(); reason != "" || seen[k] {
			if seen[k] {
				reason = "there twice"
			}
			return fmt.Errorf("vsock: state: connection of host port %d with guest port %d: %s", k.host, k.guest, reason)
		}
		seen[k] = true
	}
	return nil
}

// invalid returns why a connection cannot be in this state, or "".
func (s *connSaved) invalid() string {
	unread := uint64(len(s.Unread))
	ended := s.State == uint8(stateClosing) || s.LocalFlags&shutdownReceive != 0
	wants := [...]uint8{
		stateConnecting: wantRequest,
		stateConnected:  wantResponse | wantShutdown | wantCredit,
		stateClosing:    wantResponse | wantShutdown | wantCredit,
	}
	switch {
	case s.State > uint8(stateClosing):
		return "unknown state"
	case s.Wants&^wants[s.State] != 0:
		return "a packet waits that does not fit its state"
	case s.LocalFlags > shutdownBoth, s.PeerFlags >= shutdownBoth,
		s.State == uint8(stateClosing) && s.LocalFlags != shutdownBoth:
		return "flags that do not fit its state"
	case s.Window < minWindow, s.Window > maxWindow:
		return fmt.Sprintf("window of %d bytes", s.Window)
	case uint64(s.RxCount-s.FwdCount) != unread, s.RxCount-s.ToldFwd > s.Window, s.FwdCount-s.ToldFwd > s.RxCount-s.ToldFwd:
		return fmt.Sprintf("counters %d, %d, %d with %d bytes unread", s.RxCount, s.FwdCount, s.ToldFwd, unread)
	case ended && unread > 0:
		return "unread data that nobody wants"
	case len(s.Unsent) > maxSavedWrite, len(s.Unsent) > 0 && s.LocalFlags&shutdownSend != 0:
		return "unsent data that cannot be sent"
	case s.State == uint8(stateConnecting) && (s.RxCount|s.TxCount|s.LocalFlags|s.PeerFlags != 0 || len(s.Unsent) > 0):
		return "data before it is established"
	}
	return ""
}

func (k key) compare(l key) int {
	return cmp.Or(cmp.Compare(k.host, l.host), cmp.Compare(k.guest, l.guest))
}

// Restored returns a connection of RestoreState's, by the ports of the host and the guest. It must be called before the device
// is resumed, since what nobody asks for by then is reset. What is left of a Write that was under way when the state was saved is
// sent first; Close and CloseWrite drop it.
func (d *Device) Restored(hostPort, guestPort uint32) (net.Conn, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.conns[key{hostPort, guestPort}]
	if c == nil || !c.orphan || c.state != stateConnected {
		return nil, false
	}
	c.orphan = false
	return c, true
}
