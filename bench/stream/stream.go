// Package stream moves bytes over a connection for throughput benchmarks: the same code over vsock and over a Unix socket pair.
package stream

import (
	"encoding/binary"
	"io"
	"net"
	"time"
)

// Directions of a transfer, seen from the client.
const (
	Send    = 's'
	Receive = 'r'
	Echo    = 'e' // one byte there and back, so many times
)

const bufferSize = 64 << 10

// Serve answers one client's transfers until it hangs up.
func Serve(c net.Conn) {
	defer c.Close()
	var head [9]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		n := int64(binary.BigEndian.Uint64(head[1:]))
		if head[0] == Echo {
			if echo(c, n) != nil {
				return
			}
			continue
		}
		if head[0] == Send {
			if sink(c, n) != nil {
				return
			}
			if _, err := c.Write([]byte{1}); err != nil {
				return
			}
		} else if source(c, n) != nil {
			return
		}
	}
}

func echo(c net.Conn, n int64) error {
	var b [1]byte
	for ; n > 0; n-- {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return err
		}
		if _, err := c.Write(b[:]); err != nil {
			return err
		}
	}
	return nil
}

// RoundTrips returns how long each of n round trips took.
func RoundTrips(c net.Conn, n int) ([]time.Duration, error) {
	if _, err := c.Write(binary.BigEndian.AppendUint64([]byte{Echo}, uint64(n))); err != nil {
		return nil, err
	}
	var b [1]byte
	var out []time.Duration
	for range n {
		start := time.Now()
		if _, err := c.Write(b[:]); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return nil, err
		}
		out = append(out, time.Since(start))
	}
	return out, nil
}

// Transfer moves n bytes and returns how long it took, the receiver's acknowledgement included.
func Transfer(c net.Conn, direction byte, n int64) (time.Duration, error) {
	head := binary.BigEndian.AppendUint64([]byte{direction}, uint64(n))
	start := time.Now()
	if _, err := c.Write(head); err != nil {
		return 0, err
	}
	if direction == Receive {
		err := sink(c, n)
		return time.Since(start), err
	}
	if err := source(c, n); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, head[:1])
	return time.Since(start), err
}

func source(c net.Conn, n int64) error {
	buf := make([]byte, bufferSize)
	for n > 0 {
		w, err := c.Write(buf[:min(n, bufferSize)])
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return nil
}

func sink(c net.Conn, n int64) error {
	buf := make([]byte, bufferSize)
	for n > 0 {
		r, err := c.Read(buf[:min(n, bufferSize)])
		if err != nil {
			return err
		}
		n -= int64(r)
	}
	return nil
}
