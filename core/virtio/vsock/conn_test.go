package vsock

import (
	"bytes"
	"io"
	"math/rand"
	"net"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/supermachine/supermachine/core/virtio"
)

// queueModes are the ways of suppressing notifications.
var queueModes = map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx}

func TestNetConn(t *testing.T) {
	for name, hostFirst := range map[string]bool{"host": true, "guest": false} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				dev, g := start(t, setup{})
				c, gc := pair(t, dev, g)
				stop := func() { _ = c.Close(); _ = gc.Close() }
				if hostFirst {
					return c, gc, stop, nil
				}
				return gc, c, stop, nil
			})
		})
	}
}

// echo sends data through a pair and back and checks every byte.
func echo(t *testing.T, c *Conn, gc *guestConn, size int) {
	data := make([]byte, size)
	rand.New(rand.NewSource(1)).Read(data)
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{gc}, struct{ io.Reader }{gc})
		gc.shutdown(shutdownSend)
	}()
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got := make([]byte, 0, size+1)
	buf := bytes.NewBuffer(got)
	_, err := buf.ReadFrom(c)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, buf.Bytes()), "%d bytes came back of %d", buf.Len(), size)
}

func TestEcho(t *testing.T) {
	for name, without := range queueModes {
		t.Run(name, func(t *testing.T) {
			dev, g := start(t, setup{without: without})
			c, gc := pair(t, dev, g)
			echo(t, c, gc, 64<<20)
			require.NoError(t, c.Close())
			require.NoError(t, g.drv.MMIO.Failure())
		})
	}
}

func TestCountersWrap(t *testing.T) {
	dev, g := start(t, setup{})
	c, gc := pair(t, dev, g)
	startAt(c, gc, nearWrap)
	echo(t, c, gc, 1<<20)
}

// TestGuestWithASmallBuffer: such a guest also sends little ahead, and stops for ever unless it hears early of what was read.
func TestGuestWithASmallBuffer(t *testing.T) {
	for _, size := range []uint32{1, 4 << 10, 64 << 10} {
		dev, g := start(t, setup{})
		c, gc := pair(t, dev, g)
		g.mu.Lock()
		gc.alloc = size
		g.mu.Unlock()
		total := int(min(size*64, 1<<20))
		go func() { _, _ = gc.Write(make([]byte, total)) }()
		_, err := io.ReadFull(c, make([]byte, total))
		require.NoError(t, err)
	}
}

func TestWindowsShrinkWithTheNumberOfConnections(t *testing.T) {
	total := 0
	for n := range MaxConnections {
		w := windowAmong(n)
		require.True(t, minWindow <= w && w <= maxWindow)
		total += int(w)
	}
	require.EqualValues(t, maxWindow, windowAmong(0))
	require.EqualValues(t, minWindow, windowAmong(MaxConnections-1))
	require.Less(t, total, 5<<28, "what a guest can make the host keep")
}

// TestReadTakesFromThePacketAtOnce: what comes for a Read that waits does not go through a buffer.
func TestReadTakesFromThePacketAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, g := start(t, setup{record: true})
		c, h := rawPair(t, dev, g, 0)
		p := make([]byte, 6)
		read := func() (n int) {
			n, err := c.Read(p)
			require.NoError(t, err)
			return n
		}
		done := make(chan int)
		go func() { done <- read() }()
		synctest.Wait()
		g.send(h.as(opRW), []byte("abcdefgh"))
		require.Equal(t, 6, <-done)
		require.Equal(t, "abcdef", string(p))
		require.Equal(t, 2, c.rx.n, "what found no room")
		require.Equal(t, 2, read())
		require.Equal(t, "gh", string(p[:2]))
		require.EqualValues(t, 8, c.fwdCount)
	})
}
