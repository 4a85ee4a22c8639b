// Package net is the virtio network device (virtio 1.2 §5.1) with one pair of queues. What is behind it is a Link: frames in memory, without a
// socket or a tap device.
package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/rate"
)

// Feature bits (virtio 1.2 §5.1.3).
const (
	FeatureChecksum      uint64 = 1 << 0  // VIRTIO_NET_F_CSUM: the link takes frames with partial checksums
	FeatureGuestChecksum uint64 = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM: so does the driver, and it believes that others were checked
	FeatureMTU           uint64 = 1 << 3  // VIRTIO_NET_F_MTU
	FeatureMAC           uint64 = 1 << 5  // VIRTIO_NET_F_MAC
	FeatureMergeBuffers  uint64 = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
)

const (
	// MaxMTU is the largest MTU: a frame of it and its header fit in 64 KiB. With it TCP needs no segmentation offload.
	MaxMTU = 65520

	// DefaultQueueBytes is what may wait for the guest unless Config says otherwise.
	DefaultQueueBytes = 4 << 20

	minMTU        = 68 // virtio 1.2 §5.1.4.1
	ethernetBytes = 14
	headerBytes   = 12 // struct virtio_net_hdr, with num_buffers
	configBytes   = 12 // mac, status, max_virtqueue_pairs, mtu
	queueSize     = 256
	minBurst      = 64 << 10 // of what a limit lets through at once, in bytes

	rxQueue = 0 // host → guest
	txQueue = 1 // guest → host
)

// Flags of the frame header (virtio 1.2 §5.1.6).
const (
	flagNeedsChecksum = 1
	flagDataValid     = 2
)

// MAC is an Ethernet address.
type MAC [6]byte

// String returns the usual form, with colons.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Link is what a device is connected to: the other end of the cable. Frames begin with the Ethernet header and have no checksum at their end. A
// frame is passed as parts, none of them empty, which put together are the frame.
type Link interface {
	// Attach is called once, by New. deliver hands the guest a frame, at most MTU+14 bytes; the link may call it at any time from any
	// goroutine, also within Send. It does not block, and keeps neither parts nor bytes: when the guest does not read, frames wait in a bounded
	// queue, and are dropped when that is full. It reports whether the frame was taken. Checksums must be filled in and right.
	Attach(deliver func(parts [][]byte) bool)
	// Send takes a frame from the guest, 14 to MTU+14 bytes. The parts are guest memory: their bytes may change at any time, so they must be copied
	// before anything is checked, and may not be touched after Send has returned. Checksums of TCP and UDP may be partial (they never left memory)
	// and must not be verified. Send should not block for long, since the device's reset waits for it. Calls do not overlap.
	Send(parts [][]byte)
}

// Config says what New makes.
type Config struct {
	MAC        MAC  // the guest's address: unicast
	MTU        int  // bytes of a frame after the Ethernet header, 68 to MaxMTU; 0 means MaxMTU
	Link       Link // the other end
	QueueBytes int  // how much may wait for the guest, at least one frame; 0 means DefaultQueueBytes

	// Bytes per second, 0 for no limit. What exceeds the first waits in the guest, what exceeds the second in the device's queue.
	FromGuest, ToGuest int64
}

// Stats counts frames. Bytes are those of whole Ethernet frames.
type Stats struct {
	BytesFromGuest, BytesToGuest     uint64
	PacketsFromGuest, PacketsToGuest uint64
	DroppedFromGuest                 uint64 // too short, too long or of a form that was not negotiated
	DroppedToGuest                   uint64 // the guest did not read, was not there or had buffers too small
}

// Device is a virtio network device.
//
// It has two locks, since Link.Send may call deliver: what holds tx may take rx, never the other way round.
type Device struct {
	mac        MAC
	mtu        int
	queueBytes int
	link       Link
	config     [configBytes]byte

	tx struct {
		sync.Mutex
		env    *virtio.Env // nil while the driver is not there
		paused bool
		rate   rate.Bucket
		timer  *time.Timer // continues when rate allows; nil unless it waits
		parts  [][]byte
	}
	rx receiver

	bytesFrom, packetsFrom, droppedFrom atomic.Uint64
}

// New returns the device and attaches it to its link.
func New(c Config) (*Device, error) {
	if c.MTU == 0 {
		c.MTU = MaxMTU
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = DefaultQueueBytes
	}
	switch {
	case c.MTU < minMTU || c.MTU > MaxMTU:
		return nil, fmt.Errorf("network device: MTU %d is not in %d to %d", c.MTU, minMTU, MaxMTU)
	case c.MAC[0]&1 != 0 || c.MAC == MAC{}:
		return nil, fmt.Errorf("network device: MAC address %v is not a unicast address", c.MAC)
	case c.QueueBytes < c.MTU+ethernetBytes+frameOverhead:
		return nil, fmt.Errorf("network device: a queue of %d bytes does not hold a frame of %d", c.QueueBytes, c.MTU+ethernetBytes)
	case c.FromGuest < 0 || c.ToGuest < 0:
		return nil, fmt.Errorf("network device: rates %d and %d bytes/s: negative", c.FromGuest, c.ToGuest)
	case c.Link == nil:
		return nil, errors.New("network device: no link")
	}
	d := &Device{mac: c.MAC, mtu: c.MTU, queueBytes: c.QueueBytes, link: c.Link}
	copy(d.config[:], c.MAC[:])
	binary.LittleEndian.PutUint16(d.config[8:], 1) // max_virtqueue_pairs
	binary.LittleEndian.PutUint16(d.config[10:], uint16(c.MTU))
	d.tx.rate, d.rx.rate = rate.New(c.FromGuest, minBurst), rate.New(c.ToGuest, minBurst)
	c.Link.Attach(d.deliver)
	return d, nil
}

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDNet }

// Features implements virtio.Device. Segmentation offload is not among them: with the MTU of 64 KiB there is nothing to segment.
func (d *Device) Features() uint64 {
	return FeatureChecksum | FeatureGuestChecksum | FeatureMTU | FeatureMAC | FeatureMergeBuffers
}

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{rxQueue: queueSize, txQueue: queueSize} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) { virtio.ReadConfigBytes(d.config[:], off, p) }

// WriteConfig implements virtio.Device; no field can be written.
func (d *Device) WriteConfig(uint64, []byte) {}

// Stats returns the counters. They go on over resets.
func (d *Device) Stats() Stats {
	d.rx.Lock()
	defer d.rx.Unlock()
	return Stats{
		BytesFromGuest: d.bytesFrom.Load(), PacketsFromGuest: d.packetsFrom.Load(), DroppedFromGuest: d.droppedFrom.Load(),
		BytesToGuest: d.rx.bytes, PacketsToGuest: d.rx.packets, DroppedToGuest: d.rx.dropped,
	}
}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.tx.Lock()
	d.tx.env, d.tx.paused = env, false
	d.tx.Unlock()
	d.rx.Lock()
	d.rx.env, d.rx.paused = env, false
	d.rx.Unlock()
	return nil
}

// Pause implements virtio.Pauser: frames for the guest go on being queued.
func (d *Device) Pause() {
	d.tx.Lock()
	d.tx.paused = true
	d.stopTimer()
	d.tx.Unlock()
	d.rx.Lock()
	d.rx.giveBack()
	d.rx.paused = true
	d.rx.Unlock()
}

// Resume implements virtio.Pauser. The transport's Notify then goes on with both queues.
func (d *Device) Resume() {
	d.tx.Lock()
	d.tx.paused = false
	d.tx.Unlock()
	d.rx.Lock()
	d.rx.paused = false
	d.rx.Unlock()
}

// Reset implements virtio.Device: frames that wait for the guest are dropped.
func (d *Device) Reset() {
	d.tx.Lock()
	d.tx.env, d.tx.paused = nil, false
	d.stopTimer()
	clear(d.tx.parts[:cap(d.tx.parts)]) // guest memory, which may be unmapped soon
	d.tx.Unlock()
	d.rx.Lock()
	d.rx.reset()
	d.rx.Unlock()
}

// Close implements virtio.Device. The link stays as it is.
func (d *Device) Close() error { return nil }

// Notify implements virtio.Device.
func (d *Device) Notify(queue int) {
	switch queue {
	case rxQueue:
		d.rx.Lock()
		d.rx.pump()
		d.rx.Unlock()
	case txQueue:
		d.tx.Lock()
		d.transmit()
		d.tx.Unlock()
	}
}

// deviceState is what a restored device is checked against.
type deviceState struct{ MAC MAC }

// SaveState implements virtio.Stateful. Frames under way are not part of it: networks lose some.
func (d *Device) SaveState() ([]byte, error) { return msgpack.Marshal(deviceState{MAC: d.mac}) }

// RestoreState implements virtio.Stateful: it fails unless the guest knows this device's address.
func (d *Device) RestoreState(b []byte) error {
	var s deviceState
	if err := msgpack.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("network device: %w", err)
	}
	if s.MAC != d.mac {
		return fmt.Errorf("network device: the guest knows the address %v, not %v", s.MAC, d.mac)
	}
	return nil
}
