package core_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func TestExecLimits(t *testing.T) {
	vm := vmtest.Shared(t)
	req := sh("ulimit -n; ulimit -Hn; ulimit -c; ulimit -t")
	req.Limits = []core.Rlimit{
		{Name: "nofile", Soft: 100, Hard: core.Unlimited}, {Name: "core"}, {Name: "cpu", Soft: core.Unlimited, Hard: core.Unlimited},
	}
	for _, user := range []string{"root", "user"} {
		req.User = user
		out, err := vm.Run(t.Context(), req)
		require.NoError(t, err)
		require.Equal(t, "100\n1048576\n0\nunlimited\n", string(out.Stdout), user)
	}
	for name, limit := range map[string]core.Rlimit{"unknown": {Name: "fun"}, "soft above hard": {Name: "cpu", Soft: 2, Hard: 1}} {
		req.Limits = []core.Rlimit{limit}
		_, err := vm.Run(t.Context(), req)
		require.ErrorIs(t, err, core.ErrInvalidArgument, name)
	}
	req.Limits = []core.Rlimit{{Name: "nofile", Soft: 1, Hard: 1 << 40}}
	_, err := vm.Run(t.Context(), req)
	require.ErrorIs(t, err, core.ErrPermission)
}

func TestDetachedProgramsAreAttachedToAlsoInAFork(t *testing.T) {
	t.Parallel()
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 128})
	req := sh("echo before; until [ -e /tmp/end ]; do sleep 0.1; done; echo after; exit 9")
	req.Detach = true
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	_, err = p.Wait()
	require.ErrorIs(t, err, core.ErrDetached)
	require.ErrorIs(t, err, core.ErrCanceled)
	children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	defer closeAll(children)
	for _, v := range append(children, vm) {
		programs, more, err := v.Programs(t.Context())
		require.NoError(t, err)
		require.False(t, more)
		require.Len(t, programs, 1)
		require.Equal(t, p.ID(), programs[0].ID)
		var out bytes.Buffer
		a, err := v.Attach(t.Context(), p.ID(), core.Attachment{Stdout: &out})
		require.NoError(t, err)
		vmtest.Shell(t, v, "touch /tmp/end")
		st, err := a.Wait()
		require.NoError(t, err)
		require.Equal(t, 9, st.Code)
		require.Zero(t, st.Lost)
		require.Equal(t, "before\nafter\n", out.String())
		eventually(t, func() bool {
			_, err = v.Attach(t.Context(), p.ID(), core.Attachment{})
			return err != nil
		}, "the result is collected")
		require.ErrorIs(t, err, core.ErrNotFound)
	}
}

func TestARunningProgramIsDetachedAndSignalledByItsAttachment(t *testing.T) {
	vm := vmtest.Shared(t)
	p, err := vm.Exec(t.Context(), sh("sleep 4720"))
	require.NoError(t, err)
	_, err = vm.Attach(t.Context(), p.ID(), core.Attachment{})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
	require.NoError(t, p.Detach(t.Context()))
	_, err = p.Wait()
	require.ErrorIs(t, err, core.ErrDetached)
	a, err := vm.Attach(t.Context(), p.ID(), core.Attachment{})
	require.NoError(t, err)
	require.NoError(t, a.Signal(syscall.SIGTERM))
	st, err := a.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGTERM, st.Signal)
}

func TestOutputIsCutWhereAsked(t *testing.T) {
	vm := vmtest.Shared(t)
	req := sh("head -c 1000000 /dev/zero; echo err >&2; exit 2")
	req.MaxOutput = 1000
	out, err := vm.Run(t.Context(), req)
	require.NoError(t, err)
	require.Len(t, out.Stdout, 1000)
	require.True(t, out.StdoutTruncated)
	require.EqualValues(t, 1000000, out.StdoutBytes)
	require.Equal(t, "err\n", string(out.Stderr))
	require.False(t, out.StderrTruncated)
	require.Equal(t, 2, out.Code)
}

func TestAChainOfFilesAndPrograms(t *testing.T) {
	vm := vmtest.Shared(t)
	chain := core.Chain{
		Files: []core.ChainFile{
			{Path: "/tmp/chain.sh", Data: strings.NewReader("cat /tmp/chain.txt; exit $1\n"), Mode: 0o755},
			{Path: "/tmp/chain.txt", Data: strings.NewReader("text\n"), Owner: "user"},
		},
		Commands: []core.Exec{sh("sh /tmp/chain.sh 0; stat -c %U /tmp/chain.txt"), sh("sh /tmp/chain.sh 3"), sh("echo not run")},
		Timeout:  time.Minute,
	}
	outputs, failed, err := vm.RunChain(t.Context(), chain)
	require.NoError(t, err)
	require.Equal(t, 1, failed)
	require.Len(t, outputs, 2)
	require.Equal(t, "text\nuser\n", string(outputs[0].Stdout))
	require.Equal(t, 3, outputs[1].Code)

	chain.ContinueOnError = true
	chain.Files[0].Data, chain.Files[1].Data = nil, nil
	outputs, failed, err = vm.RunChain(t.Context(), chain)
	require.NoError(t, err)
	require.Equal(t, -1, failed)
	require.Len(t, outputs, 3)

	_, failed, err = vm.RunChain(t.Context(), core.Chain{Commands: []core.Exec{sh("sleep 4721")}, Timeout: 200 * time.Millisecond})
	require.ErrorIs(t, err, core.ErrTimeout)
	require.Zero(t, failed)
	requireNoProcess(t, vm, "4721")
	_, _, err = vm.RunChain(t.Context(), core.Chain{Files: []core.ChainFile{{Path: "/no/such/dir/x"}}})
	require.ErrorIs(t, err, core.ErrNotFound)
}

func Test500ProgramsRunAtOnce(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 512, VCPUs: 2})
	const n = 500
	var wg sync.WaitGroup
	failed := make([]error, n)
	started := time.Now()
	for i := range n {
		wg.Go(func() {
			out, err := vm.Run(t.Context(), core.Exec{Args: []string{"true"}})
			if err == nil && out.Code != 0 {
				err = fmt.Errorf("exit status %d: %s", out.Code, out.Stderr)
			}
			failed[i] = err
		})
	}
	wg.Wait()
	t.Logf("%d programs in %v", n, time.Since(started))
	for _, err := range failed {
		require.NoError(t, err)
	}
	programs, _, err := vm.Programs(t.Context())
	require.NoError(t, err)
	require.Empty(t, programs)
}

// 100 programs by the agent take little longer than 100 that a shell in the guest starts by itself.
func BenchmarkHundredExecs(b *testing.B) {
	vm := vmtest.Shared(b)
	b.Run("agent", func(b *testing.B) {
		for b.Loop() {
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					if _, err := vm.Run(b.Context(), core.Exec{Args: []string{"/bin/true"}}); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
		}
	})
	b.Run("shell", func(b *testing.B) {
		for b.Loop() {
			if _, err := vm.Run(b.Context(), sh("i=0; while [ $i -lt 100 ]; do /bin/true & i=$((i+1)); done; wait")); err != nil {
				b.Error(err)
			}
		}
	})
}
