package core_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// roleEnv makes this test binary, in a guest, one of the programs below.
const roleEnv = "SUPERMACHINE_TEST_ROLE"

func runRole(role string, args []string) error {
	switch role {
	case "fsx":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return exerciseFile(args[0], n)
	case "posix":
		return checkPOSIX(args[0])
	}
	return fmt.Errorf("there is no role %q", role)
}

// exerciseFile does random things to a file and compares it with what should be in it.
func exerciseFile(name string, n int) error {
	const maxSize = 1 << 18
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	var want []byte
	r := rand.New(rand.NewPCG(7, uint64(n)))
	check := func(op string) error {
		off := r.IntN(len(want) + 1)
		got := make([]byte, r.IntN(maxSize/4))
		m, _ := f.ReadAt(got, int64(off))
		if expect := want[off:min(len(want), off+len(got))]; !bytes.Equal(got[:m], expect) {
			return fmt.Errorf("after %s: %d bytes at %d differ (%d read, size %d)", op, len(expect), off, m, len(want))
		}
		return nil
	}
	grow := func(size int) {
		if size > len(want) {
			want = append(want, make([]byte, size-len(want))...)
		}
	}
	for i := range n {
		off := r.IntN(maxSize)
		p := make([]byte, r.IntN(maxSize/8)+1)
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		op := ""
		switch r.IntN(7) {
		case 0, 1:
			op = "write"
			grow(off + len(p))
			copy(want[off:], p)
			_, err = f.WriteAt(p, int64(off))
		case 2:
			op = "truncate"
			if off < len(want) {
				want = want[:off]
			}
			grow(off)
			err = f.Truncate(int64(off))
		case 3:
			op = "mapped write"
			if len(want) < 2 {
				continue
			}
			var m []byte
			if m, err = unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				at := r.IntN(len(want))
				k := copy(m[at:], p)
				copy(want[at:at+k], p)
				err = errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
			}
		case 4:
			op = "mapped read"
			if len(want) == 0 {
				continue
			}
			var m []byte
			if m, err = unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED); err == nil {
				if !bytes.Equal(m, want) {
					err = errors.New("the mapping differs")
				}
				err = errors.Join(err, unix.Munmap(m))
			}
		case 5:
			op = "reopen"
			f.Close()
			f, err = os.OpenFile(name, os.O_RDWR, 0)
		case 6:
			op = "punch"
			if len(want) == 0 {
				continue
			}
			at := r.IntN(len(want))
			k := min(len(p), len(want)-at)
			if err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at), int64(k)); err == nil {
				clear(want[at : at+k])
			}
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = nil
			}
		}
		if err == nil {
			err = check(op)
		}
		if err != nil {
			return fmt.Errorf("step %d: %s: %w", i, op, err)
		}
	}
	st, err := f.Stat()
	if err == nil && st.Size() != int64(len(want)) {
		err = fmt.Errorf("%d bytes instead of %d", st.Size(), len(want))
	}
	return err
}

// checkPOSIX tries what the standard says of files in an empty directory.
func checkPOSIX(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	var failures []string
	expect := func(what string, got, want error) {
		if !errors.Is(got, want) && !(got == nil && want == nil) {
			failures = append(failures, fmt.Sprintf("%s: %v, want %v", what, got, want))
		}
	}
	holds := func(what string, ok bool) {
		if !ok {
			failures = append(failures, what)
		}
	}
	stat := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(at(name), &st); err != nil {
			failures = append(failures, "lstat "+name+": "+err.Error())
		}
		return st
	}
	touch := func(name string) { expect("create "+name, os.WriteFile(at(name), []byte(name), 0o644), nil) }
	long := strings.Repeat("n", 256)

	touch("file")
	expect("mkdir", unix.Mkdir(at("dir"), 0o751), nil)
	holds("mode of a directory", stat("dir").Mode == unix.S_IFDIR|0o751)
	touch("dir/inner")
	expect("mkdir what exists", unix.Mkdir(at("file"), 0o755), unix.EEXIST)
	expect("mkdir below a file", unix.Mkdir(at("file/x"), 0o755), unix.ENOTDIR)
	expect("mkdir without a parent", unix.Mkdir(at("none/x"), 0o755), unix.ENOENT)
	expect("long name", unix.Mkdir(at(long), 0o755), unix.ENAMETOOLONG)
	expect("longest name", unix.Mkdir(at(long[1:]), 0o755), nil)
	expect("rmdir", unix.Rmdir(at(long[1:])), nil)
	expect("rmdir of a file", unix.Rmdir(at("file")), unix.ENOTDIR)
	expect("rmdir with something in it", unix.Rmdir(at("dir")), unix.ENOTEMPTY)
	expect("unlink of a directory", unix.Unlink(at("dir")), unix.EISDIR)
	expect("unlink of nothing", unix.Unlink(at("none")), unix.ENOENT)
	_, err := unix.Open(at("file"), unix.O_CREAT|unix.O_EXCL, 0o644)
	expect("exclusive creation", err, unix.EEXIST)
	_, err = unix.Open(at("dir"), unix.O_WRONLY, 0)
	expect("write to a directory", err, unix.EISDIR)
	_, err = unix.Open(at("file"), unix.O_DIRECTORY, 0)
	expect("file as a directory", err, unix.ENOTDIR)
	_, err = unix.Open(at("none"), unix.O_RDONLY, 0)
	expect("open nothing", err, unix.ENOENT)

	expect("link", unix.Link(at("file"), at("hard")), nil)
	holds("a link is the file", stat("file").Ino == stat("hard").Ino && stat("file").Nlink == 2)
	expect("link to what exists", unix.Link(at("file"), at("hard")), unix.EEXIST)
	expect("link of a directory", unix.Link(at("dir"), at("hard2")), unix.EPERM)
	expect("unlink one name", unix.Unlink(at("hard")), nil)
	holds("one name is left", stat("file").Nlink == 1)
	expect("symlink", unix.Symlink("file", at("soft")), nil)
	holds("a symlink's type", stat("soft").Mode&unix.S_IFMT == unix.S_IFLNK)
	_, err = unix.Open(at("soft"), unix.O_NOFOLLOW, 0)
	expect("open a symlink itself", err, unix.ELOOP)
	expect("symlink loop", unix.Symlink("loop", at("loop")), nil)
	_, err = unix.Open(at("loop"), unix.O_RDONLY, 0)
	expect("open a loop", err, unix.ELOOP)

	expect("chmod", unix.Chmod(at("file"), 0o604), nil)
	holds("the mode is set", stat("file").Mode&0o7777 == 0o604)
	expect("utimes", unix.UtimesNanoAt(unix.AT_FDCWD, at("file"), []unix.Timespec{{Sec: 1}, {Sec: 1e9, Nsec: 5}}, 0), nil)
	st := stat("file")
	holds("the times are set", st.Atim.Sec == 1 && st.Mtim.Nano() == 1e18+5)
	expect("truncate", unix.Truncate(at("file"), 10_000), nil)
	holds("the size is set", stat("file").Size == 10_000)
	expect("truncate a directory", unix.Truncate(at("dir"), 0), unix.EISDIR)
	expect("fifo", unix.Mkfifo(at("fifo"), 0o600), nil)
	holds("a fifo's type", stat("fifo").Mode&unix.S_IFMT == unix.S_IFIFO)

	touch("a")
	touch("b")
	expect("rename over a file", unix.Rename(at("a"), at("b")), nil)
	b, _ := os.ReadFile(at("b"))
	holds("the new one is there", string(b) == "a")
	expect("rename nothing", unix.Rename(at("a"), at("b")), unix.ENOENT)
	expect("rename a file over a directory", unix.Rename(at("b"), at("dir")), unix.EISDIR)
	expect("rename a directory over a file", unix.Rename(at("dir"), at("b")), unix.ENOTDIR)
	expect("rename a directory into itself", unix.Rename(at("dir"), at("dir/x")), unix.EINVAL)
	expect("mkdir", unix.Mkdir(at("full"), 0o755), nil)
	touch("full/x")
	expect("rename over a full directory", unix.Rename(at("dir"), at("full")), unix.ENOTEMPTY)
	expect("unlink", unix.Unlink(at("full/x")), nil)
	expect("rename over an empty directory", unix.Rename(at("dir"), at("full")), nil)
	holds("its files went along", stat("full/inner").Size == int64(len("dir/inner")))
	expect("exchange", unix.Renameat2(unix.AT_FDCWD, at("b"), unix.AT_FDCWD, at("full"), unix.RENAME_EXCHANGE), nil)
	holds("they are exchanged", stat("b").Mode&unix.S_IFMT == unix.S_IFDIR)
	expect("rename over nothing alone", unix.Renameat2(unix.AT_FDCWD, at("file"), unix.AT_FDCWD, at("full"), unix.RENAME_NOREPLACE), unix.EEXIST)

	f, err := os.OpenFile(at("open"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	expect("open", err, nil)
	if err == nil {
		f.WriteString("one ")
		expect("unlink an open file", unix.Unlink(at("open")), nil)
		f.WriteString("two")
		var st unix.Stat_t
		expect("fstat an unlinked file", unix.Fstat(int(f.Fd()), &st), nil)
		holds("it has no name and all of its bytes", st.Nlink == 0 && st.Size == 7)
		got := make([]byte, 7)
		f.ReadAt(got, 0)
		holds("it can be read", string(got) == "one two")
		f.Close()
	}
	names, err := os.ReadDir(dir)
	expect("list", err, nil)
	holds("all are listed", len(names) == 6) // b file fifo full loop soft
	if len(failures) > 0 {
		return errors.New(strings.Join(failures, "\n"))
	}
	return nil
}

// inGuest runs this test binary in a guest, as a role.
func inGuest(t *testing.T, vm *core.VM, role string, args ...string) {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer self.Close()
	require.NoError(t, vm.WriteFile(t.Context(), "/tmp/role", self, 0o755))
	out, err := vm.Run(t.Context(), core.Exec{Args: append([]string{"/tmp/role"}, args...), Env: []string{roleEnv + "=" + role}})
	require.NoError(t, err)
	require.Zero(t, out.Code, "%s%s", out.Stdout, out.Stderr)
}

// A mount behaves as the standard says, whatever the policy on owners.
func TestMountsAreFileSystems(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	squash, identity := t.TempDir(), t.TempDir()
	vm, err := core.Start(t.Context(), vmtest.Image(t, "debian"), core.Config{MemoryMiB: 512, Mounts: []core.Mount{
		{Dir: squash, Path: "/squash"}, {Dir: identity, Path: "/identity", Identity: true},
	}})
	require.NoError(t, err)
	defer vm.Close()
	inGuest(t, vm, "posix", "/squash")
	inGuest(t, vm, "posix", "/identity")
	inGuest(t, vm, "fsx", "/squash/exercised", strconv.Itoa(vmtest.Times(500, 100_000)))
	if os.Geteuid() == 0 {
		require.Equal(t, "1000 1001 4755", vmtest.Shell(t, vm, "cd /identity && touch owned && chown 1000:1001 owned && chmod 4755 owned && stat -c '%u %g %a' owned"))
	}
	require.Equal(t, "0 755", vmtest.Shell(t, vm, "cd /squash && touch owned && (chown 1000 owned 2>/dev/null && echo changed; chmod 4755 owned; stat -c '%u %a' owned)"))
}

// A program on the host that swaps a directory for a link out of the tree gives the guest nothing to read or write there.
func TestMountsHoldWhileTheHostSwapsDirectories(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	tree, outside := t.TempDir(), t.TempDir()
	hostFile(t, filepath.Join(outside, "secret"), "CANARY\n")
	hostFile(t, filepath.Join(tree, "real/secret"), "harmless\n")
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Mounts: []core.Mount{{Dir: tree, Path: "/src"}, {Dir: tree, Path: "/denied", Symlinks: core.SymlinksDeny}}})
	require.NoError(t, err)
	defer vm.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(vmtest.Times(5, 60))*time.Second)
	defer cancel()
	swapped := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			os.Rename(filepath.Join(tree, "real"), filepath.Join(tree, "dir"))
			os.Rename(filepath.Join(tree, "dir"), filepath.Join(tree, "real"))
			os.Symlink(outside, filepath.Join(tree, "dir"))
			os.Remove(filepath.Join(tree, "dir"))
		}
		swapped <- n
	}()
	out, err := vm.Run(t.Context(), core.Exec{
		Args: []string{"sh", "-c", "while :; do for d in /src /denied; do cat $d/dir/secret; echo written > $d/dir/mark; ls $d/dir; find $d >/dev/null; done; done 2>/dev/null"}, Timeout: time.Duration(vmtest.Times(5, 60)) * time.Second,
	})
	require.NoError(t, err)
	require.Greater(t, <-swapped, 100)
	require.NotContains(t, string(out.Stdout), "CANARY")
	left, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing was written outside")
}
