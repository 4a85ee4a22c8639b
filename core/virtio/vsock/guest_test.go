package vsock

import (
	"maps"
	"math"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

const guestCID = 3

// guest is the guest's socket driver and its sockets. It works on interrupts; kicks are served by one goroutine for each queue,
// as ioeventfds are.
type guest struct {
	t    testing.TB
	drv  *virtiotest.Driver
	irq  chan struct{}
	kick [2]chan struct{}
	stop chan struct{}
	wg   sync.WaitGroup

	mu        sync.Mutex
	cond      *sync.Cond // a transmit slot is free
	slots     [2]map[uint16]virtiotest.Buffer
	free      []uint16 // transmit slots
	held      []uint16 // receive buffers kept back while starving
	starving  bool
	control   []header // answers that wait for a transmit slot
	conns     map[key]*guestConn
	listeners map[uint32]chan *guestConn
	nextPort  uint32
	packets   []header // every packet received, if recording
	recording bool
	packet    [headerSize]byte
}

// setup says how a guest is set up; zero fields mean what Linux does.
type setup struct {
	without         uint64 // features that the driver does not accept
	rxBufs, rxBytes int
	starving        bool     // no receive buffers until feed
	listen          []uint32 // ports
	record          bool     // from the start
	memory          int
}

func newGuest(t testing.TB, dev *Device, s setup) *guest {
	if s.rxBufs == 0 {
		s.rxBufs = 256
	}
	if s.rxBytes == 0 {
		s.rxBytes = 4096
	}
	if s.memory == 0 {
		s.memory = 16 << 20
	}
	g := &guest{t: t, conns: map[key]*guestConn{}, listeners: map[uint32]chan *guestConn{}, nextPort: 50000, starving: s.starving}
	g.drv = virtiotest.New(t, dev, s.memory)
	g.init(dev, g.drv.Mem)
	g.drv.Up(g.drv.Offered() &^ s.without)
	rx, tx := g.drv.Queues[rxQueue], g.drv.Queues[txQueue]
	for range s.rxBufs {
		b := g.drv.In(s.rxBytes)
		h := rx.Chain(b)
		g.slots[rxQueue][h] = b
		if s.starving {
			g.held = append(g.held, h)
		} else {
			rx.Offer(h)
		}
	}
	for range 64 {
		b := g.drv.Out(make([]byte, headerSize+64<<10))
		h := tx.Chain(b)
		g.slots[txQueue][h] = b
		g.free = append(g.free, h)
	}
	for _, port := range s.listen {
		g.listen(port)
	}
	g.recording = s.record
	g.start()
	g.drv.MMIO.Notify(rxQueue)
	return g
}

// init gives the guest the interrupt line of a new transport.
func (g *guest) init(dev *Device, mem *hypervisor.Memory) {
	g.irq, g.stop = make(chan struct{}, 1), make(chan struct{})
	g.cond = sync.NewCond(&g.mu)
	g.slots = [2]map[uint16]virtiotest.Buffer{{}, {}}
	g.drv.MMIO = virtio.NewMMIO(dev, mem, func() { signal(g.irq) })
}

func (g *guest) start() {
	for i := range g.kick {
		g.kick[i] = make(chan struct{}, 1)
		g.wg.Go(func() {
			for {
				select {
				case <-g.kick[i]:
					g.drv.MMIO.Notify(i)
				case <-g.stop:
					return
				}
			}
		})
	}
	g.wg.Go(func() {
		for {
			select {
			case <-g.irq:
				g.drv.Write32(virtiotest.RegInterruptACK, g.drv.Read32(virtiotest.RegInterruptStatus))
				g.mu.Lock()
				g.work()
				g.mu.Unlock()
			case <-g.stop:
				return
			}
		}
	})
	g.t.Cleanup(g.halt)
}

// halt stops the guest's processors. A second call does nothing.
func (g *guest) halt() {
	select {
	case <-g.stop:
	default:
		close(g.stop)
		g.wg.Wait()
	}
}

// clone goes on with a copy of the guest, its memory and its sockets on another device. The guest must be halted and its
// device paused; the caller restores and resumes the copy's.
func (g *guest) clone(dev *Device) *guest {
	mem := g.drv.CopyMemory()
	n := &guest{t: g.t, conns: map[key]*guestConn{}, listeners: map[uint32]chan *guestConn{}, nextPort: g.nextPort, starving: g.starving}
	n.drv = g.drv.Reattach(dev, mem)
	n.init(dev, mem)
	for q, slots := range g.slots {
		for h, b := range slots {
			b.Bytes, _ = mem.Slice(b.Addr, uint64(len(b.Bytes)))
			n.slots[q][h] = b
		}
	}
	n.free, n.held, n.control = slices.Clone(g.free), slices.Clone(g.held), slices.Clone(g.control)
	for k, c := range g.conns {
		x := *c
		x.g, x.cond, x.rx = n, sync.NewCond(&n.mu), slices.Clone(c.rx)
		n.conns[k] = &x
	}
	for port := range maps.Keys(g.listeners) {
		n.listen(port)
	}
	n.start()
	signal(n.irq)
	return n
}

// notify kicks a queue if the device wants it.
func (g *guest) notify(queue int) {
	q := g.drv.Queues[queue]
	if q.WantsKick() {
		q.Kicked()
		signal(g.kick[queue])
	}
}

// work is the interrupt handler.
func (g *guest) work() {
	tx, rx := g.drv.Queues[txQueue], g.drv.Queues[rxQueue]
	for u, ok := tx.Take(); ok; u, ok = tx.Take() {
		if _, ok := g.slots[txQueue][u.Head]; ok {
			g.free = append(g.free, u.Head)
			g.cond.Broadcast()
		}
	}
	for u, ok := rx.Take(); ok; u, ok = rx.Take() {
		b, ok := g.slots[rxQueue][u.Head]
		if !ok || u.Written == 0 && g.drv.MMIO.Failure() != nil {
			continue
		}
		g.receive(b.Bytes[:u.Written])
		if g.starving {
			g.held = append(g.held, u.Head)
		} else {
			rx.Offer(u.Head)
		}
	}
	g.flushControl()
	g.notify(rxQueue)
}

// starve keeps receive buffers back; feed offers n of those kept, all if n < 0, and goes on keeping if n ≥ 0.
func (g *guest) feed(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n < 0 {
		n, g.starving = len(g.held), false
	}
	for _, h := range g.held[:n] {
		g.drv.Queues[rxQueue].Offer(h)
	}
	g.held = slices.Delete(g.held, 0, n)
	g.notify(rxQueue)
}

func (g *guest) flushControl() {
	for len(g.control) > 0 && len(g.free) > 0 {
		h := g.control[0]
		g.control = slices.Delete(g.control, 0, 1)
		g.transmit(h, nil)
	}
}

// answer sends a control packet as soon as there is a slot for it.
func (g *guest) answer(h header) {
	g.control = append(g.control, h)
	g.flushControl()
}

// transmit puts a packet into a free slot.
func (g *guest) transmit(h header, data []byte) {
	head := g.free[len(g.free)-1]
	g.free = g.free[:len(g.free)-1]
	b := g.slots[txQueue][head]
	h.srcCID, h.dstCID, h.kind, h.len = guestCID, HostCID, typeStream, uint32(len(data))
	h.encode(&g.packet)
	copy(b.Bytes, g.packet[:])
	copy(b.Bytes[headerSize:], data)
	tx := g.drv.Queues[txQueue]
	tx.SetDesc(int(head), virtiotest.Desc{Addr: b.Addr, Len: uint32(headerSize + len(data))})
	tx.Offer(head)
	g.notify(txQueue)
}

// send transmits a packet, as it is, as soon as there is a slot.
func (g *guest) send(h header, data []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.free) == 0 {
		g.cond.Wait()
	}
	g.transmit(h, data)
}

// submit offers a chain that is no slot, and has the device look at it at once.
func (g *guest) submit(queue int, chain func(q *virtiotest.Queue) uint16) {
	g.mu.Lock()
	q := g.drv.Queues[queue]
	q.Offer(chain(q))
	q.Kicked()
	g.mu.Unlock()
	g.drv.MMIO.Notify(queue)
}

// receive handles one packet from the device.
func (g *guest) receive(p []byte) {
	if len(p) < headerSize {
		g.t.Errorf("packet of %d bytes from the device", len(p))
		return
	}
	var h header
	copy(g.packet[:], p)
	h.decode(&g.packet)
	if h.dstCID != guestCID || h.kind != typeStream && h.op != opRST || int(h.len) != len(p)-headerSize || h.len != 0 && h.op != opRW {
		g.t.Errorf("device sent a bad packet: %+v", h)
	}
	if g.recording {
		g.packets = append(g.packets, h)
		g.cond.Broadcast()
	}
	k := key{host: h.srcPort, guest: h.dstPort}
	c := g.conns[k]
	if h.op == opRequest {
		g.accept(k, c, &h)
		return
	}
	if c == nil {
		if h.op != opRST && !g.recording {
			g.answer(header{op: opRST, srcPort: h.dstPort, dstPort: h.srcPort})
		}
		return
	}
	c.receive(&h, p[headerSize:])
}

func (g *guest) accept(k key, old *guestConn, h *header) {
	l := g.listeners[k.guest]
	if l == nil {
		if !g.recording {
			g.answer(header{op: opRST, srcPort: h.dstPort, dstPort: h.srcPort})
		}
		return
	}
	if old != nil {
		g.t.Errorf("device connects %v twice", k)
	}
	c := g.newConn(k)
	c.connected = true
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	g.answer(c.header(opResponse))
	l <- c
}

// listen accepts connections from the host to a port.
func (g *guest) listen(port uint32) <-chan *guestConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listeners[port] = make(chan *guestConn, 2*MaxConnections)
	return g.listeners[port]
}

// connect opens a connection to a port of the host.
func (g *guest) connect(port uint32) (*guestConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nextPort++
	c := g.newConn(key{host: port, guest: g.nextPort})
	g.answer(c.header(opRequest))
	for !c.connected && !c.reset {
		c.cond.Wait()
	}
	if c.reset {
		return nil, errReset
	}
	return c, nil
}

// wait takes the first packet that fits out of those recorded, waiting for it. While recording, the guest answers nothing by itself.
func (g *guest) wait(fits func(header) bool) header {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		for i, h := range g.packets {
			if fits(h) {
				g.packets = slices.Delete(g.packets, i, i+1)
				return h
			}
		}
		g.cond.Wait()
	}
}

// recorded returns what wait did not take yet.
func (g *guest) recorded() []header {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.packets)
}

// open returns how many connections the device has, and how many resets wait.
func (d *Device) open() (conns, resets int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns), d.resets.len()
}

func op(op uint16) func(header) bool { return func(h header) bool { return h.op == op } }

// pair connects the host to the guest and returns both ends.
func pair(t testing.TB, dev *Device, g *guest) (*Conn, *guestConn) {
	g.mu.Lock()
	l := g.listeners[1024]
	g.mu.Unlock()
	var accepted <-chan *guestConn = l
	if l == nil {
		accepted = g.listen(1024)
	}
	c, err := dev.Dial(t.Context(), 1024)
	require.NoError(t, err)
	return c.(*Conn), <-accepted
}

// start is a guest on a new device.
func start(t testing.TB, s setup) (*Device, *guest) {
	dev := New(Config{GuestCID: guestCID})
	return dev, newGuest(t, dev, s)
}

// rawPair connects the host to a guest that records, which grants alloc bytes of credit. It returns the header with which the
// guest sends.
func rawPair(t testing.TB, dev *Device, g *guest, alloc uint32) (*Conn, header) {
	dialled := make(chan *Conn, 1)
	go func() {
		c, err := dev.Dial(t.Context(), 1024)
		if err != nil {
			t.Error(err)
			c = (*Conn)(nil)
		}
		dialled <- c.(*Conn)
	}()
	h := g.wait(op(opRequest))
	from := header{srcPort: h.dstPort, dstPort: h.srcPort, bufAlloc: alloc}
	g.send(from.as(opResponse), nil)
	return <-dialled, from
}

// as returns h with another operation.
func (h header) as(op uint16) header { h.op = op; return h }

// startAt is pair with all counters of the protocol at a value.
func startAt(c *Conn, gc *guestConn, counter uint32) {
	c.d.mu.Lock()
	gc.g.mu.Lock()
	c.rxCount, c.fwdCount, c.toldFwd, c.txCount, c.peerFwd = counter, counter, counter, counter, counter
	gc.rxCount, gc.fwdCount, gc.toldFwd, gc.txCount, gc.peerFwd = counter, counter, counter, counter, counter
	gc.g.mu.Unlock()
	c.d.mu.Unlock()
}

const nearWrap = math.MaxUint32 - 1000

var _ net.Conn = (*guestConn)(nil)
