package core_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/admission"
	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/oci"
	"github.com/supermachine/supermachine/core/pool"
	"github.com/supermachine/supermachine/snapshot"
)

func TestErrorsOfEveryLayerHaveACode(t *testing.T) {
	for err, want := range map[error]core.Code{
		context.Canceled:                                core.ErrCanceled,
		context.DeadlineExceeded:                        core.ErrTimeout,
		hypervisor.ErrUnavailable:                       core.ErrNoVirtualization,
		oci.ErrRateLimited:                              core.ErrUnreachable,
		oci.ErrDigestMismatch:                           core.ErrCorrupt,
		oci.ErrPlatform:                                 core.ErrPlatform,
		oci.ErrDiskFull:                                 core.ErrDiskFull,
		agent.ErrOutputTooLarge:                         core.ErrLimit,
		agent.ErrDetached:                               core.ErrCanceled,
		&agent.Error{Kind: wire.KindLimit}:              core.ErrLimit,
		wire.ErrProtocol:                                core.ErrAgent,
		tree.ErrUnsafe:                                  core.ErrUnsafe,
		tree.ErrSpecial:                                 core.ErrUnsafe,
		tree.ErrTooDeep:                                 core.ErrLimit,
		tree.ErrArchive:                                 core.ErrAgent,
		&agent.Error{Kind: wire.KindExists}:             core.ErrExists,
		&agent.Error{Kind: wire.KindNotEmpty}:           core.ErrNotEmpty,
		&agent.Error{Kind: wire.KindLimit}:              core.ErrLimit,
		syscall.ENOSPC:                                  core.ErrDiskFull,
		snapshot.ErrNotFound:                            core.ErrNotFound,
		snapshot.ErrCorrupt:                             core.ErrCorrupt,
		snapshot.ErrVersion:                             core.ErrIncompatible,
		snapshot.ErrArch:                                core.ErrIncompatible,
		snapshot.ErrInUse:                               core.ErrInUse,
		&hypervisor.IncompatibleError{}:                 core.ErrIncompatible,
		&admission.NoMemoryError{}:                      core.ErrNoMemory,
		&pool.ExhaustedError{}:                          core.ErrExhausted,
		pool.ErrClosed:                                  core.ErrClosed,
		syscall.EACCES:                                  core.ErrIO,
		io.ErrUnexpectedEOF:                             core.ErrInternal,
		&core.Error{Code: core.ErrVMEnded}:              core.ErrVMEnded,
		&agent.Error{Kind: wire.KindCommandNotFound}:    core.ErrCommandNotFound,
		&agent.Error{Kind: "what a hostile guest says"}: core.ErrAgent,
	} {
		require.Equal(t, want, core.CodeOf(err), err)
		require.Equal(t, want, core.CodeOf(fmt.Errorf("around: %w", err)), err)
	}
}

func TestEveryCodeHasAName(t *testing.T) {
	seen := map[string]bool{}
	for c := core.ErrInternal; c <= core.ErrUnsafe; c++ {
		require.NotEmpty(t, c.Error(), int(c))
		require.False(t, seen[c.Error()], c.Error())
		seen[c.Error()] = true
	}
	require.Empty(t, (core.ErrUnsafe + 1).Error(), "a new code goes here")
	require.Len(t, core.Codes(), len(seen))
}

func TestErrorsNameOperationAndObject(t *testing.T) {
	cause := &os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}
	err := error(&core.Error{Code: core.ErrIO, Op: "read file", Object: "x in VM y", Err: cause})
	require.Equal(t, "read file x in VM y: open x: permission denied", err.Error())
	require.ErrorIs(t, err, core.ErrIO)
	require.ErrorIs(t, err, syscall.EACCES)
	require.NotErrorIs(t, err, core.ErrDiskFull)
	require.False(t, errors.Is(err, core.ErrInternal))
}
