package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func init() {
	children["churn"] = churn
	children["bake"] = bakeOnce
	children["lock"] = lockOften
}

// churn makes, loads and removes snapshots of a few names until it is killed.
func churn(s *Store, args []string) error {
	r := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	fmt.Println("ready")
	for {
		if err := churnOnce(s, r); err != nil {
			return err
		}
	}
}

// churnOnce does one thing of those that users do, any of which others may be doing, too.
func churnOnce(s *Store, r *rand.Rand) error {
	ctx := context.Background()
	base := small("base" + strconv.Itoa(r.IntN(3)))
	top := small("top" + strconv.Itoa(r.IntN(3)))
	top.base = base.id
	var err error
	switch r.IntN(10) {
	case 0, 1, 2:
		err = base.bake(s)
	case 3, 4, 5:
		err = top.bake(s)
	case 6:
		err = s.Remove(ctx, base.id)
	case 7:
		err = s.Remove(ctx, top.id)
	case 8:
		if err = s.SetWorkingSet(base.id, []byte("pages")); err == nil {
			_, err = s.Prune(ctx, PruneOptions{MaxBytes: 100 << 10})
		}
	case 9:
		var snap *Snapshot
		if snap, err = s.Load(top.id, LoadOptions{Verify: Verify(r.IntN(3))}); err == nil {
			err = snap.Close()
		}
	}
	for _, usual := range []error{ErrExists, ErrNotFound, ErrInUse} {
		if errors.Is(err, usual) {
			return nil
		}
	}
	return err
}

// requireSound fails unless every snapshot that is listed can be loaded and is what was made.
func requireSound(t testing.TB, s *Store) {
	t.Helper()
	list, err := s.List()
	require.NoError(t, err)
	for _, info := range list {
		require.NoError(t, info.Err)
		snap, err := s.Load(info.ID, LoadOptions{Verify: VerifyAlways})
		require.NoError(t, err)
		specs := []spec{small(info.ID)}
		if info.Base != "" {
			specs = []spec{small(info.Base), small(info.ID)}
		}
		requireHolds(t, snap, specs...)
		require.NoError(t, snap.Close())
	}
	requireNothingLeft(t, s)
}

func TestKilledAtAnyMoment(t *testing.T) {
	kills := 60
	if testing.Short() {
		kills = 10
	}
	// Where syncing takes no time, the moments are spread over the rest.
	for _, dir := range []string{t.TempDir(), otherFileSystem(t)} {
		s, err := Open(filepath.Join(dir, "store"))
		require.NoError(t, err)
		for range kills / 2 {
			cmd := child(s, "churn")
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = io.ReadFull(out, make([]byte, len("ready\n")))
			require.NoError(t, err)
			time.Sleep(time.Duration(rand.Int64N(int64(15 * time.Millisecond))))
			require.NoError(t, cmd.Process.Kill())
			require.ErrorContains(t, cmd.Wait(), "killed")
			requireSound(t, s)
		}
	}
}

func TestManyProcesses(t *testing.T) {
	s := openStore(t)
	cmds := make([]func() error, 3)
	for i := range cmds {
		cmd := child(s, "churn")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		require.NoError(t, cmd.Start())
		cmds[i] = func() error {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if stderr.Len() > 0 {
				return errors.New(stderr.String())
			}
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for ctx.Err() == nil {
				if err := churnOnce(s, r); err != nil {
					t.Error(err)
				}
				list, err := s.List()
				if err != nil {
					t.Error(err)
				}
				for _, info := range list {
					if info.Err != nil {
						t.Error(info.Err)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, stop := range cmds {
		require.NoError(t, stop())
	}
	requireSound(t, s)
}

// TestLoadAgainstRemove checks that a snapshot which is replaced all the time loads whole or is not found, and that what was loaded stays.
func TestLoadAgainstRemove(t *testing.T) {
	s := openStore(t)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	top := small("top")
	top.base = "base"
	var loaded atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				snap, err := s.Load("top", LoadOptions{Verify: VerifyAlways})
				if errors.Is(err, ErrNotFound) {
					time.Sleep(time.Millisecond)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				loaded.Add(1)
				if got := flatBytes(t, snap.Manifest.Memory.Size(), snap.Memory); !bytes.Equal(got[5*PageSize:6*PageSize], top.page("memory", 5)) {
					t.Error("not the memory it was made with")
				}
				_ = snap.Close()
			}
		})
	}
	for ctx.Err() == nil {
		bake(t, s, small("base"), top)
		time.Sleep(5 * time.Millisecond)
		if rand.IntN(2) == 0 {
			_, err := s.Prune(context.Background(), PruneOptions{MaxBytes: 1})
			require.NoError(t, err)
		} else {
			require.NoError(t, s.Remove(context.Background(), "top"))
			require.NoError(t, s.Remove(context.Background(), "base"))
		}
	}
	wg.Wait()
	require.Positive(t, loaded.Load())
}

// bakeOnce makes the snapshot a unless another does, and prints what it did.
func bakeOnce(s *Store, args []string) error {
	unlock, err := s.Lock(context.Background(), "fingerprint")
	if err != nil {
		return err
	}
	defer unlock()
	snap, err := s.Load("a", LoadOptions{})
	if err == nil {
		fmt.Print("loaded")
		return snap.Close()
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	fmt.Print("baked")
	return full("a").bake(s)
}

func TestOneOfManyBakes(t *testing.T) {
	s := openStore(t)
	outs := make([]string, 6)
	var wg sync.WaitGroup
	for i := range outs {
		wg.Go(func() {
			out, err := child(s, "bake").Output()
			if err != nil {
				t.Error(err)
			}
			outs[i] = string(out)
		})
	}
	wg.Wait()
	baked := 0
	for _, out := range outs {
		if out == "baked" {
			baked++
		}
	}
	require.Equal(t, 1, baked, outs)
	requireNothingLeft(t, s)
}

// lockOften adds one to a file many times, which only works if nobody else does meanwhile.
func lockOften(s *Store, args []string) error {
	for range 50 {
		unlock, err := s.Lock(context.Background(), "counter")
		if err != nil {
			return err
		}
		path := s.path("counter")
		b, _ := os.ReadFile(path)
		n, _ := strconv.Atoi(string(b))
		if err := os.WriteFile(path, []byte(strconv.Itoa(n+1)), 0o600); err != nil {
			return err
		}
		unlock()
	}
	return nil
}

func TestLockExcludesProcessesAndGoroutines(t *testing.T) {
	s := openStore(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			do := func() error { return lockOften(s, nil) }
			if i%2 == 0 {
				do = child(s, "lock").Run
			}
			if err := do(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(s.path("counter"))
	require.NoError(t, err)
	require.Equal(t, "300", string(b))
	requireNothingLeft(t, s)
}

func TestConcurrentVerification(t *testing.T) {
	s := openStore(t)
	bake(t, s, full("base"), diff("top", "base"))
	require.NoError(t, os.Remove(s.path("base", verifiedFile)))
	other := reopen(t, s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			snap, err := other.Load("top", LoadOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			_ = snap.Close()
		})
	}
	wg.Wait()
	require.FileExists(t, s.path("base", verifiedFile))
}

// TestDiskFull fills a file system at every step of making a snapshot.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs to mount a tmpfs, so root with CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	s, err := Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	free := func() int64 {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		return int64(st.Bfree) * st.Bsize
	}
	c := small("a")
	c.workingSet = bytes.Repeat([]byte("w"), 5000)
	ballast := filepath.Join(dir, "ballast")
	failures := 0
	for left := int64(0); ; left += PageSize {
		require.NoError(t, os.WriteFile(ballast, make([]byte, free()-left), 0o600))
		before := free()
		err := c.bake(s)
		if err == nil {
			break
		}
		failures++
		require.ErrorIs(t, err, unix.ENOSPC)
		requireNothingLeft(t, s)
		require.Equal(t, before, free())
		require.NoDirExists(t, s.path("a"))
		require.NoError(t, os.Remove(ballast))
	}
	require.Greater(t, failures, 5)
	requireHolds(t, load(t, s, "a", VerifyAlways), c)

	require.NoError(t, os.Remove(ballast))
	require.NoError(t, os.WriteFile(ballast, make([]byte, free()), 0o600))
	require.ErrorIs(t, s.Flatten(context.Background(), "a", "b"), unix.ENOSPC)
	require.ErrorIs(t, s.SetWorkingSet("a", make([]byte, 9000)), unix.ENOSPC)
	require.Equal(t, c.workingSet, load(t, s, "a", VerifyAlways).WorkingSet)
	require.NoError(t, s.Remove(context.Background(), "a"), "a full disk can be emptied")
	requireNothingLeft(t, s)
}
