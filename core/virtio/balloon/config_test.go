package balloon

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

const isrConfig = 2

func (g *guest) numPages() uint32 { return binary.LittleEndian.Uint32(g.Config(0, 4)) }

// hears waits until the driver is told of a configuration change.
func (g *guest) hears(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(virtiotest.Timeout); g.WaitInterrupt()&isrConfig == 0; {
		require.True(t, time.Now().Before(deadline))
	}
}

// settled waits until the transport has had all queues looked at, and acknowledges what came of it.
func (g *guest) settled() {
	g.MMIO.Pause()
	g.Write32(virtiotest.RegInterruptACK, g.Read32(virtiotest.RegInterruptStatus))
	g.MMIO.Resume()
}

func TestTarget(t *testing.T) {
	g := boot(t, 0)
	for _, tt := range []struct {
		bytes int64
		pages uint32
	}{
		{PageSize, 1},
		{3*PageSize - 1, 2},
		{1 << 30, 1 << 18},
		{PageSize - 1, 0},
		{-5 * PageSize, 0},
		{math.MaxInt64, math.MaxUint32},
		{math.MinInt64, 0},
	} {
		generation := g.Read32(virtiotest.RegConfigGeneration)
		before := g.numPages()
		g.dev.SetTarget(tt.bytes)
		require.Equal(t, tt.pages, g.numPages())
		require.EqualValues(t, int64(tt.pages)*PageSize, g.dev.Target())
		if before == tt.pages {
			require.Equal(t, generation, g.Read32(virtiotest.RegConfigGeneration), "nothing changed")
			continue
		}
		g.hears(t)
		require.NotEqual(t, generation, g.Read32(virtiotest.RegConfigGeneration))
	}
	require.Equal(t, make([]byte, 8), g.Config(8, 8), "no fields of features that are not offered")
}

func TestTargetBeforeActivation(t *testing.T) {
	g := attach(t, virtiotest.NewMemory(t, memorySize))
	g.dev.SetTarget(7 * PageSize)
	require.EqualValues(t, 7, g.numPages())
	require.Zero(t, g.Interrupts())
	g.Up(g.Offered())
	g.hears(t) // it may have read the configuration before
	g.SetStatus(0)
	require.EqualValues(t, 7, g.numPages(), "a reset keeps the target")
	g.dev.SetTarget(8 * PageSize)
	g.Up(g.Offered())
	g.hears(t)
	require.EqualValues(t, 8, g.numPages())
}

func TestTargetDuringPause(t *testing.T) {
	g := boot(t, 0)
	g.settled()
	g.MMIO.Pause()
	interrupts := g.Interrupts()
	g.dev.SetTarget(9 * PageSize)
	require.Equal(t, interrupts, g.Interrupts(), "a paused guest is left alone")
	s := g.save(t)

	n := g.restore(t, s)
	require.EqualValues(t, 9, n.numPages())
	require.Zero(t, n.Interrupts())
	n.MMIO.Resume()
	n.hears(t)

	// The snapshot is restored with another target.
	n = g.restore(t, s)
	n.dev.SetTarget(4 * PageSize)
	n.MMIO.Resume()
	n.hears(t)
	require.EqualValues(t, 4, n.numPages())

	g.MMIO.Resume()
	g.hears(t)
	g.settled()
	interrupts = g.Interrupts()
	g.MMIO.Pause()
	require.Zero(t, g.save(t).InterruptStatus)
	g.MMIO.Resume()
	g.settled()
	require.Equal(t, interrupts, g.Interrupts(), "told once")
}

func TestActual(t *testing.T) {
	g := boot(t, 0)
	require.Zero(t, g.dev.Actual())
	g.Write32(virtiotest.RegConfig+4, 100)
	require.EqualValues(t, 100*PageSize, g.dev.Actual())
	require.Equal(t, []byte{100, 0, 0, 0}, g.Config(4, 4))
	g.MMIO.Write(virtiotest.RegConfig+5, []byte{2})
	require.EqualValues(t, 0x264*PageSize, g.dev.Actual())
	g.MMIO.Write(virtiotest.RegConfig+7, []byte{1, 2, 3})
	require.EqualValues(t, 0x1000264*PageSize, g.dev.Actual())
	g.Write32(virtiotest.RegConfig+4, math.MaxUint32)
	require.EqualValues(t, int64(math.MaxUint32)*PageSize, g.dev.Actual())
	// The rest is the device's.
	g.Write32(virtiotest.RegConfig, 55)
	g.Write32(virtiotest.RegConfig+8, 55)
	g.Write32(virtiotest.RegConfig+0xe00, 55)
	require.Zero(t, g.dev.Target())
	require.EqualValues(t, int64(math.MaxUint32)*PageSize, g.dev.Actual())
	g.Write32(virtiotest.RegConfig+4, 77)
	g.MMIO.Pause()
	n := g.restore(t, g.save(t))
	require.EqualValues(t, 77*PageSize, n.dev.Actual())
	g.SetStatus(0)
	require.Zero(t, g.dev.Actual())
}

// TestSaveWithWork saves while every queue has work that was not announced.
func TestSaveWithWork(t *testing.T) {
	const addr = virtiotest.Base + 1<<20
	g := boot(t, 0)
	g.MMIO.Pause()
	g.Queues[inflateQueue].Submit(g.Out(pfnBuffer(addr / PageSize)))
	g.Queues[deflateQueue].Submit(g.Out(pfnBuffer(addr / PageSize)))
	g.Queues[reportingQueue].Submit(g.in(addr+1<<20, 2<<20))
	require.Empty(t, g.released.take())
	n := g.restore(t, g.save(t))
	n.MMIO.Resume()
	for _, q := range []int{inflateQueue, deflateQueue, reportingQueue} {
		require.Zero(t, n.Queues[q].Wait().Written)
	}
	require.ElementsMatch(t, []span{{addr, PageSize}, {addr + 1<<20, 2 << 20}}, n.released.take())
	require.EqualValues(t, PageSize+2<<20, n.dev.Reclaimed())
	require.Empty(t, g.released.take())
}

func TestBadState(t *testing.T) {
	for _, b := range [][]byte{{0xc1}, {0x93, 1, 2}, []byte("state")} {
		require.Error(t, New(Config{}).RestoreState(b))
	}
}
