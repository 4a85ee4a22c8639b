package core_test

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// What other monitors have shipped and had to mend: each of these was once a bug of a restore.

// complaints are what a kernel says whose time or CPUs went wrong.
var complaints = []string{"lockup", "stall", "clocksource", "hung_task", "blocked for more than", "BUG:", "WARNING:", "Call Trace", "I/O error"}

// slowHost is what a kernel says that could not compare two clocks in time.
var slowHost = regexp.MustCompile(`(?m)^.*clocksource: Long readout interval, skipping watchdog check.*$`)

// healthy checks that nothing of that is in the guest's log, which a copy has inherited, since its boot.
func healthy(t *testing.T, vm *core.VM) {
	t.Helper()
	log := vmtest.Shell(t, vm, "dmesg")
	_, log, _ = strings.Cut(log, "Run /init") // what comes before lists the clock sources
	if os.Getenv("SUPERMACHINE_TESTBED") != "" {
		log = slowHost.ReplaceAllString(log, "") // the guest stood still for a second there, which is nobody's fault
	}
	for _, c := range complaints {
		require.NotContains(t, log, c)
	}
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	require.NoError(t, err)
	return n
}

// uptime is the guest's CLOCK_BOOTTIME, which goes like CLOCK_MONOTONIC.
func uptime(t *testing.T, vm *core.VM) time.Duration {
	t.Helper()
	s, _, _ := strings.Cut(vmtest.Shell(t, vm, "cat /proc/uptime"), " ")
	return time.Duration(number(t, s) * float64(time.Second))
}

// counters is a workload of n loops that count: each step adds a byte to /tmp/n0, /tmp/n1 and so on.
type counters struct{ n int }

// startCounters runs a script n times, with its number as $i. A step of it ends with: count.
func startCounters(t *testing.T, vm *core.VM, n int, script string) counters {
	t.Helper()
	for i := range n {
		req := sh("count() { echo >>/tmp/n$i; }; count; " + script)
		req.Env = []string{fmt.Sprintf("i=%d", i)}
		_, err := vm.Exec(t.Context(), req)
		require.NoError(t, err)
	}
	eventually(t, func() bool { return vmtest.Shell(t, vm, "ls /tmp | grep -c ^n || true") == strconv.Itoa(n) }, "all begin")
	return counters{n}
}

func (c counters) values(t *testing.T, vm *core.VM) (all []int) {
	t.Helper()
	for line := range strings.Lines(vmtest.Shell(t, vm, "wc -c /tmp/n[0-9]")) {
		var n int
		_, err := fmt.Sscan(line, &n)
		require.NoError(t, err, line)
		all = append(all, n)
	}
	return all[:c.n] // the last line may be the sum
}

// advance waits until all have counted further.
func (c counters) advance(t *testing.T, vm *core.VM) {
	t.Helper()
	before := c.values(t, vm)
	eventually(t, func() bool {
		for i, n := range c.values(t, vm) {
			if n <= before[i] {
				return false
			}
		}
		return true
	}, "not all of %v go on", before)
}

// A TSC deadline that is set before the TSC, or lost as it expires during a save, leaves a CPU without its timer. Each generation of copies
// would lose it, with a chance.
func TestTimersGoOnThroughGenerations(t *testing.T) {
	t.Parallel()
	img := vmtest.Image(t, "busybox")
	vm := vmtest.Start(t, img, core.Config{MemoryMiB: 64, VCPUs: 2})
	sleepers := startCounters(t, vm, 3, "while :; do sleep 0.2; count; done")
	standing := vmtest.Start(t, img, core.Config{MemoryMiB: 64, VCPUs: 2})
	busy := startCounters(t, standing, 2, "while :; do count; done")
	require.NoError(t, standing.Pause())
	paused := time.Now()

	store := openSnapshots(t)
	at := uptime(t, vm)
	generations := vmtest.Times(5, 20)
	for generation := range generations {
		var next *core.VM
		if generation%5 == 4 { // through the state's encoding as well
			snap, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
			require.NoError(t, err)
			next = restore(t, snap)
			require.NoError(t, snap.Close())
		} else {
			children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
			require.NoError(t, err)
			next = children[0]
			t.Cleanup(func() { next.Close() })
		}
		sleepers.advance(t, next)
		if generation%5 >= 3 {
			sleepers.advance(t, vm)
		}
		require.NoError(t, vm.Close())
		now := uptime(t, next)
		require.Greater(t, now, at, "generation %d", generation)
		vm, at = next, now
	}
	healthy(t, vm)
	require.Equal(t, strconv.Itoa(generations), vmtest.Shell(t, vm, "cat /run/supermachine/generation"))

	stood := time.Since(paused) // long enough, here, for the watchdogs to bark at 21 s
	require.NoError(t, standing.Resume())
	busy.advance(t, standing)
	healthy(t, standing)
	t.Logf("the other VM stood still for %v", stood.Round(time.Second))
}

// realtime checks that the guest's wall clock is the host's, but for the time that its restore has taken.
func realtime(t *testing.T, vm *core.VM, took time.Duration) {
	t.Helper()
	const tolerance = 50 * time.Millisecond
	before := time.Now()
	s := vmtest.Shell(t, vm, "adjtimex | sed -n 's/.*tv_u*sec: *//p'")
	after := time.Now()
	sec, usec, _ := strings.Cut(s, "\n")
	guest := time.Unix(int64(number(t, sec)), int64(number(t, usec))*1000)
	require.WithinRange(t, guest, before.Add(-took-tolerance), after.Add(tolerance))
}

// The monotonic clock neither jumps by the time that the snapshot lay in the store nor goes back; the wall clock is the host's again, even if
// the guest's was set ahead before the save.
func TestClocksAreRightAfterARestore(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	type saved struct {
		snap   *core.Snapshot
		uptime time.Duration // before the save
		took   time.Duration // from then on until the snapshot was there
		at     time.Time
	}
	var all []saved
	for _, ahead := range []string{"", "date -s @4000000000 >/dev/null", "date -s @1000000000 >/dev/null"} {
		vmtest.Shell(t, vm, ahead)
		began := time.Now()
		at := uptime(t, vm)
		snap, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
		require.NoError(t, err)
		defer snap.Close()
		all = append(all, saved{snap, at, time.Since(began), time.Now()})
	}
	require.Equal(t, "1000000", vmtest.Shell(t, vm, "date +%s | cut -c -7"), "the parent keeps what it has set")
	for time.Since(all[2].at) < 3*time.Second {
		uptime(t, vm)
	}
	for _, s := range all {
		began := time.Now()
		copied := restore(t, s.snap)
		realtime(t, copied, time.Since(began))
		now := uptime(t, copied)
		require.GreaterOrEqual(t, now, s.uptime, "it went back")
		require.Less(t, now-s.uptime, s.took+time.Since(began)+100*time.Millisecond, "it jumped over the %v in the store", began.Sub(s.at))
		healthy(t, copied)
		require.NoError(t, copied.Close())
	}
}

// computing sums in floating point for ever and compares each sum with the first; a wrong one it leaves in /tmp/wrong.
const computing = `taskset $(printf %x $((1 << i))) awk -v i=$i -v f=/tmp/n$i 'BEGIN {
	for (;;) {
		s = 1.5 + i
		for (k = 1; k < 500; k++) s = (s + k / s) / 2 + s / 3e7
		if (n++ == 0) first = s
		if (s != first) { print s, first > "/tmp/wrong"; exit }
		print "" >> f; fflush(f)
	}
}'`

// Each CPU of a copy has its own registers, those for floating point too, and goes on by itself. (The testbed's CPU has no AVX to be lost.)
func TestCPUsKeepTheirRegistersAndGoOn(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{2, 4}[:vmtest.Times(1, 2)] {
		t.Run(strconv.Itoa(cpus), func(t *testing.T) {
			store := openSnapshots(t)
			vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 96, VCPUs: cpus})
			loops := startCounters(t, vm, cpus, computing)
			loops.advance(t, vm)
			check := func(vm *core.VM) {
				t.Helper()
				loops.advance(t, vm)
				require.Equal(t, "right", vmtest.Shell(t, vm, "cat /tmp/wrong 2>/dev/null || echo right"))
				healthy(t, vm)
			}
			for range vmtest.Times(2, 5) {
				children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
				require.NoError(t, err)
				require.NoError(t, vm.Pause()) // the host has fewer CPUs
				check(children[0])
				require.NoError(t, children[0].Close())
				require.NoError(t, vm.Resume())
			}
			snap, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
			require.NoError(t, err)
			defer snap.Close()
			check(vm)
			require.NoError(t, vm.Close())
			check(restore(t, snap))
		})
	}
}

// sequence reads as the numbers from 1 on, one a line, and checks that the same is written to it.
type sequence struct {
	out, in  []byte // not yet read; expected next
	read     int64
	expected int64
	written  atomic.Int64 // bytes
	wrong    atomic.Bool
	stop     atomic.Bool
}

func (s *sequence) Read(p []byte) (int, error) {
	if s.stop.Load() {
		return 0, io.EOF
	}
	for len(s.out) < len(p) {
		s.read++
		s.out = append(strconv.AppendInt(s.out, s.read, 10), '\n')
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

func (s *sequence) Write(p []byte) (int, error) {
	for len(s.in) < len(p) {
		s.expected++
		s.in = append(strconv.AppendInt(s.in, s.expected, 10), '\n')
	}
	if string(s.in[:len(p)]) != string(p) {
		s.wrong.Store(true)
	}
	s.in = s.in[len(p):]
	s.written.Add(int64(len(p)))
	return len(p), nil
}

// echo sends a line to the guest's echo server and returns what comes back.
func echo(conn io.ReadWriter, line string) (string, error) {
	if _, err := conn.Write([]byte(line)); err != nil {
		return "", err
	}
	b := make([]byte, len(line))
	_, err := io.ReadFull(conn, b)
	return string(b), err
}

// A stream both ways runs through snapshots without a byte lost or doubled, and the copies, whose connections led elsewhere, take new ones:
// on ports too that the guest believes to be in use.
func TestConnectionsThatAreUnderWayDuringASave(t *testing.T) {
	vmtest.RequireSoak(t)
	store := openSnapshots(t)
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 128, VCPUs: 2})
	vmtest.Shell(t, vm, "nc -ll -p 7000 -e cat >/dev/null 2>&1 &")
	var idle []io.ReadWriteCloser
	for i := range 20 {
		conn, err := vm.Connect(t.Context(), 7000)
		require.NoError(t, err)
		defer conn.Close()
		idle = append(idle, conn)
		got, err := echo(conn, fmt.Sprintf("before %d\n", i))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("before %d\n", i), got)
	}
	stream := &sequence{}
	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"cat"}, Stdin: stream, Stdout: stream})
	require.NoError(t, err)
	flows := func() {
		t.Helper()
		before := stream.written.Load()
		eventually(t, func() bool { return stream.written.Load() > before+512<<10 }, "the stream stands still at %d bytes", before)
		require.False(t, stream.wrong.Load(), "a byte is wrong before number %d", stream.written.Load())
	}
	storm := func(vm *core.VM) {
		t.Helper()
		var wg sync.WaitGroup
		slots := make(chan struct{}, 4) // of the server, which starts a program for each
		for i := range 100 {
			wg.Go(func() {
				if i%5 != 0 {
					_, err := vm.Connect(t.Context(), 7001)
					if core.CodeOf(err) != core.ErrRefused {
						t.Errorf("connection %d: %v", i, err)
					}
					return
				}
				slots <- struct{}{}
				defer func() { <-slots }()
				conn, err := vm.Connect(t.Context(), 7000)
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				defer conn.Close()
				line := fmt.Sprintf("line of connection %d\n", i)
				if got, err := echo(conn, line); err != nil || got != line {
					t.Errorf("connection %d: %q, %v", i, got, err)
				}
			})
		}
		wg.Wait()
		require.False(t, t.Failed())
	}
	for i := range 2 {
		flows()
		children, err := vm.Fork(t.Context(), 1, core.ForkOptions{Child: func(int) core.StartOptions { return core.StartOptions{Timeout: time.Minute} }})
		require.NoError(t, err)
		defer closeAll(children)
		if i == 0 {
			storm(children[0]) // while its agent still gets rid of the parent's connections
		}
		require.Equal(t, "hello", vmtest.Shell(t, children[0], "echo hello"))
		closeAll(children)
		flows()
		snap, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
		require.NoError(t, err)
		defer snap.Close()
		if i == 1 {
			copied, err := snap.Start(t.Context(), core.StartOptions{Timeout: time.Minute}) // the stream takes the testbed's CPUs
			require.NoError(t, err)
			defer copied.Close()
			storm(copied)
		}
	}
	flows()
	for i, conn := range idle {
		got, err := echo(conn, "after\n")
		require.NoError(t, err, "idle connection %d", i)
		require.Equal(t, "after\n", got)
	}
	stream.stop.Store(true)
	st, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, st.Code)
	require.False(t, stream.wrong.Load())
	healthy(t, vm)
	t.Logf("%d MiB went through", stream.written.Load()>>20)
}

// More memory than fits below the 4 GiB hole is in two pieces. The kernel takes fresh pages from the top.
func TestMemoryAboveTheHoleIsSavedAndRestored(t *testing.T) {
	vmtest.RequireSoak(t)
	if mem, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int
		fmt.Sscanf(string(mem), "MemTotal: %d", &kib)
		if kib < 6<<20 {
			t.Skip("needs 6 GiB of memory (testbed/run --mem 8192)")
		}
	}
	store := openSnapshots(t)
	base := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 4096})
	vm := restore(t, base)
	vmtest.Shell(t, vm, "for i in 1 2 3 4; do dd if=/dev/urandom of=/dev/shm/$i bs=1M count=8 2>/dev/null; cat /dev/shm/$i > /disk$i; done; md5sum /dev/shm/* > /sums")
	sums := vmtest.Shell(t, vm, "md5sum /disk* | cut -c -32")
	regions := vm.Memory().Regions()
	require.Len(t, regions, 2)
	diff, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{Base: base})
	require.NoError(t, err)
	defer diff.Close()
	require.NoError(t, vm.Close())
	copied := restore(t, diff)
	vmtest.Shell(t, copied, "md5sum -c /sums >/dev/null; echo 3 > /proc/sys/vm/drop_caches")
	require.Equal(t, sums, vmtest.Shell(t, copied, "md5sum /disk* | cut -c -32"))
	children, err := copied.Fork(t.Context(), 2, core.ForkOptions{})
	require.NoError(t, err)
	defer closeAll(children)
	for _, c := range children {
		vmtest.Shell(t, c, "md5sum -c /sums >/dev/null")
	}
	info, err := store.Inspect(diff.Info().ID)
	require.NoError(t, err)
	require.Less(t, info.Bytes, int64(256<<20), "a small part of 4 GiB was written")
}
