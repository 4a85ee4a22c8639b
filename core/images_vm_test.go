package core_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/vmtest"
)

func TestVMRunsBusybox(t *testing.T) {
	vm := vmtest.Shared(t)
	require.Equal(t, "hello", vmtest.Shell(t, vm, "echo hello"))
	require.Equal(t, "shared", vmtest.Shell(t, vm, "hostname"), "the VM's name is its host name")
}
