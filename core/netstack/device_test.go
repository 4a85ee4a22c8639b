package netstack

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	virtionet "github.com/supermachine/supermachine/core/virtio/net"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

const virtioHeader = 12

// TestThroughDevice has the guest's frames go through a virtio device, which pauses now and then.
func TestThroughDevice(t *testing.T) {
	const size = 8 << 20
	a := listen(t, func(c *net.TCPConn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) })
	g := newGuest(t, Config{Policy: allowing(t, a)})
	dev, err := virtionet.New(virtionet.Config{MAC: testMAC, Link: g.host})
	require.NoError(t, err)
	drv := virtiotest.Start(t, dev, 0)
	rx, tx := drv.Queues[0], drv.Queues[1]

	// The device works on the goroutine that kicks it, which must not hold locks of the guest's stack.
	kick := make(chan struct{}, 1)
	var mu sync.Mutex // of tx
	var idle []virtiotest.Buffer
	busy := map[uint16]virtiotest.Buffer{}
	unplugged := false
	for range 64 {
		idle = append(idle, drv.In(virtioHeader+ethernetBytes+MaxMTU))
	}
	out := func(parts [][]byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if unplugged {
			return false
		}
		for u, ok := tx.Poll(); ok; u, ok = tx.Poll() {
			idle = append(idle, busy[u.Head])
			delete(busy, u.Head)
		}
		if len(idle) == 0 {
			return false
		}
		b := idle[len(idle)-1]
		idle = idle[:len(idle)-1]
		n := virtioHeader
		for _, p := range parts {
			n += copy(b.Bytes[n:], p)
		}
		send := virtiotest.Buffer{Addr: b.Addr, Bytes: b.Bytes[:n]}
		head := tx.Chain(send)
		busy[head] = b
		tx.Offer(head)
		select {
		case kick <- struct{}{}:
		default:
		}
		return true
	}
	g.link.deliver.Store(&out)

	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-kick:
				mu.Lock()
				tx.Kick()
				mu.Unlock()
			}
		}
	})
	all.Go(func() {
		bufs := map[uint16]virtiotest.Buffer{}
		for range 128 {
			b := drv.In(4096)
			bufs[rx.Submit(b)] = b
		}
		var f []byte
		left := 0
		for {
			select {
			case <-stop:
				return
			default:
			}
			u, ok := rx.Poll()
			if !ok {
				time.Sleep(10 * time.Microsecond)
				continue
			}
			b := bufs[u.Head]
			delete(bufs, u.Head)
			p := b.Bytes[:u.Written]
			if left == 0 {
				left = int(p[10]) | int(p[11])<<8
				p = p[virtioHeader:]
			}
			f = append(f, p...)
			bufs[rx.Submit(b)] = b
			if left--; left > 0 {
				continue
			}
			d := g.link.dispatcher.Load()
			if d == nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
			proto := header.Ethernet(f).Type()
			pkt.LinkHeader().Consume(ethernetBytes)
			(*d).DeliverNetworkPacket(proto, pkt)
			pkt.DecRef()
			f = f[:0]
		}
	})
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				drv.MMIO.Pause()
				drv.MMIO.Resume()
			}
		}
	})
	c := g.mustDial(onGateway(a))
	var sent [32]byte
	var sending sync.WaitGroup
	sending.Go(func() {
		sent, _ = stream(c, 3, size)
		_ = c.CloseWrite()
	})
	got, n, err := sum(c)
	sending.Wait()
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	require.Equal(t, sent, got)
	_ = c.Close()
	mu.Lock()
	unplugged = true
	mu.Unlock()
	close(stop)
	all.Wait()
	require.NoError(t, drv.MMIO.Failure())
	require.NoError(t, drv.MMIO.Close())
	s := dev.Stats()
	require.Greater(t, s.BytesFromGuest, uint64(size))
	require.Greater(t, s.BytesToGuest, uint64(size))
}
