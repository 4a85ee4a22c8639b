package core

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseVolume(t *testing.T) {
	for s, want := range map[string]Volume{
		"db.img:/data":                 {File: "db.img", Path: "/data"},
		"/a:b/db.img:/data:ro":         {File: "/a:b/db.img", Path: "/data", ReadOnly: true},
		"db.img:/data:size=4g:ro":      {File: "db.img", Path: "/data", ReadOnly: true, SizeMiB: 4096},
		"db.img:/data:size=64":         {File: "db.img", Path: "/data", SizeMiB: 64},
		"./dir/db.img:/data:size=512M": {File: "./dir/db.img", Path: "/data", SizeMiB: 512},
	} {
		v, err := ParseVolume(s)
		require.NoError(t, err, s)
		require.Equal(t, want, v, s)
	}
	for _, s := range []string{"", "db.img", "db.img:data", ":/data", "db.img:/data:rw", "db.img:/data:size=", "db.img:/data:size=0", "db.img:/data:size=99T", "x:/y:size=-1"} {
		_, err := ParseVolume(s)
		require.ErrorIs(t, err, ErrInvalidArgument, s)
		require.ErrorContains(t, err, s)
	}
}

func TestParseMount(t *testing.T) {
	for s, want := range map[string]Mount{
		".:/src":                            {Dir: ".", Path: "/src"},
		"/a:/b:ro:symlinks=deny":            {Dir: "/a", Path: "/b", ReadOnly: true, Symlinks: SymlinksDeny},
		"/a:/b:symlinks=follow":             {Dir: "/a", Path: "/b", Symlinks: SymlinksFollow},
		"/a:/b:uid=1000:gid=5:ids=identity": {Dir: "/a", Path: "/b", UID: 1000, GID: 5, Identity: true},
	} {
		m, err := ParseMount(s)
		require.NoError(t, err, s)
		require.Equal(t, want, m, s)
	}
	for _, s := range []string{"", "/a", "/a:b", "/a:/b:rw", "/a:/b:symlinks=some", "/a:/b:uid=root", "/a:/b:ids=mine"} {
		_, err := ParseMount(s)
		require.ErrorIs(t, err, ErrInvalidArgument, s)
	}
}

func TestAttachmentsThatCannotBe(t *testing.T) {
	many := make([]Mount, MaxMounts+1)
	for name, c := range map[string]Config{
		"too many": {Mounts: many}, "no host": {Mounts: []Mount{{Path: "/x"}}}, "relative": {Mounts: []Mount{{Dir: ".", Path: "x"}}},
		"root": {Mounts: []Mount{{Dir: ".", Path: "/"}}}, "dots": {Mounts: []Mount{{Dir: ".", Path: "/x/../y"}}}, "NUL": {Mounts: []Mount{{Dir: ".", Path: "/x\x00"}}},
		"twice": {Mounts: []Mount{{Dir: ".", Path: "/x"}}, Volumes: []Volume{{File: "f", Path: "/x"}}}, "small": {Volumes: []Volume{{File: "f", Path: "/x", SizeMiB: 1}}},
		"rule": {Network: &Network{Rules: []string{"allow 1.2.3.4/99"}}}, "default": {Network: &Network{Default: "perhaps"}}, "rate": {Network: &Network{BytesPerSecond: -1}},
		"CPU": {CPULimit: 0.001}, "lifetime": {Lifetime: -1}, "disk": {DiskBytesPerSecond: -1},
	} {
		require.ErrorIs(t, c.Check(), ErrInvalidArgument, name)
	}
	require.NoError(t, Config{Mounts: []Mount{{Dir: ".", Path: "/x/y"}}, Volumes: []Volume{{File: "f", Path: "/x"}}, Network: &Network{}}.Check())
}

func TestParseRlimit(t *testing.T) {
	for s, want := range map[string]Rlimit{
		"nofile=64": {Name: "nofile", Soft: 64, Hard: 64}, "cpu=1:2": {Name: "cpu", Soft: 1, Hard: 2}, "as=5:unlimited": {Name: "as", Soft: 5, Hard: Unlimited},
		"core=unlimited": {Name: "core", Soft: Unlimited, Hard: Unlimited},
	} {
		l, err := ParseRlimit(s)
		require.NoError(t, err, s)
		require.Equal(t, want, l, s)
	}
	for _, s := range []string{"", "nofile", "=1", "nofile=", "nofile=x", "nofile=1:", "nofile=-1"} {
		_, err := ParseRlimit(s)
		require.ErrorIs(t, err, ErrInvalidArgument, s)
	}
}
