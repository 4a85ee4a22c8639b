package core

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestScratchTemplateIsASoundEmptyFileSystem(t *testing.T) {
	for _, mib := range []int{16, 100, DefaultScratchMiB} {
		dir := t.TempDir()
		path, err := scratchTemplate(dir, mib)
		require.NoError(t, err)
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, int64(mib)<<20, st.Size())
		require.Less(t, st.Sys().(*syscall.Stat_t).Blocks*512, int64(64<<20), "it is sparse")
		again, err := scratchTemplate(dir, mib)
		require.NoError(t, err)
		require.Equal(t, path, again)
		left, err := filepath.Glob(filepath.Join(dir, ".*"))
		require.NoError(t, err)
		require.Empty(t, left)
		if fsck, err := exec.LookPath("e2fsck"); err == nil {
			out, err := exec.Command(fsck, "-fn", path).CombinedOutput()
			require.NoError(t, err, string(out))
		}
	}
}
