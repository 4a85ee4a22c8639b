package instances

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func publish(t *testing.T, dir, id, name string) *Instance {
	i, err := Create(dir, id)
	require.NoError(t, err)
	require.NoError(t, i.Publish(Info{ID: id, Name: name, Created: time.Now(), PID: os.Getpid()}))
	return i
}

func TestPublishedVMsAreListedAndFound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vms")
	all, err := List(dir)
	require.NoError(t, err)
	require.Empty(t, all, "before the first VM there is no directory")

	a, b := publish(t, dir, "aa11", "web"), publish(t, dir, "aa22", "db")
	all, err = List(dir)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "web", all[0].Name)
	require.Equal(t, a.Socket(), all[0].Socket)

	for _, name := range []string{"db", "aa22", "aa2"} {
		info, err := Find(dir, name)
		require.NoError(t, err, name)
		require.Equal(t, "aa22", info.ID)
	}
	_, err = Find(dir, "aa")
	require.ErrorIs(t, err, ErrAmbiguous)
	_, err = Find(dir, "zz")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = Find(dir, "")
	require.ErrorIs(t, err, ErrNotFound)

	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	all, err = List(dir)
	require.NoError(t, err)
	require.Empty(t, all)
}

func TestNameIsUnique(t *testing.T) {
	dir := t.TempDir()
	defer publish(t, dir, "aa11", "web").Close()
	i, err := Create(dir, "bb22")
	require.NoError(t, err)
	defer i.Close()
	require.ErrorIs(t, i.Publish(Info{ID: "bb22", Name: "web"}), ErrNameTaken)
}

func TestEntriesOfDeadOwnersVanish(t *testing.T) {
	dir := t.TempDir()
	i := publish(t, dir, "aa11", "web")
	require.NoError(t, unix.Flock(int(i.lock.Fd()), unix.LOCK_UN)) // what the kernel does when the owner dies
	all, err := List(dir)
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoDirExists(t, filepath.Join(dir, "aa11"))
}

func TestPathThatIsTooLongForASocket(t *testing.T) {
	_, err := Create(filepath.Join(t.TempDir(), strings.Repeat("x", 100)), "aa11")
	require.ErrorContains(t, err, "XDG_RUNTIME_DIR")
}
