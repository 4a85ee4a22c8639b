package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/kvm"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// bench is what all rounds share: the snapshot, and the floor's process.
type bench struct {
	dir   string
	hv    hypervisor.Hypervisor
	image *memory.Image
	state *machine.State

	floor *exec.Cmd
	ask   io.WriteCloser
	tell  *bufio.Reader
}

func newBench(floor string) (b *bench, err error) {
	b = &bench{}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("/dev/shm", "bench-restore-"); err != nil {
		return b, err
	}
	ram := filepath.Join(b.dir, "memory")
	if err := writeMemory(ram); err != nil {
		return b, err
	}
	for _, disk := range []string{"root", "scratch"} {
		if err := os.WriteFile(filepath.Join(b.dir, disk), make([]byte, 1<<20), 0o600); err != nil {
			return b, err
		}
	}
	if b.hv, err = kvm.OpenUnchecked(); err != nil {
		return b, err
	}
	f, err := os.Open(ram)
	if err != nil {
		return b, err
	}
	b.image, err = memory.NewImage([]int64{memoryMiB << 20}, memory.Layer{File: f, Extents: []memory.Extent{{Len: memoryMiB << 20}}})
	if err != nil {
		f.Close()
		return b, err
	}
	if err := b.capture(); err != nil {
		return b, err
	}
	b.floor = exec.Command(floor, ram, fmt.Sprintf("%#x", entry))
	b.floor.Stderr = os.Stderr
	if b.ask, err = b.floor.StdinPipe(); err != nil {
		return b, err
	}
	out, err := b.floor.StdoutPipe()
	if err != nil {
		return b, err
	}
	b.tell = bufio.NewReader(out)
	return b, b.floor.Start()
}

func (b *bench) capture() error {
	mem, err := b.memory()
	if err != nil {
		return err
	}
	defer memory.Release(regionBytes(mem))
	devices, err := newDevices(b.dir)
	if err != nil {
		return err
	}
	b.state, err = capture(b.hv, mem, devices)
	closeAll(devices)
	return err
}

func (b *bench) close() {
	if b.ask != nil {
		b.ask.Close()
		b.floor.Wait()
	}
	if b.image != nil {
		b.image.Close()
	}
	os.RemoveAll(b.dir)
}

func closeAll(devices []virtio.Device) {
	for _, d := range devices {
		d.Close()
	}
}

func regionBytes(m *hypervisor.Memory) [][]byte {
	var out [][]byte
	for _, r := range m.Regions() {
		out = append(out, r.Bytes)
	}
	return out
}

// memory maps the snapshot's.
func (b *bench) memory() (*hypervisor.Memory, error) {
	mem, err := memory.Reserve([]int64{memoryMiB << 20})
	if err != nil {
		return nil, err
	}
	if err := b.image.Map(mem); err != nil {
		return nil, errors.Join(err, memory.Release(mem))
	}
	return hypervisor.NewMemory(hypervisor.Region{Bytes: mem[0]}), nil
}

// shell makes a machine that has everything but its state, as core's pool keeps them: its memory is mapped already.
func (b *bench) shell(devices []virtio.Device, out *serial) (*machine.Machine, error) {
	mem, err := b.memory()
	if err != nil {
		closeAll(devices)
		return nil, err
	}
	return machine.New(machine.Config{Hypervisor: b.hv, MemoryMiB: memoryMiB, VCPUs: 1, Devices: devices, Serial: out, Memory: mem})
}

func (b *bench) start(m *machine.Machine) error {
	if err := m.Restore(b.state); err != nil {
		return err
	}
	return m.Resume()
}

// samples of one kind are those of all rounds.
type samples struct {
	floor, host, shell, reset, stop, release []time.Duration
}

// measure takes turns, so that all sides see the same machine. Each round ends when its VM is gone: that takes the kernel some 20 ms.
func (b *bench) measure(n int, only string) ([]result, error) {
	var s samples
	for i := range n + 10 {
		if i == 10 {
			s = samples{} // the first warmed caches
		}
		for _, round := range []func(*samples) error{b.roundFloor, b.roundHost, b.roundShell} {
			time.Sleep(5 * time.Millisecond) // the kernel still tidies up after the last VM
			if err := round(&s); err != nil {
				return nil, err
			}
		}
	}
	results := []result{}
	for _, r := range []struct {
		name, unit   string
		ours, theirs []time.Duration
	}{
		{"restore.host", "ms", s.host, s.floor},
		{"restore.shell", "ms", s.shell, s.floor},
		{"restore.reset", "ms", s.reset, s.floor},
		{"teardown.caller", "us", s.stop, s.release},
	} {
		if strings.Contains(r.name, only) {
			results = append(results, summarize(r.name, r.unit, r.ours, r.theirs))
		}
	}
	return results, nil
}

func (b *bench) roundFloor(s *samples) error {
	if _, err := b.ask.Write([]byte{'\n'}); err != nil {
		return err
	}
	line, err := b.tell.ReadString('\n')
	if err != nil {
		return fmt.Errorf("the floor's program has ended: %w", err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	s.floor = append(s.floor, time.Duration(ns))
	return err
}

// roundHost restores from nothing but the opened image, the decoded state and opened disks, and then ends the machine as a caller would.
func (b *bench) roundHost(s *samples) error {
	out := newSerial()
	devices, err := newDevices(b.dir)
	if err != nil {
		return err
	}
	start := time.Now()
	m, err := b.shell(devices, out)
	if err != nil {
		return err
	}
	if err := b.start(m); err != nil {
		return err
	}
	s.host = append(s.host, (<-out.first).Sub(start))
	<-out.dirtied
	start = time.Now()
	m.Stop()
	s.stop = append(s.stop, time.Since(start))
	<-m.Done()
	s.release = append(s.release, time.Since(start))
	return nil
}

// roundShell restores into a machine that was there already, and then once more, in place.
func (b *bench) roundShell(s *samples) error {
	out := newSerial()
	devices, err := newDevices(b.dir)
	if err != nil {
		return err
	}
	m, err := b.shell(devices, out)
	if err != nil {
		return err
	}
	defer func() {
		m.Stop()
		<-m.Done()
	}()
	time.Sleep(time.Millisecond) // as one that waits in a pool: nothing of its making is still under way
	start := time.Now()
	if err := b.start(m); err != nil {
		return err
	}
	s.shell = append(s.shell, (<-out.first).Sub(start))
	<-out.dirtied
	if err := m.Pause(); err != nil {
		return err
	}
	time.Sleep(time.Millisecond)
	start = time.Now()
	if err := b.image.Reset(regionBytes(m.Memory())); err != nil {
		return err
	}
	if err := m.Rewind(b.state); err != nil {
		return err
	}
	if err := m.Resume(); err != nil {
		return err
	}
	s.reset = append(s.reset, (<-out.first).Sub(start))
	<-out.dirtied
	return nil
}
