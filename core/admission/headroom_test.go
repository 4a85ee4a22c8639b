package admission

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	mib      = 1 << 20
	meminfo  = "MemTotal:       24684092 kB\nMemAvailable:    1048576 kB\nBuffers: 52492 kB\n" // 1 GiB
	mountV2  = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1  = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
	cgroupV1 = "9:name=systemd:/elsewhere\n4:cpu,memory:/a/b\n0::/\n"
	noLimit  = "9223372036854771712\n"
)

// files maps names below a host's root to contents.
type files map[string]string

// with returns f with more.
func (f files) with(more files) files {
	all := files{}
	for _, m := range []files{f, more} {
		for name, content := range m {
			all[name] = content
		}
	}
	return all
}

// in returns f with all names below dir.
func (f files) in(dir string) files {
	moved := files{}
	for name, content := range f {
		moved[dir+"/"+name] = content
	}
	return moved
}

// host writes the files and returns the host that has them.
func (f files) host(t *testing.T) *Host {
	t.Helper()
	root := t.TempDir()
	for name, content := range f {
		p := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(content), 0o600))
	}
	return NewHost(root)
}

// v2 and v1 are the files of a cgroup that uses 100 MiB, 30 of them cache.
func v2(maximum, high string) files {
	return files{"memory.max": maximum + "\n", "memory.high": high + "\n", "memory.current": "104857600\n",
		"memory.stat": "anon 1\nfile 2\nworkingset_inactive_file 7\ninactive_file 31457280\nactive_file 3\n"}
}

func v1(limit string) files {
	return files{"memory.limit_in_bytes": limit, "memory.usage_in_bytes": "104857600\n",
		"memory.stat": "cache 1\ninactive_file 5\ntotal_inactive_file 31457280\n"}
}

func TestHeadroom(t *testing.T) {
	base := files{"proc/meminfo": meminfo}
	baseV2 := base.with(files{"proc/self/mountinfo": mountV2, "proc/self/cgroup": "0::/a/b\n"})
	baseV1 := base.with(files{"proc/self/mountinfo": mountV1, "proc/self/cgroup": cgroupV1})
	const root2, root1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
	for name, c := range map[string]struct {
		files  files
		mib    int64
		source string
	}{
		"no cgroups": {base, 1024, "MemAvailable of /proc/meminfo"},
		"no cgroups mounted": {
			base.with(files{"proc/self/mountinfo": "", "proc/self/cgroup": "0::/\n"}),
			1024, "MemAvailable of /proc/meminfo",
		},
		"v2 without controller": {baseV2, 1024, "MemAvailable of /proc/meminfo"},
		"v2 max":                {baseV2.with(v2("max", "max").in(root2 + "/a/b")), 1024, "MemAvailable of /proc/meminfo"},
		"v2 own limit":          {baseV2.with(v2("209715200", "max").in(root2 + "/a/b")), 130, "/sys/fs/cgroup/a/b/memory.max"},
		"v2 high is lower":      {baseV2.with(v2("209715200", "125829120").in(root2 + "/a/b")), 50, "/sys/fs/cgroup/a/b/memory.high"},
		"v2 limit above": {
			baseV2.with(v2("max", "max").in(root2 + "/a/b")).with(v2("209715200", "max").in(root2 + "/a")),
			130, "/sys/fs/cgroup/a/memory.max",
		},
		"v2 both, above is lower": {
			baseV2.with(v2("209715200", "max").in(root2 + "/a/b")).with(v2("188743680", "max").in(root2 + "/a")),
			110, "/sys/fs/cgroup/a/memory.max",
		},
		"v2 limit at the top":       {baseV2.with(v2("209715200", "max").in(root2)), 130, "/sys/fs/cgroup/memory.max"},
		"v2 above its limit":        {baseV2.with(v2("4096", "max").in(root2 + "/a/b")), 0, "/sys/fs/cgroup/a/b/memory.max"},
		"v2 limit above the host":   {baseV2.with(v2("209715200000", "max").in(root2 + "/a/b")), 1024, "MemAvailable of /proc/meminfo"},
		"v2 sibling does not count": {baseV2.with(v2("4096", "max").in(root2 + "/a/c")), 1024, "MemAvailable of /proc/meminfo"},
		"v2 without statistics": {baseV2.with(files{"memory.max": "209715200", "memory.current": "104857600"}.in(root2 + "/a/b")), 100,
			"/sys/fs/cgroup/a/b/memory.max"},
		"v2 cache larger than usage": {
			baseV2.with(files{"memory.max": "209715200", "memory.current": "1", "memory.stat": "inactive_file 9999"}.in(root2 + "/a/b")),
			200, "/sys/fs/cgroup/a/b/memory.max"},
		"v1 no limit":  {baseV1.with(v1(noLimit).in(root1 + "/a/b")), 1024, "MemAvailable of /proc/meminfo"},
		"v1 own limit": {baseV1.with(v1("209715200").in(root1 + "/a/b")), 130, "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes"},
		"v1 limit above": {baseV1.with(v1(noLimit).in(root1 + "/a/b")).with(v1("209715200").in(root1 + "/a")), 130,
			"/sys/fs/cgroup/memory/a/memory.limit_in_bytes"},
		"hybrid": {base.with(files{
			"proc/self/mountinfo": mountV1 + "37 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"proc/self/cgroup":    "4:memory:/a\n0::/b\n",
		}).with(v1("314572800").in(root1 + "/a")).with(v2("209715200", "max").in(root2 + "/unified/b")),
			130, "/sys/fs/cgroup/unified/b/memory.max"},
		"container sees its own cgroup as the mount": {base.with(files{
			"proc/self/mountinfo": "30 23 0:26 /docker/xyz /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "proc/self/cgroup": "0::/docker/xyz\n",
		}).with(v2("209715200", "max").in(root2)), 130, "/sys/fs/cgroup/memory.max"},
		"below what a container sees": {base.with(files{
			"proc/self/mountinfo": "30 23 0:26 /docker/xyz /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "proc/self/cgroup": "0::/docker/xyz/sub\n",
		}).with(v2("209715200", "max").in(root2 + "/sub")), 130, "/sys/fs/cgroup/sub/memory.max"},
		"a name that only begins alike": {base.with(files{
			"proc/self/mountinfo": "30 23 0:26 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "proc/self/cgroup": "0::/docker/xyz\n",
		}).with(v2("4096", "max").in(root2 + "/yz")).with(v2("209715200", "max").in(root2)), 130, "/sys/fs/cgroup/memory.max"},
		"outside of the namespace": {baseV2.with(files{"proc/self/cgroup": "0::/../../etc\n"}).with(v2("209715200", "max").in(root2)), 130,
			"/sys/fs/cgroup/memory.max"},
		"the mount that shows the most": {base.with(files{
			"proc/self/mountinfo": "30 23 0:26 /a/b /mnt/part rw - cgroup2 c rw\n" + mountV2 + "31 23 0:26 /x /mnt/other rw - cgroup2 c rw\n",
			"proc/self/cgroup":    "0::/a/b\n",
		}).with(v2("209715200", "max").in(root2 + "/a")), 130, "/sys/fs/cgroup/a/memory.max"},
		"escaped names": {base.with(files{
			"proc/self/mountinfo": `30 23 0:26 / /mnt/c\040g\134 rw - cgroup2 c rw` + "\n", "proc/self/cgroup": "0::/a: b\n",
		}).with(v2("209715200", "max").in(`mnt/c g\/a: b`)), 130, `/mnt/c g\/a: b/memory.max`},
		"garbage between good lines": {baseV2.with(files{
			"proc/self/mountinfo": "\n- - -\nx\n1 2 3 relative/root relative/dir o - cgroup2 c rw\n" + mountV2,
			"proc/self/cgroup":    "garbage\n::\n0::relative\n0::/a/b\n",
		}).with(v2("209715200", "max").in(root2 + "/a/b")), 130, "/sys/fs/cgroup/a/b/memory.max"},
	} {
		t.Run(name, func(t *testing.T) {
			free, source, err := c.files.host(t).Headroom()
			require.NoError(t, err)
			require.Equal(t, c.source, source)
			require.Equal(t, c.mib, free/mib)
		})
	}
}

func TestHeadroomOfHostileFiles(t *testing.T) {
	base := files{"proc/meminfo": meminfo, "proc/self/mountinfo": mountV2, "proc/self/cgroup": "0::/a\n"}
	base = base.with(v2("209715200", "max").in("sys/fs/cgroup/a"))
	_, _, err := base.host(t).Headroom()
	require.NoError(t, err)
	const dir = "sys/fs/cgroup/a/"
	for name, c := range map[string]struct {
		file, content, want string
	}{
		"no available memory": {"proc/meminfo", "MemTotal: 5 kB\nMemAvailable:\n", "/proc/meminfo has no MemAvailable"},
		"empty":               {"proc/meminfo", "", "/proc/meminfo has no MemAvailable"},
		"letters":             {"proc/meminfo", "MemAvailable: many kB\n", `/proc/meminfo: "many" is not a number`},
		"overflow in KiB":     {"proc/meminfo", "MemAvailable: 9223372036854775807 kB\n", "too large"},
		"overflow":            {dir + "memory.max", "99999999999999999999999\n", "/sys/fs/cgroup/a/memory.max"},
		"negative":            {dir + "memory.max", "-1\n", `"-1" is not a number`},
		"empty limit":         {dir + "memory.max", "", `"" is not a number`},
		"binary limit":        {dir + "memory.high", "\x00\xff\n", "is not a number"},
		"a long line":         {dir + "memory.high", strings.Repeat("9", 1000), "99999"},
		"usage":               {dir + "memory.current", "1 2\n", "/sys/fs/cgroup/a/memory.current"},
		"statistics":          {dir + "memory.stat", "inactive_file -5\n", "/sys/fs/cgroup/a/memory.stat"},
		"endless":             {dir + "memory.stat", strings.Repeat("x\n", 1<<20), "is longer than"},
		"endless line":        {"proc/self/mountinfo", strings.Repeat("x", 2<<20), "token too long"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := base.with(files{c.file: c.content}).host(t).Headroom()
			require.ErrorContains(t, err, "admission: measure free memory: ")
			require.ErrorContains(t, err, c.want)
			require.Less(t, len(err.Error()), 200)
		})
	}
	for _, missing := range []string{"proc/meminfo", dir + "memory.current"} {
		f := base.with(nil)
		delete(f, missing)
		_, _, err := f.host(t).Headroom()
		require.ErrorContains(t, err, "/"+missing)
	}
}

func TestHeadroomOfThisHost(t *testing.T) {
	free, source, err := Headroom()
	require.NoError(t, err)
	require.NotEmpty(t, source)
	require.GreaterOrEqual(t, free, int64(0))
}

func FuzzHeadroom(f *testing.F) {
	f.Add(meminfo, mountV2, "0::/a/b\n", "max", "5", "inactive_file 3")
	f.Add(meminfo, mountV1, cgroupV1, noLimit, "5", "total_inactive_file 3")
	f.Add(meminfo, `1 2 3 /x /mnt/\040 o - cgroup2 c rw`, "0::/x/../..\n", "1", "", "")
	f.Fuzz(func(t *testing.T, meminfo, mountinfo, cgroup, limit, usage, stat string) {
		h := files{"proc/meminfo": meminfo, "proc/self/mountinfo": mountinfo, "proc/self/cgroup": cgroup}.with(files{
			"memory.max": limit, "memory.current": usage, "memory.stat": stat,
		}.in("sys/fs/cgroup/a")).host(t)
		free, source, err := h.Headroom()
		if err == nil && (free < 0 || source == "") {
			t.Fatalf("headroom %d of %q", free, source)
		}
	})
}
