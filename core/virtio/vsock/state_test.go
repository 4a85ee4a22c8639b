package vsock

import (
	"io"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
)

// snapshot stops a guest and its device and returns the state of both.
func snapshot(t *testing.T, g *guest) virtio.State {
	t.Helper()
	g.halt()
	g.drv.MMIO.Pause()
	st, err := g.drv.MMIO.Save()
	require.NoError(t, err)
	return st
}

func (g *guest) conn(k key) *guestConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conns[k]
}

// unread waits until the host has n bytes that nobody has read.
func (c *Conn) waitUnread(t *testing.T, n int) {
	t.Helper()
	for {
		c.d.mu.Lock()
		have := c.rx.n
		c.d.mu.Unlock()
		if have == n {
			return
		}
		<-c.readable
	}
}

// TestConnectionsLiveOnInCopies restores one state twice: what was unread is read, and both directions go on.
func TestConnectionsLiveOnInCopies(t *testing.T) {
	dev, g := start(t, setup{})
	c, gc := pair(t, dev, g)
	lost, _ := pair(t, dev, g)
	_, err := gc.Write([]byte("unread"))
	require.NoError(t, err)
	c.waitUnread(t, len("unread"))
	st := snapshot(t, g)

	for range 2 {
		other := New(Config{GuestCID: guestCID})
		copied := g.clone(other)
		require.NoError(t, copied.drv.MMIO.Restore(st))
		restored, ok := other.Restored(c.key.host, c.key.guest)
		require.True(t, ok)
		_, ok = other.Restored(c.key.host, c.key.guest)
		require.False(t, ok, "asked for twice")
		_, ok = other.Restored(1, 2)
		require.False(t, ok, "no such connection")
		orphan := copied.conn(lost.key)
		copied.drv.MMIO.Resume()

		got := make([]byte, len("unread"))
		_, err = io.ReadFull(restored, got)
		require.NoError(t, err)
		require.Equal(t, "unread", string(got))
		echo(t, restored.(*Conn), copied.conn(c.key), 1<<20)
		orphan.waitFor(func() bool { return orphan.reset })
		require.NoError(t, copied.drv.MMIO.Failure())
	}

	// The original was only paused.
	g.drv.MMIO.Resume()
	got := make([]byte, 100)
	n, err := c.Read(got)
	require.NoError(t, err)
	require.Equal(t, "unread", string(got[:n]))
}

// TestWriteUnderWayIsSentByTheCopy saves while a Write waits for credit.
func TestWriteUnderWayIsSentByTheCopy(t *testing.T) {
	dev, g := start(t, setup{})
	c, gc := pair(t, dev, g)
	data := make([]byte, guestBuffer+1000)
	for i := range data {
		data[i] = byte(i)
	}
	go func() { _, _ = c.Write(data) }()
	gc.waitFor(func() bool { return len(gc.rx) == guestBuffer })
	st := snapshot(t, g)

	other := New(Config{GuestCID: guestCID})
	copied := g.clone(other)
	require.NoError(t, copied.drv.MMIO.Restore(st))
	restored, ok := other.Restored(c.key.host, c.key.guest)
	require.True(t, ok)
	copied.drv.MMIO.Resume()
	go func() {
		_, _ = restored.Write([]byte("more"))
		_ = restored.(*Conn).CloseWrite()
	}()
	got, err := io.ReadAll(copied.conn(c.key))
	require.NoError(t, err)
	require.Equal(t, append(data, "more"...), got)
	require.NoError(t, c.Close())
}

// sampleState is the state of a device with a connection that has unread and unsent data.
func sampleState() deviceState {
	return deviceState{CID: guestCID, NextPort: firstPort + 1, Conns: []connSaved{{
		Host: firstPort, Guest: 1024, State: uint8(stateConnected), Unread: []byte("abc"), Unsent: []byte("de"),
		RxCount: 10, FwdCount: 7, ToldFwd: 5, TxCount: 20, PeerAlloc: 100, PeerFwd: 15, Window: maxWindow, Wants: wantCredit,
	}}}
}

func TestDamagedStatesAreRefused(t *testing.T) {
	for text, damage := range map[string]func(st *deviceState, c *connSaved){
		"CID 4":              func(st *deviceState, _ *connSaved) { st.CID = 4 },
		"next port":          func(st *deviceState, _ *connSaved) { st.NextPort = 80 },
		"next port 42949672": func(st *deviceState, _ *connSaved) { st.NextPort = math.MaxUint32 },
		"too many":           func(st *deviceState, _ *connSaved) { st.Resets = make([]resetSaved, MaxConnections+maxResets) },
		"failed device":      func(st *deviceState, _ *connSaved) { st.Broken = "broken" },
		"there twice":        func(st *deviceState, c *connSaved) { st.Conns = append(st.Conns, *c) },
		"unknown state":      func(_ *deviceState, c *connSaved) { c.State = uint8(stateClosed) },
		"does not fit":       func(_ *deviceState, c *connSaved) { c.Wants = wantRequest },
		"flags that":         func(_ *deviceState, c *connSaved) { c.LocalFlags = 4 },
		"flags that do":      func(_ *deviceState, c *connSaved) { c.PeerFlags = shutdownBoth },
		"flags that do not":  func(_ *deviceState, c *connSaved) { c.State = uint8(stateClosing) },
		"window of 0":        func(_ *deviceState, c *connSaved) { c.Window = 0 },
		"window of 1048577":  func(_ *deviceState, c *connSaved) { c.Window = maxWindow + 1 },
		"counters":           func(_ *deviceState, c *connSaved) { c.RxCount = 11 },
		"counters 10, 7, 8":  func(_ *deviceState, c *connSaved) { c.ToldFwd = 8 },
		"3 bytes unread":     func(_ *deviceState, c *connSaved) { c.RxCount, c.FwdCount = maxWindow+100, maxWindow+97 },
		"nobody wants":       func(_ *deviceState, c *connSaved) { c.LocalFlags = shutdownReceive },
		"cannot be sent":     func(_ *deviceState, c *connSaved) { c.LocalFlags = shutdownSend },
		"unsent data":        func(_ *deviceState, c *connSaved) { c.Unsent = make([]byte, maxSavedWrite+1) },
		"before it is established": func(_ *deviceState, c *connSaved) {
			c.State, c.Wants = uint8(stateConnecting), wantRequest
		},
	} {
		st := sampleState()
		damage(&st, &st.Conns[0])
		b, err := msgpack.Marshal(st)
		require.NoError(t, err)
		dev := New(Config{GuestCID: guestCID})
		require.ErrorContains(t, dev.RestoreState(b), text)
		conns, resets := dev.open()
		require.Zero(t, conns+resets, "%s: nothing is half restored", text)
	}
	require.Error(t, New(Config{GuestCID: guestCID}).RestoreState([]byte{0xc1}))
	require.Error(t, New(Config{GuestCID: guestCID}).RestoreState(nil))
}

func TestStateSurvivesARoundTrip(t *testing.T) {
	st := sampleState()
	st.Resets = []resetSaved{{CID: 7, Host: 1, Guest: 2, Kind: 9}}
	b, err := msgpack.Marshal(st)
	require.NoError(t, err)
	dev := New(Config{GuestCID: guestCID})
	require.NoError(t, dev.RestoreState(b))
	again, err := dev.SaveState()
	require.NoError(t, err)
	require.Equal(t, b, again)
	require.Error(t, dev.RestoreState(b), "a device in use")
}
