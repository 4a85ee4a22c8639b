package core_test

import (
	"context"
	"debug/elf"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// patchedKernel returns the guest's kernel with other code where it begins.
func patchedKernel(t *testing.T, code ...byte) []byte {
	t.Helper()
	assets, err := core.FindAssets("")
	require.NoError(t, err)
	kernel, err := os.ReadFile(assets.Kernel)
	require.NoError(t, err)
	f, err := elf.Open(assets.Kernel)
	require.NoError(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Paddr <= f.Entry && f.Entry < p.Paddr+p.Filesz {
			copy(kernel[p.Off+f.Entry-p.Paddr:], code)
			return kernel
		}
	}
	t.Fatal("the kernel's entry is in no segment")
	return nil
}

func TestFailedBootsSayWhatTheConsoleSaid(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	img := vmtest.Image(t, "busybox")
	damaged := *img
	damaged.RootFS = t.TempDir() + "/rootfs"
	require.NoError(t, os.WriteFile(damaged.RootFS, make([]byte, 1<<20), 0o600))
	for name, tt := range map[string]struct {
		replaced map[string][]byte
		img      *core.Image
		text     string
	}{
		"kernel that crashes at once": {replaced: map[string][]byte{"vmlinux": patchedKernel(t, 0x0f, 0x0b)}, text: "the console is empty"},
		"kernel that hangs":           {replaced: map[string][]byte{"vmlinux": patchedKernel(t, 0xeb, 0xfe)}, text: "did not answer within 3s"},
		"empty initramfs":             {replaced: map[string][]byte{"initramfs": {}}, text: "Kernel panic"},
		"damaged initramfs":           {replaced: map[string][]byte{"initramfs": []byte("070701 and then nothing that makes sense")}, text: "Kernel panic"},
		"damaged root file system":    {img: &damaged, text: "erofs"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := core.Config{}
			if tt.replaced != nil {
				cfg.AssetsDir = vmtest.CopyAssets(t, tt.replaced)
			}
			if name == "kernel that hangs" {
				cfg.BootTimeout = 3 * time.Second
			}
			if tt.img == nil {
				tt.img = img
			}
			_, err := core.Start(t.Context(), tt.img, cfg)
			require.ErrorIs(t, err, core.ErrBoot)
			require.ErrorContains(t, err, tt.text)
			require.ErrorContains(t, err, img.Ref)
			var boot *core.BootError
			require.True(t, errors.As(err, &boot))
		})
	}
}

func TestMissingAndForeignAssetsAreNamed(t *testing.T) {
	vmtest.RequireKVM(t)
	img := vmtest.Image(t, "busybox")
	for name, replaced := range map[string]map[string][]byte{
		"no kernel":    {"vmlinux": nil},
		"no initramfs": {"initramfs": nil},
		"no ELF file":  {"vmlinux": []byte("#!/bin/sh\n")},
		"half of one":  {"vmlinux": patchedKernel(t)[:1<<20]},
	} {
		t.Run(name, func(t *testing.T) {
			dir := vmtest.CopyAssets(t, replaced)
			_, err := core.Start(t.Context(), img, core.Config{AssetsDir: dir})
			require.ErrorIs(t, err, core.ErrAssets)
			require.ErrorContains(t, err, "vmlinux-"+runtime.GOARCH)
		})
	}
}

func TestCancelWhileBooting(t *testing.T) {
	vmtest.RequireKVM(t)
	cfg := core.Config{AssetsDir: vmtest.CopyAssets(t, map[string][]byte{"vmlinux": patchedKernel(t, 0xeb, 0xfe)})}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := core.Start(ctx, vmtest.Image(t, "busybox"), cfg)
	require.ErrorIs(t, err, core.ErrTimeout)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err = core.Start(ctx, vmtest.Image(t, "busybox"), cfg)
	require.ErrorIs(t, err, core.ErrCanceled)
}

// TestNothingIsLeftOfAVM counts what VMs take from this process: goroutines, descriptors and mappings.
func TestNothingIsLeftOfAVM(t *testing.T) {
	vmtest.RequireKVM(t)
	img := vmtest.Image(t, "busybox")
	cycle := func(i int) {
		vm, err := core.Start(t.Context(), img, core.Config{MemoryMiB: 64})
		require.NoError(t, err)
		_, err = vm.Run(t.Context(), core.Exec{Args: []string{"true"}})
		require.NoError(t, err)
		f, err := vm.Forward("tcp", "127.0.0.1:0", 80)
		require.NoError(t, err)
		switch i % 3 {
		case 0:
			require.NoError(t, f.Close())
			require.NoError(t, vm.Stop(t.Context(), time.Second))
		case 1:
			vm.Kill()
		}
		require.NoError(t, vm.Close())
	}
	cycle(0)
	cycle(1)
	count := func() [3]int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		memory := 0 // Go's own mappings come and go; a guest's memory is 64 MiB or more in one piece
		for _, m := range parseMaps(t, string(maps)) {
			if m.size >= 64<<20 && m.readable {
				memory++
			}
		}
		return [3]int{runtime.NumGoroutine(), len(fds), memory}
	}
	before := count()
	for i := range vmtest.Times(6, 30) {
		cycle(i)
	}
	eventually(t, func() bool {
		after := count()
		return after[0] <= before[0] && after[1] <= before[1] && after[2] <= before[2]
	}, "left over: %v goroutines, descriptors and mappings of guests' memory, %v before\n%s", count(), before, vmtest.Stacks())
}
