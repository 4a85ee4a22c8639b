package hostdir

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSwap has host programs swap directories, files and links to the outside for each other while guests walk, read, write and
// remove. Nothing outside may be read or changed.
func TestSwap(t *testing.T) {
	for _, o := range []Options{{MaxFiles: 64}, {Symlinks: Deny, MaxFiles: 64}} {
		t.Run(o.Symlinks.String(), func(t *testing.T) { swap(t, o) })
	}
}

const canary = "canary: nobody inside may see this"

func swap(t *testing.T, o Options) {
	g := mount(t, o)
	outside := filepath.Join(filepath.Dir(g.root), "outside")
	require.NoError(t, os.MkdirAll(filepath.Join(outside, "dir/sub"), 0o755))
	for _, s := range []string{"file", "dir/file", "dir/sub/file", "dir/keep"} {
		require.NoError(t, os.WriteFile(filepath.Join(outside, s), []byte(canary), 0o644))
	}
	before := listing(t, outside)
	for _, s := range []string{"a", "b"} {
		g.host(s+"/dir/sub/file", "inside")
		g.host(s+"/dir/file", "inside")
	}
	stop := make(chan struct{})
	var swaps, requests, reads atomic.Int64
	var wg sync.WaitGroup
	type pair struct{ at, link string }
	var pairs []pair
	for _, top := range []string{"a", "b"} {
		for _, s := range []string{"dir", "dir/sub", "dir/file", "dir/sub/file"} {
			target := filepath.Join(outside, s)
			if s == "dir/sub/file" {
				target = "../../../../outside/file"
			}
			p := pair{filepath.Join(g.root, top, s), filepath.Join(g.root, "link-"+top+strings.ReplaceAll(s, "/", "-"))}
			require.NoError(t, os.Symlink(target, p.link))
			pairs = append(pairs, p)
		}
	}
	for i := range 2 {
		wg.Go(func() {
			for n, last := i, int64(0); ; n++ {
				for requests.Load() == last { // as many swaps as requests
					runtime.Gosched()
				}
				last = requests.Load()
				select {
				case <-stop:
					return
				default:
				}
				p := pairs[n%len(pairs)]
				// The directory above may be a link to the outside just now: nothing is to be swapped there.
				dir, err := unix.Open(filepath.Dir(p.at), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err != nil {
					continue
				}
				if real, err := unixReadlink(procPath(dir)); err == nil && strings.HasPrefix(real, g.root+"/") {
					if unix.Renameat2(unix.AT_FDCWD, p.link, dir, filepath.Base(p.at), unix.RENAME_EXCHANGE) == nil {
						swaps.Add(1)
					}
				}
				_ = unix.Close(dir)
			}
		})
	}
	for i := range 3 {
		wg.Go(func() {
			w := &guest{t: t, dir: g.dir, s: g.s, root: g.root, cut: 4096, unique: uint64(i) << 32}
			if i == 2 {
				w.s = g.dir.NewSession()
				defer w.s.Close()
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				walk(w, rand.New(rand.NewPCG(uint64(i), 1)), &requests, &reads)
			}
		})
	}
	started := time.Now()
	assert.Eventually(t, func() bool { // how long depends on the machine
		return time.Since(started) > 2*time.Second && swaps.Load() > 200 && requests.Load() > 2000 && reads.Load() > 20
	}, time.Minute, 10*time.Millisecond)
	close(stop)
	requests.Add(1)
	wg.Wait()
	require.Equal(t, before, listing(t, outside))
	t.Logf("%d swaps, %d requests, %d reads", swaps.Load(), requests.Load(), reads.Load())
}

// walk does what a guest does, keeping nodes for a while.
func walk(g *guest, r *rand.Rand, requests, reads *atomic.Int64) {
	type known struct{ node, lookups uint64 }
	nodes := []known{{node: guestRoot}}
	names := []string{"a", "b", "dir", "sub", "file", "made", "moved", "keep"}
	for range 300 {
		n := nodes[r.IntN(len(nodes))].node
		s := names[r.IntN(len(names))]
		requests.Add(1)
		switch r.IntN(12) {
		default:
			if e, errno := g.lookup(n, s); errno == 0 && e.Mode&unix.S_IFMT != unix.S_IFLNK {
				nodes = append(nodes, known{e.NodeId, 1})
			}
		case 5:
			if fh, errno := g.open(n, unix.O_RDWR); errno == 0 {
				b, errno := g.read(fh, 0, 100)
				require.Zero(g.t, errno)
				require.NotContains(g.t, string(b), "canary")
				reads.Add(1)
				_, errno = g.write(fh, 0, []byte("written"), 0)
				require.Zero(g.t, errno)
				g.release(fh)
			}
		case 6:
			if c, errno := g.create(n, "made", unix.O_RDWR|unix.O_TRUNC, 0o600); errno == 0 {
				_, errno = g.write(c.Fh, 0, []byte("written"), 0)
				require.Zero(g.t, errno)
				g.release(c.Fh)
				g.forget(c.NodeId, 1)
			}
		case 7:
			g.setattr(n, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE | fuse.FATTR_MTIME, Mode: 0o755, Mtime: 1})
		case 8:
			g.unlink(n, []string{"made", "moved", "keep"}[r.IntN(3)])
		case 9:
			g.rename(n, "made", nodes[r.IntN(len(nodes))].node, "moved", 0)
		case 10:
			if fh, errno := g.opendir(n); errno == 0 {
				e, out, _ := g.readdirplus(fh, 0, 8192)
				for i := range e {
					if out[i].NodeId != 0 {
						g.forget(out[i].NodeId, 1)
					}
				}
				do(g, opReleasedir, n, &fuse.ReleaseIn{Fh: fh}, 0)
			}
		case 11:
			if g.dir.o.Symlinks == Opaque {
				if e, errno := g.link(n, nodes[r.IntN(len(nodes))].node, "made"); errno == 0 {
					g.forget(e.NodeId, 1)
				}
			}
			g.mkdir(n, "moved", 0o755)
		}
	}
	for _, k := range nodes {
		g.forget(k.node, k.lookups)
	}
}

// listing describes all that is in a directory.
func listing(t *testing.T, dir string) (all []string) {
	require.NoError(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		require.NoError(t, err)
		content := ""
		if !info.IsDir() {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			content = string(b)
		}
		all = append(all, fmt.Sprint(path, info.Mode(), info.Size(), info.ModTime(), content))
		return nil
	}))
	return all
}
