package vsock

import (
	"io"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// FuzzTransmit has a guest send arbitrary packets to a device with a connection of each kind. The guest's own checks of what the device
// answers apply, and limits hold.
func FuzzTransmit(f *testing.F) {
	packets := func(hs ...header) (p []byte) {
		for _, h := range hs {
			var b [headerSize]byte
			if h.kind == 0 {
				h.kind = typeStream
			}
			if h.srcCID == 0 {
				h.srcCID, h.dstCID = guestCID, HostCID
			}
			h.encode(&b)
			p = append(append(p, byte(h.len)), b[:]...)
		}
		return p
	}
	at := func(op uint16) header { return header{srcPort: 1024, dstPort: firstPort, op: op, bufAlloc: 1 << 16} }
	data := at(opRW)
	data.len = 40
	f.Add(packets(at(opResponse), data, data, at(opCreditRequest), at(opShutdown)))
	f.Add(packets(header{srcPort: 5, dstPort: 9, op: opRequest}, header{srcPort: 5, dstPort: 9, op: opRW, len: 255}, header{srcPort: 5, dstPort: 9, op: opRST}))
	f.Add(packets(at(opRST), at(opRequest), header{srcCID: 9, op: opRequest}, header{kind: 2, op: opRW}, at(77)))
	full := at(opShutdown)
	full.flags = shutdownBoth
	f.Add(packets(at(opResponse), full, data, at(opCreditUpdate)))
	f.Add([]byte{0, 1, 2})
	f.Fuzz(func(t *testing.T, input []byte) {
		dev := New(Config{GuestCID: guestCID})
		drv := virtiotest.Start(t, dev, 0)
		defer drv.MMIO.Close()
		l, err := dev.Listen(9)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		dialled := make(chan struct{})
		go func() {
			defer close(dialled)
			c, err := dev.Dial(t.Context(), 1024)
			if err == nil {
				_, _ = c.Write([]byte("hello"))
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
		}()
		rx, tx := drv.Queues[rxQueue], drv.Queues[txQueue]
		buffer := drv.In(256)
		for range 4 {
			rx.Submit(buffer)
		}
		out := drv.Out(make([]byte, headerSize+255))
		for range 64 {
			if len(input) == 0 {
				break
			}
			n := copy(out.Bytes, input[1:]) // the first byte says how much of the payload is there
			size := min(headerSize+int(input[0]), len(out.Bytes))
			input = input[1+min(n, headerSize):]
			b := out
			b.Bytes = b.Bytes[:size]
			tx.Submit(b)
			for _, ok := tx.Take(); ok; _, ok = tx.Take() {
			}
			for u, ok := rx.Take(); ok; u, ok = rx.Take() {
				if drv.MMIO.Failure() == nil && u.Written < headerSize {
					t.Fatalf("a packet of %d bytes", u.Written)
				}
				rx.Submit(buffer)
			}
			if conns, resets := dev.open(); conns+resets > MaxConnections+maxResets {
				t.Fatalf("%d connections and %d resets", conns, resets)
			}
		}
		if err := drv.MMIO.Close(); err != nil {
			t.Fatal(err)
		}
		<-dialled
	})
}

// FuzzRestoreState restores arbitrary states. What is accepted is what would be saved again, and can be used and closed.
func FuzzRestoreState(f *testing.F) {
	for _, change := range []func(*deviceState){
		func(*deviceState) {},
		func(st *deviceState) { st.Conns[0].State, st.Conns[0].LocalFlags = uint8(stateClosing), shutdownBoth },
		func(st *deviceState) { st.Conns = nil; st.Broken = "broken" },
		func(st *deviceState) { st.Resets = []resetSaved{{CID: 2, Host: 1, Guest: 2, Kind: 1}} },
		func(st *deviceState) { st.Conns[0].Window = 1 << 31 },
	} {
		st := sampleState()
		change(&st)
		b, err := msgpack.Marshal(st)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		dev := New(Config{GuestCID: guestCID})
		if dev.RestoreState(state) != nil {
			return
		}
		again, err := dev.SaveState()
		if err != nil {
			t.Fatal(err)
		}
		other := New(Config{GuestCID: guestCID})
		if err := other.RestoreState(again); err != nil {
			t.Fatalf("accepted and then refused: %v", err)
		}
		drv := virtiotest.Start(t, dev, 0)
		drv.Queues[rxQueue].Submit(drv.In(4096))
		if c, ok := dev.Restored(firstPort, 1024); ok {
			_ = c.Close()
		}
		drv.MMIO.Pause()
		drv.MMIO.Resume()
		if err := drv.MMIO.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
