package balloon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

const memorySize = 16 << 20

// span is a range of guest physical addresses.
type span struct{ addr, n uint64 }

// discards records what a device released, as guest physical ranges.
type discards struct {
	mu    sync.Mutex
	mem   *hypervisor.Memory
	spans []span
}

func (r *discards) discard(b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, region := range r.mem.Regions() {
		off := uintptr(unsafe.Pointer(&b[0])) - uintptr(unsafe.Pointer(&region.Bytes[0]))
		if off < uintptr(len(region.Bytes)) && off+uintptr(len(b)) <= uintptr(len(region.Bytes)) {
			r.spans = append(r.spans, span{region.Addr + uint64(off), uint64(len(b))})
			return nil
		}
	}
	panic("discard outside guest memory")
}

func (r *discards) take() []span {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.spans
	r.spans = nil
	return s
}

// guest is a driver of one balloon whose pages are not really released.
type guest struct {
	*virtiotest.Driver
	dev      *Device
	released *discards
}

func attach(t testing.TB, mem *hypervisor.Memory) *guest {
	r := &discards{mem: mem}
	dev := New(Config{Discard: r.discard})
	d := virtiotest.NewOn(t, dev, mem)
	t.Cleanup(func() { require.NoError(t, d.MMIO.Close()) })
	return &guest{d, dev, r}
}

func boot(t testing.TB, without uint64) *guest {
	g := attach(t, virtiotest.NewMemory(t, memorySize))
	g.Up(g.Offered() &^ without)
	return g
}

// restore returns a guest that goes on from state s of g.
func (g *guest) restore(t testing.TB, s virtio.State) *guest {
	mem := g.CopyMemory()
	r := &discards{mem: mem}
	dev := New(Config{Discard: r.discard})
	n := &guest{g.Reattach(dev, mem), dev, r}
	require.NoError(t, n.MMIO.Restore(s))
	return n
}

// save returns the state of the paused device, as it comes out of a file.
func (g *guest) save(t testing.TB) (s virtio.State) {
	saved, err := g.MMIO.Save()
	require.NoError(t, err)
	b, err := msgpack.Marshal(saved)
	require.NoError(t, err)
	require.NoError(t, msgpack.Unmarshal(b, &s))
	return s
}

func pfnBuffer(pfns ...uint32) (b []byte) {
	for _, p := range pfns {
		b = binary.LittleEndian.AppendUint32(b, p)
	}
	return b
}

// in returns a writable buffer at a guest address.
func (g *guest) in(addr, n uint64) virtiotest.Buffer {
	b, ok := g.Mem.Slice(addr, n)
	if !ok {
		panic("test: buffer outside memory")
	}
	return virtiotest.Buffer{Addr: addr, Bytes: b, Writable: true}
}

func TestIdentity(t *testing.T) {
	g := attach(t, virtiotest.NewMemory(t, memorySize))
	require.EqualValues(t, virtio.IDBalloon, g.Read32(virtiotest.RegDeviceID))
	require.Equal(t, FeatureStats|FeatureDeflateOnOOM|FeatureReporting, g.Offered()&0xff_ffff)
	// Linux reports pages only if 32 ranges fit, and takes a queue of size 0 for missing.
	for i, want := range []uint32{32, 32, 32, 32, 0} {
		g.Write32(virtiotest.RegQueueSel, uint32(i))
		require.Equal(t, want, g.Read32(virtiotest.RegQueueNumMax), "queue %d", i)
	}
}

// TestQueueOrder counts the queues like Linux: those that exist with the negotiated features, without gaps.
func TestQueueOrder(t *testing.T) {
	const page = virtiotest.Base + 1<<20
	for _, tt := range []struct {
		name             string
		without          uint64
		stats, reporting int // -1: no such queue
	}{
		{"all", 0, 2, 3},
		{"without deflation when out of memory", FeatureDeflateOnOOM, 2, 3},
		{"without statistics", FeatureStats, -1, 2},
		{"without reporting", FeatureReporting, 2, -1},
		{"neither", FeatureStats | FeatureReporting | FeatureDeflateOnOOM, -1, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, tt.without)
			g.Queues[0].Submit(g.Out(pfnBuffer(page / PageSize)))
			require.Zero(t, g.Queues[0].Wait().Written)
			require.Equal(t, []span{{page, PageSize}}, g.released.take())
			g.Queues[1].Submit(g.Out(pfnBuffer(page / PageSize)))
			require.Zero(t, g.Queues[1].Wait().Written)
			require.Empty(t, g.released.take())
			if tt.reporting >= 0 {
				q := g.Queues[tt.reporting]
				q.Submit(g.in(page, 8*PageSize))
				require.Zero(t, q.Wait().Written)
				require.Equal(t, []span{{page, 8 * PageSize}}, g.released.take())
			}
			for i := 2; i < len(g.Queues); i++ {
				if i == tt.stats || i == tt.reporting || i == 3 && tt.reporting >= 0 {
					continue
				}
				g.Queues[i].Submit(g.in(page, PageSize))
				require.Zero(t, g.Queues[i].UsedIdx(), "queue %d has no purpose", i)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
			defer cancel()
			_, err := g.dev.Stats(ctx)
			if tt.stats >= 0 {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			} else {
				require.ErrorIs(t, err, ErrNoStats)
			}
			require.Empty(t, g.released.take())
			require.NoError(t, g.MMIO.Failure())
		})
	}
}

func TestInflate(t *testing.T) {
	const first = uint32((virtiotest.Base + 1<<20) / PageSize)
	const addr = uint64(first) * PageSize
	shuffled := make([]uint32, 256)
	for i := range shuffled {
		shuffled[i] = first + uint32(i)
	}
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for _, tt := range []struct {
		name string
		pfns []uint32
		want []span
	}{
		{"nothing", nil, nil},
		{"one", []uint32{first}, []span{{addr, PageSize}}},
		{"upwards", []uint32{first, first + 1, first + 2}, []span{{addr, 3 * PageSize}}},
		{"downwards", []uint32{first + 2, first + 1, first}, []span{{addr, 3 * PageSize}}},
		{"in any order", shuffled, []span{{addr, 256 * PageSize}}},
		{"twice", []uint32{first, first + 1, first}, []span{{addr, 2 * PageSize}}},
		{"apart", []uint32{first, first + 2}, []span{{addr, PageSize}, {addr + 2*PageSize, PageSize}}},
		{"the first and the last page", []uint32{virtiotest.Base / PageSize, (virtiotest.Base+memorySize)/PageSize - 1},
			[]span{{virtiotest.Base, PageSize}, {virtiotest.Base + memorySize - PageSize, PageSize}}},
		{"as many as possible", slices.Repeat([]uint32{first, first + 9}, maxPFNs/2), []span{{addr, PageSize}, {addr + 9*PageSize, PageSize}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, 0)
			array := pfnBuffer(tt.pfns...)
			// Cut at places where no page number ends, and with a writable buffer, which means nothing here.
			cut := min(len(array), 5)
			bufs := []virtiotest.Buffer{g.Out(array[:cut]), g.Out(array[cut:]), g.In(8)}
			g.Queues[inflateQueue].Submit(bufs...)
			require.Zero(t, g.Queues[inflateQueue].Wait().Written)
			require.Equal(t, tt.want, g.released.take())
			var total int64
			for _, s := range tt.want {
				total += int64(s.n)
			}
			require.Equal(t, total, g.dev.Reclaimed())
			require.NoError(t, g.MMIO.Failure())
		})
	}
}

// TestInflateAcrossRegions inflates pages that are neighbours in the guest and not on the host.
func TestInflateAcrossRegions(t *testing.T) {
	const size = 1 << 20
	a, b := virtiotest.NewMemory(t, size), virtiotest.NewMemory(t, size)
	const border = virtiotest.Base + size
	g := attach(t, hypervisor.NewMemory(a.Regions()[0], hypervisor.Region{Addr: border, Bytes: b.Regions()[0].Bytes}))
	g.Up(g.Offered())
	const pfn = border / PageSize
	g.Queues[inflateQueue].Submit(g.Out(pfnBuffer(pfn+1, pfn, pfn-1, pfn-2)))
	g.Queues[inflateQueue].Wait()
	require.Equal(t, []span{{border - 2*PageSize, 2 * PageSize}, {border, 2 * PageSize}}, g.released.take())
}

func TestBadInflate(t *testing.T) {
	const good = uint32((virtiotest.Base + 1<<20) / PageSize)
	const end = uint32((virtiotest.Base + memorySize) / PageSize)
	for name, array := range map[string][]byte{
		"below memory":         pfnBuffer(virtiotest.Base/PageSize - 1),
		"page zero":            pfnBuffer(0, good),
		"above memory":         pfnBuffer(good, end),
		"the last page number": pfnBuffer(good, math.MaxUint32),
		"half a number":        pfnBuffer(good, good)[:6],
		"one byte":             {0},
		"too many":             make([]byte, (maxPFNs+1)*pfnBytes),
	} {
		t.Run(name, func(t *testing.T) {
			g := boot(t, 0)
			g.Queues[inflateQueue].Submit(g.Out(array))
			require.ErrorIs(t, g.MMIO.Failure(), virtio.ErrDriver)
			for _, s := range g.released.take() {
				require.Equal(t, span{uint64(good) * PageSize, PageSize}, s)
			}
			// The broken device can be saved, and a reset repairs it.
			g.MMIO.Pause()
			n := g.restore(t, g.save(t))
			n.MMIO.Resume()
			require.Error(t, n.MMIO.Failure())
			n.Up(n.Offered())
			n.Queues[inflateQueue].Submit(n.Out(pfnBuffer(good)))
			n.Queues[inflateQueue].Wait()
		})
	}
	for i := range queues {
		g := boot(t, 0)
		g.Queues[i].SetAvailIdx(100)
		ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Timeout)
		if i == statsQueue {
			_, err := g.dev.Stats(ctx)
			require.ErrorIs(t, err, ErrNoStats)
			require.ErrorIs(t, err, virtio.ErrDriver)
		} else {
			g.Queues[i].Kick()
		}
		cancel()
		require.ErrorIs(t, g.MMIO.Failure(), virtio.ErrDriver, "queue %d", i)
	}
}

// TestDeflate: nothing in the array can do harm, since nothing has to be done.
func TestDeflate(t *testing.T) {
	g := boot(t, 0)
	for _, array := range [][]byte{pfnBuffer(0x110), pfnBuffer(math.MaxUint32, 0), {1, 2, 3}, make([]byte, 1<<20)} {
		g.Queues[deflateQueue].Submit(g.Out(array))
		require.Zero(t, g.Queues[deflateQueue].Wait().Written)
	}
	require.Empty(t, g.released.take())
	require.NoError(t, g.MMIO.Failure())
}

func TestReport(t *testing.T) {
	const addr = virtiotest.Base + 1<<20
	page := uint64(os.Getpagesize())
	for _, tt := range []struct {
		name    string
		reports []span
		want    []span
	}{
		{"a huge page", []span{{addr, 2 << 20}}, []span{{addr, 2 << 20}}},
		{"several", []span{{addr, page}, {addr + 4*page, 2 * page}}, []span{{addr, page}, {addr + 4*page, 2 * page}}},
		{"less than a page", []span{{addr, page - 1}, {addr + 1, page - 1}, {addr + 7, 1}}, nil},
		{"part of two pages", []span{{addr + 1, 2*page - 2}}, nil},
		{"one page inside", []span{{addr + page - 1, page + 2}}, []span{{addr + page, page}}},
		{"until the middle of a page", []span{{addr, 3*page - 1}}, []span{{addr, 2 * page}}},
		{"from the middle of a page", []span{{addr + 1, 3*page - 1}}, []span{{addr + page, 2 * page}}},
		{"up to the end of memory", []span{{addr, memorySize - 1<<20}}, []span{{addr, memorySize - 1<<20}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, 0)
			bufs := []virtiotest.Buffer{g.Out(make([]byte, 2*page))} // readable: no report
			for _, s := range tt.reports {
				bufs = append(bufs, g.in(s.addr, s.n))
			}
			g.Queues[reportingQueue].Submit(bufs...)
			require.Zero(t, g.Queues[reportingQueue].Wait().Written)
			require.Equal(t, tt.want, g.released.take())
			require.NoError(t, g.MMIO.Failure())
		})
	}
	g := boot(t, 0)
	g.Queues[reportingQueue].Submit(virtiotest.Buffer{Addr: virtiotest.Base + memorySize - page, Bytes: make([]byte, 2*page), Writable: true})
	require.ErrorIs(t, g.MMIO.Failure(), virtio.ErrDriver)
	require.Empty(t, g.released.take())
}

func TestWholePages(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 256<<10, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	defer unix.Munmap(b)
	const page = 64 << 10
	// On a host with large pages a page of the balloon is too small to be released.
	b = b[-uintptr(unsafe.Pointer(&b[0]))&(page-1):][:2*page]
	require.Empty(t, wholePages(b[4096:8192], page))
	require.Empty(t, wholePages(b[:page-1], page))
	require.Empty(t, wholePages(nil, page))
	got := wholePages(b[:page+4096], page)
	require.Len(t, got, page)
	require.Same(t, &b[0], &got[0])
	got = wholePages(b[1:], page)
	require.Len(t, got, page)
	require.Same(t, &b[page], &got[0])
}

// resident returns which pages of b are in memory.
func resident(t *testing.T, b []byte) []bool {
	vec := make([]byte, len(b)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	require.Zero(t, errno)
	in := make([]bool, len(vec))
	for i, v := range vec {
		in[i] = v&1 != 0
	}
	return in
}

// TestReleasesMemory lets a real mapping go, and looks at what the host keeps of it.
func TestReleasesMemory(t *testing.T) {
	page := os.Getpagesize()
	if page != PageSize {
		t.Skipf("pages of %d bytes", page)
	}
	g := virtiotest.Start(t, New(Config{}), 0)
	dev := g.MMIO.Device().(*Device)
	const off, pages = 4 << 20, 64
	area := g.Mem.Regions()[0].Bytes[off : off+pages*PageSize]
	touch := func() {
		for i := range area {
			area[i] = 0xaa
		}
	}
	count := func() (n int) {
		for _, in := range resident(t, area) {
			if in {
				n++
			}
		}
		return n
	}
	touch()
	require.Equal(t, pages, count())

	// Not the first page and not the last, neither of which is whole.
	inner := area[1 : len(area)-1]
	g.Queues[reportingQueue].Submit(virtiotest.Buffer{Addr: virtiotest.Base + off + 1, Bytes: inner, Writable: true})
	g.Queues[reportingQueue].Wait()
	require.Equal(t, 2, count())
	require.EqualValues(t, (pages-2)*PageSize, dev.Reclaimed())
	require.Equal(t, bytes.Repeat([]byte{0xaa}, PageSize), area[:PageSize])
	require.Equal(t, make([]byte, PageSize), area[PageSize:2*PageSize], "released and accessible")

	touch()
	var pfns []uint32
	for i := range uint32(pages / 2) {
		pfns = append(pfns, (virtiotest.Base+off)/PageSize+2*i)
	}
	g.Queues[inflateQueue].Submit(g.Out(pfnBuffer(pfns...)))
	g.Queues[inflateQueue].Wait()
	for i, in := range resident(t, area) {
		require.Equal(t, i%2 == 1, in, "page %d", i)
	}
	touch() // as after a deflation
	require.Equal(t, pages, count())
	require.NoError(t, dev.Err())
}

// TestReleasesPrivateFileMapping: guest memory restored from a snapshot is a private mapping, whose changed pages are the cost.
func TestReleasesPrivateFileMapping(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "snapshot")
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Write(bytes.Repeat([]byte{0x55}, memorySize))
	require.NoError(t, err)
	ram, err := unix.Mmap(int(f.Fd()), 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Munmap(ram) })
	g := virtiotest.NewOn(t, New(Config{}), hypervisor.NewMemory(hypervisor.Region{Addr: virtiotest.Base, Bytes: ram}))
	t.Cleanup(func() { require.NoError(t, g.MMIO.Close()) })
	clear(ram[:1<<20]) // the rings and buffers
	g.Up(g.Offered())
	area := ram[4<<20 : 5<<20]
	clear(area)
	g.Queues[reportingQueue].Submit(virtiotest.Buffer{Addr: virtiotest.Base + 4<<20, Bytes: area, Writable: true})
	g.Queues[reportingQueue].Wait()
	require.Equal(t, bytes.Repeat([]byte{0x55}, len(area)), area, "the changed pages are gone")
	require.NoError(t, g.MMIO.Device().(*Device).Err())
}

func TestHostFailure(t *testing.T) {
	broken := errors.New("broken")
	d := virtiotest.Start(t, New(Config{Discard: func([]byte) error { return broken }}), 0)
	dev := d.MMIO.Device().(*Device)
	require.NoError(t, dev.Err())
	d.Queues[inflateQueue].Submit(d.Out(pfnBuffer(virtiotest.Base/PageSize + 100)))
	d.Queues[inflateQueue].Wait()
	require.ErrorIs(t, dev.Err(), broken)
	require.Zero(t, dev.Reclaimed())
	require.NoError(t, d.MMIO.Failure(), "no business of the driver")
}
