package hostdir

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mountHere has this host's kernel use a session as a guest's would, with a little bridge from /dev/fuse, and returns the mount point.
// Only other processes may touch it: one that waits for itself in the kernel can stop its own scheduler.
func mountHere(t testing.TB, o Options) (g *guest, at string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	at = filepath.Join(t.TempDir(), "mount")
	require.NoError(t, os.Mkdir(at, 0o755))
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fd)
	if err := unix.Mount("hostdir", at, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		_ = unix.Close(fd)
		t.Skip("mounting is not allowed here: ", err)
	}
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	d, err := Open(root, o)
	require.NoError(t, err)
	g = &guest{t: t, dir: d, s: d.NewSession(), root: root}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			in, out := make([]byte, MaxTransfer+4096), make([]byte, MaxTransfer+4096)
			for {
				n, err := unix.Read(fd, in)
				if err == unix.EINTR || err == unix.ENOENT {
					continue
				}
				if err != nil {
					return // unmounted
				}
				if n = g.s.Handle([][]byte{in[:n]}, [][]byte{out}); n > 0 {
					_, _ = unix.Write(fd, out[:n]) // fails for a request that was interrupted
				}
			}
		})
	}
	t.Cleanup(func() {
		require.NoError(t, unix.Unmount(at, unix.MNT_DETACH))
		wg.Wait()
		_ = unix.Close(fd)
		g.s.Close()
		require.NoError(t, d.Close())
	})
	return g, at
}

func TestKernel(t *testing.T) {
	const variable = "HOSTDIR_TEST_KERNEL"
	if dirs := os.Getenv(variable); dirs != "" {
		root, at, _ := strings.Cut(dirs, ":")
		useKernel(t, &guest{t: t, root: root}, at)
		return
	}
	g, at := mountHere(t, Options{MaxFiles: 64})
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernel$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"="+g.root+":"+at)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "--- PASS: TestKernel")
}

func useKernel(t *testing.T, g *guest, at string) {
	g.host("dir/file", "content")
	b, err := os.ReadFile(filepath.Join(at, "dir/file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(b))

	// A host's change is seen after a second at the latest.
	g.host("dir/file", "changed")
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(filepath.Join(at, "dir/file"))
		return err == nil && string(b) == "changed"
	}, 5*time.Second, 10*time.Millisecond)

	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	require.NoError(t, os.WriteFile(filepath.Join(at, "big"), data, 0o600))
	require.Equal(t, string(data), g.content("big"))
	b, err = os.ReadFile(filepath.Join(at, "big"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, b))

	f, err := os.OpenFile(filepath.Join(at, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	require.NoError(t, err)
	_, err = f.WriteString("one ")
	require.NoError(t, err)
	h, err := os.OpenFile(filepath.Join(g.root, "log"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = h.WriteString("host ")
	require.NoError(t, err)
	require.NoError(t, h.Close())
	_, err = f.WriteString("two")
	require.NoError(t, err)
	require.Equal(t, "one host two", g.content("log"))
	require.NoError(t, os.Remove(filepath.Join(at, "log")))
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 12, info.Size())
	require.NoError(t, f.Truncate(3))
	b = make([]byte, 10)
	n, _ := f.ReadAt(b, 0)
	require.Equal(t, "one", string(b[:n]))
	require.NoError(t, f.Close())

	m, err := os.OpenFile(filepath.Join(at, "mapped"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	require.NoError(t, err)
	_, err = m.WriteString("0123456789")
	require.NoError(t, err)
	p, err := unix.Mmap(int(m.Fd()), 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	copy(p[2:], "ab")
	require.NoError(t, unix.Msync(p, unix.MS_SYNC))
	require.NoError(t, unix.Munmap(p))
	require.NoError(t, m.Close())
	require.Equal(t, "01ab456789", g.content("mapped"))

	require.NoError(t, os.Symlink("/nowhere/out", filepath.Join(at, "link")))
	target, err := os.Readlink(filepath.Join(at, "link"))
	require.NoError(t, err)
	require.Equal(t, "/nowhere/out", target)
	require.NoError(t, unix.Mkfifo(filepath.Join(at, "fifo"), 0o644))
	require.ErrorIs(t, unix.Mknod(filepath.Join(at, "dev"), unix.S_IFCHR|0o600, 0), unix.EPERM)
	require.NoError(t, os.RemoveAll(filepath.Join(at, "dir")))
}

// TestKernelTools has programs that use much of a file system work in it.
func TestKernelTools(t *testing.T) {
	_, at := mountHere(t, Options{MaxFiles: 64})
	for tool, script := range map[string]string{
		"git": "git init -q repo && cd repo && git config user.email a@b && git config user.name a &&" +
			" mkdir -p a/b && for i in 1 2 3 4 5 6 7; do echo $i >a/b/$i; done &&" +
			" ln -s /absolute/target link && ln -s a/b/1 rel && git add . && git commit -qm one && git mv a/b a/c && git commit -qm two &&" +
			" git gc -q && git clone -q . ../clone && cd ../clone && git fsck --strict && test -z \"$(git status --porcelain)\" && readlink link",
		"tar": "mkdir tree && cd tree && for d in 1 2 3 4 5; do mkdir -p $d/x/y; " +
			"for f in 1 2 3 4 5 6 7 8 9; do echo $d$f >$d/x/y/$f; ln $d/x/y/$f $d/hard$f; done; done &&" +
			" cd .. && tar cf t.tar tree && mkdir out && tar xf t.tar -C out && diff -r tree out/tree &&" +
			" test $(find out -links 2 -type f | wc -l) = 90 && rm -r tree out",
		"npm": "mkdir lib app && cd lib && npm init -y >/dev/null && echo '#!/usr/bin/env node' >cli.js && echo 'console.log(\"it works\")' >>cli.js &&" +
			" npm pkg set bin.lib=cli.js && npm pack --silent && cd ../app && npm init -y >/dev/null &&" +
			" npm install --offline --no-audit --no-fund ../lib/lib-1.0.0.tgz &&" +
			" test -L node_modules/.bin/lib && npm exec --offline lib | grep 'it works' && rm -r node_modules && npm ci --offline --no-audit --no-fund",
	} {
		t.Run(tool, func(t *testing.T) {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skip(err)
			}
			cmd := exec.Command("sh", "-ec", "cd \"$HOME\" && "+script)
			cmd.Env = append(os.Environ(), "HOME="+at, "GIT_CONFIG_NOSYSTEM=1")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
		})
	}
}
