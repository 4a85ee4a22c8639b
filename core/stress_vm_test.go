package core_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// stress-ng fills memory and computes while its VM is forked, and in the VM and both copies it finds all as it must be.
func TestStressNgFindsEverythingRightThroughAFork(t *testing.T) {
	t.Parallel()
	vm := vmtest.Start(t, vmtest.Image(t, "debian"), core.Config{VCPUs: 2})
	out, err := exec.Command(filepath.Join(vmtest.Root(), "scripts", "stress-ng")).Output()
	require.NoError(t, err, "scripts/stress-ng")
	tar, err := os.Open(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	defer tar.Close()
	untar, err := vm.Run(t.Context(), core.Exec{Args: []string{"sh", "-c", "mkdir /opt/stress && tar -C /opt/stress -xf -"}, Stdin: tar})
	require.NoError(t, err)
	require.Zero(t, untar.Code, string(untar.Stderr))

	stress := sh(`export LD_LIBRARY_PATH=/opt/stress/lib
		/opt/stress/bin/stress-ng --vm 1 --vm-bytes 32M --cpu 1 --cpu-method int64 --matrix 1 --verify --timeout 20s >/tmp/said 2>&1; echo $? >/tmp/status`)
	_, err = vm.Exec(t.Context(), stress)
	require.NoError(t, err)
	eventually(t, func() bool { // with the one that started them
		return vmtest.Shell(t, vm, "[ $(cat /proc/[0-9]*/comm 2>/dev/null | grep -c ^stress-ng) -lt 4 ] || echo all") == "all"
	}, "the stressors run")
	children, err := vm.Fork(t.Context(), 2, core.ForkOptions{})
	require.NoError(t, err)
	defer closeAll(children)
	for _, v := range append(children, vm) {
		eventually(t, func() bool { return vmtest.Shell(t, v, "cat /tmp/status 2>/dev/null || true") != "" }, "it ends")
		said := vmtest.Shell(t, v, "cat /tmp/status /tmp/said")
		require.True(t, strings.HasPrefix(said, "0\n"), said)
		require.Contains(t, said, "successful run completed")
		require.NotContains(t, said, "fail")
	}
}
