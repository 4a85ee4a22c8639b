package vsock

import (
	"encoding/binary"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestThousandsOfConnections keeps 5,000 connections open at once, half from each side, and sends a message back and forth on each.
func TestThousandsOfConnections(t *testing.T) {
	const n = 5000
	dev, g := start(t, setup{})
	fromHost := g.listen(2000)
	l, err := dev.Listen(3000)
	require.NoError(t, err)
	defer l.Close()
	var open sync.WaitGroup // both ends wait for all the others
	open.Add(n)
	var all sync.WaitGroup
	talk := func(c io.ReadWriter, i uint32) {
		open.Done()
		open.Wait()
		message := binary.BigEndian.AppendUint32(nil, i)
		if _, err := c.Write(message); err != nil {
			t.Errorf("connection %d: %v", i, err)
			return
		}
		if _, err := io.ReadFull(c, message); err != nil || binary.BigEndian.Uint32(message) != ^i {
			t.Errorf("connection %d: answer %x, %v", i, message, err)
		}
	}
	answer := func(c io.ReadWriter) {
		message := make([]byte, 4)
		if _, err := io.ReadFull(c, message); err == nil {
			_, err = c.Write(binary.BigEndian.AppendUint32(nil, ^binary.BigEndian.Uint32(message)))
			if err != nil {
				t.Errorf("answer: %v", err)
			}
		}
	}
	for i := range uint32(n / 2) {
		all.Go(func() {
			c, err := dev.Dial(t.Context(), 2000)
			if err != nil {
				t.Errorf("dial %d: %v", i, err)
				open.Done()
				return
			}
			talk(c, i)
			_ = c.Close()
		})
		all.Go(func() { answer(<-fromHost) })
		all.Go(func() {
			c, err := g.connect(3000)
			if err != nil {
				t.Errorf("connect %d: %v", i, err)
				open.Done()
				return
			}
			talk(c, n/2+i)
			_ = c.Close()
		})
		all.Go(func() {
			c, err := l.Accept()
			if err != nil {
				t.Errorf("accept %d: %v", i, err)
				return
			}
			answer(c)
			_ = c.Close()
		})
	}
	all.Wait()
	require.NoError(t, g.drv.MMIO.Failure())
}
