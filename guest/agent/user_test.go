package agent

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent/wire"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\n\n::::::\nbad:x:nan:1::/:\nminus:x:4294967295:0::/:\napp:x:1000:100:App:/home/app:/bin/sh\n" +
		"1234:x:77:78::/named:\nnohome:x:5:6:::\nlast:x:9:9::/last:/bin/sh"
	groups = "root:x:0:root\nusers:x:100:app\nbroken:x\nvideo:x:44:app,other\naudio:x:45:other,app\nbad:x:nan:app\n"
)

func TestUsers(t *testing.T) {
	for spec, want := range map[string]user{
		"root":      {home: "/root", groups: []uint32{0}},
		"0":         {home: "/root", groups: []uint32{0}},
		"":          {home: "/root", groups: []uint32{0}},
		"app":       {uid: 1000, gid: 100, home: "/home/app", groups: []uint32{100, 44, 45}},
		"1000":      {uid: 1000, gid: 100, home: "/home/app", groups: []uint32{100, 44, 45}},
		"app:":      {uid: 1000, gid: 100, home: "/home/app", groups: []uint32{100, 44, 45}},
		"app:video": {uid: 1000, gid: 44, home: "/home/app"},
		"app:7":     {uid: 1000, gid: 7, home: "/home/app"},
		":video":    {gid: 44, home: "/root"},
		"31:32":     {uid: 31, gid: 32, home: "/"},
		"31":        {uid: 31, home: "/"},
		"1234":      {uid: 77, gid: 78, home: "/named"},
		"nohome":    {uid: 5, gid: 6, home: "/"},
		"last":      {uid: 9, gid: 9, home: "/last"},
	} {
		got, err := resolveUser(spec, strings.NewReader(passwd), strings.NewReader(groups))
		require.NoError(t, err, spec)
		require.Equal(t, want, got, spec)
	}
	for _, spec := range []string{"nobody", "app:nogroup", "bad", "minus", "4294967295", "-1", "99999999999", "app:x:y"} {
		_, err := resolveUser(spec, strings.NewReader(passwd), strings.NewReader(groups))
		var e *wire.Error
		require.ErrorAs(t, err, &e, spec)
		require.Equal(t, wire.KindNotFound, e.Kind)
	}
	got, err := resolveUser("0", strings.NewReader(""), strings.NewReader(""))
	require.NoError(t, err)
	require.Equal(t, user{home: "/root"}, got, "an image without accounts")
}

func TestAbsurdAccountsAreLeftOut(t *testing.T) {
	long := strings.Repeat("x", maxAccountLine)
	got, err := resolveUser("app", strings.NewReader(long+":x:1:1::/:\n"+long+"\n"+passwd), strings.NewReader("many:x:3:"+long+",app\n"+groups))
	require.NoError(t, err)
	require.Equal(t, user{uid: 1000, gid: 100, home: "/home/app", groups: []uint32{100, 44, 45}}, got)
}

func FuzzUsers(f *testing.F) {
	f.Add("app:video", passwd, groups)
	f.Add("1000", "a:b:1000:4::/h:", "g::1:a")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		u, err := resolveUser(spec, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			return
		}
		require.NotEqual(t, uint32(1<<32-1), u.uid)
		require.NotEqual(t, uint32(1<<32-1), u.gid)
		require.NotEmpty(t, u.home)
		require.LessOrEqual(t, len(u.groups), maxGroups)
	})
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("12 (a) b) S 1 12 12 0"))
	f.Add([]byte("1 () R"))
	f.Fuzz(func(t *testing.T, b []byte) { parseStat(b) })
}
