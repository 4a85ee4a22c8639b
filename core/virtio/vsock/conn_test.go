package vsock

import (
	"bytes"
	"io"
	"math/rand"
	"net"
	"testing"

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
