package netstack

import (
	"encoding/binary"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is the stack's network interface. The other end of its cable is the guest's.
type link struct {
	mac, guest tcpip.LinkAddress
	mtu        uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	deliver    atomic.Pointer[func([][]byte) bool]
	closed     atomic.Bool

	bytesFrom, packetsFrom, droppedFrom atomic.Uint64
	bytesTo, packetsTo, droppedTo       atomic.Uint64
}

const ethernetBytes = header.EthernetMinimumSize

// inject takes a frame of the guest's. The parts may change while they are copied, not after that.
func (l *link) inject(parts [][]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	d := l.dispatcher.Load()
	if d == nil || l.closed.Load() || n < ethernetBytes || n > int(l.mtu)+ethernetBytes {
		l.droppedFrom.Add(1)
		return
	}
	v := buffer.NewViewSize(n)
	b := v.AsSlice()
	at := 0
	for _, p := range parts {
		at += copy(b[at:], p)
	}
	if !admit(b) {
		v.Release()
		l.droppedFrom.Add(1)
		return
	}
	l.bytesFrom.Add(uint64(n))
	l.packetsFrom.Add(1)
	proto := header.Ethernet(b).Type()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer pkt.DecRef()
	if _, ok := pkt.LinkHeader().Consume(ethernetBytes); ok {
		(*d).DeliverNetworkPacket(proto, pkt)
	}
}

// admit reports whether a frame belongs to this network: the guest asks for the gateway's MAC address, or sends IPv4 from its address over TCP, UDP
// or, to the gateway, ICMP. So the stack never hears of other hosts and need not remember any.
func admit(b []byte) bool {
	p := b[ethernetBytes:]
	switch header.Ethernet(b).Type() {
	case header.ARPProtocolNumber:
		a := header.ARP(p)
		if len(p) < header.ARPSize || !a.IsValid() || a.Op() != header.ARPRequest {
			return false
		}
		from := [4]byte(a.ProtocolAddressSender())
		return [4]byte(a.ProtocolAddressTarget()) == gatewayAddr.As4() && (from == guestAddr.As4() || from == [4]byte{})
	case header.IPv4ProtocolNumber:
		if len(p) < header.IPv4MinimumSize || [4]byte(p[12:]) != guestAddr.As4() {
			return false
		}
		to := [4]byte(p[16:])
		switch tcpip.TransportProtocolNumber(p[9]) {
		case header.TCPProtocolNumber, header.UDPProtocolNumber:
			return to[0] != 0 && to[0] != 127 && to[0] < 224 && binary.BigEndian.Uint32(to[:]) != subnetBroadcast && to != guestAddr.As4()
		case header.ICMPv4ProtocolNumber:
			return to == gatewayAddr.As4()
		}
	}
	return false
}

// subnetBroadcast is the broadcast address of the guest's network.
var subnetBroadcast = func() uint32 {
	a := gatewayAddr.As4()
	return binary.BigEndian.Uint32(a[:]) | (1<<(32-PrefixBits) - 1)
}()

// close cuts the cable.
func (l *link) close() { l.closed.Store(true) }

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	deliver := l.deliver.Load()
	for _, pkt := range list.AsSlice() {
		to := pkt.EgressRoute.RemoteLinkAddress
		if to == "" {
			to = l.guest
		}
		header.Ethernet(pkt.LinkHeader().Push(ethernetBytes)).Encode(&header.EthernetFields{
			SrcAddr: l.mac, DstAddr: to, Type: pkt.NetworkProtocolNumber,
		})
		n := pkt.Size()
		if deliver == nil || l.closed.Load() || !(*deliver)(pkt.AsSlices()) {
			l.droppedTo.Add(1)
			continue // as any network would
		}
		l.bytesTo.Add(uint64(n))
		l.packetsTo.Add(1)
	}
	return list.Len(), nil
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// Capabilities implements stack.NetworkLinkEndpoint: packets of the guest's come straight from its memory, so that their checksums need not be right.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// The rest of stack.LinkEndpoint.

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return ethernetBytes }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.mac }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                        { return l.dispatcher.Load() != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
