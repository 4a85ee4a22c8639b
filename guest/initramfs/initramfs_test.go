package initramfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var sample = []File{
	{Name: "init", Mode: TypeRegular | 0o755, Data: []byte("#!/bin/sh\n")},
	{Name: "dev/console", Mode: TypeCharacter | 0o600, Major: 5, Minor: 1},
	{Name: "bin/sh", Mode: TypeSymlink | 0o777, Data: []byte("busybox")},
	{Name: "odd", Mode: TypeRegular | 0o644, Data: []byte("123")},
}

func TestSameFilesGiveTheSameBytes(t *testing.T) {
	var a, b bytes.Buffer
	require.NoError(t, Write(&a, sample))
	reversed := []File{sample[3], sample[2], sample[1], sample[0]}
	require.NoError(t, Write(&b, reversed))
	require.Equal(t, a.Bytes(), b.Bytes())
	require.Zero(t, a.Len()%4, "a second archive may follow directly")
}

func TestBusyboxReadsTheArchive(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox")
	}
	var archive bytes.Buffer
	require.NoError(t, Write(&archive, sample))
	dir := t.TempDir()
	cmd := exec.Command(busybox, "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, &archive
	out, err := cmd.CombinedOutput()
	if os.Geteuid() == 0 { // others may not make device nodes
		require.NoError(t, err, string(out))
	}
	data, err := os.ReadFile(filepath.Join(dir, "init"))
	require.NoError(t, err)
	require.Equal(t, "#!/bin/sh\n", string(data))
	target, err := os.Readlink(filepath.Join(dir, "bin/sh"))
	require.NoError(t, err)
	require.Equal(t, "busybox", target)
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "/init", "../init", "a/../b", "a//b", "."} {
		require.Error(t, Write(&bytes.Buffer{}, []File{{Name: name, Mode: TypeRegular}}), name)
	}
	require.Error(t, Write(&bytes.Buffer{}, []File{{Name: "a", Mode: TypeRegular}, {Name: "a", Mode: TypeRegular}}))
	require.Error(t, Write(&bytes.Buffer{}, []File{{Name: "a", Mode: TypeRegular}, {Name: "a/b", Mode: TypeRegular}}))
}
