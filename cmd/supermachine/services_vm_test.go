package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/vmtest"
)

// A volume, a mount and a network, as flags.
func TestRunWithWhatTheHostGives(t *testing.T) {
	vmtest.RequireKVM(t)
	busybox := image(t, "busybox")
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "data.img")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "in"), []byte("from the host\n"), 0o644))
	for i := range 2 {
		out := succeed(t, "run", "-q", "-v", file+":/data:size=32m", "--mount", dir+":/src:ro", busybox,
			"sh", "-c", "cat /src/in; touch /src/x 2>/dev/null || echo read-only; echo run >> /data/log; grep -c run /data/log")
		require.Equal(t, fmt.Sprintf("from the host\nread-only\n%d", i+1), out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello guest\n")
			c.Close()
		}
	}()
	ask := fmt.Sprintf("nc -w 5 192.168.127.1 %d </dev/null 2>&1; true", l.Addr().(*net.TCPAddr).Port)
	require.Equal(t, "hello guest", succeed(t, "run", "-q", "--network", "--egress", "allow 127.0.0.1", busybox, "sh", "-c", ask))
	require.NotContains(t, succeed(t, "run", "-q", "--network", busybox, "sh", "-c", ask), "hello")
	require.Equal(t, "64", succeed(t, "run", "-q", "--ulimit", "nofile=64", busybox, "sh", "-c", "ulimit -n"))
	require.Equal(t, exitTimeout, cli(t, "run", "-q", "--lifetime", "500ms", busybox, "sleep", "1000000").status)
}

func TestCopiesAndPrograms(t *testing.T) {
	background(t, "services")
	src, dst := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(src, "tree/sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(src, "tree/sub/file"), []byte("content"), 0o640))
	succeed(t, "cp", "--owner", "1000:1000", filepath.Join(src, "tree"), "services:/tmp")
	require.Equal(t, "1000 640\ncontent", succeed(t, "exec", "services", "sh", "-c", "stat -c '%u %a' /tmp/tree/sub/file; cat /tmp/tree/sub/file"))
	succeed(t, "cp", "services:/tmp/tree/.", dst)
	b, err := os.ReadFile(filepath.Join(dst, "sub/file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(b))
	require.Contains(t, cli(t, "cp", "services:/no/such", dst).stderr, "/no/such")

	number := succeed(t, "exec", "-d", "-i", "services", "sh", "-c", "echo started; read line; echo got $line; exit 3")
	var programs []programRow
	require.NoError(t, json.Unmarshal([]byte(succeed(t, "top", "--json", "services")), &programs))
	require.Len(t, programs, 2)
	require.Equal(t, number, fmt.Sprint(programs[1].ID))
	require.True(t, programs[1].Detached)
	out := cliWith(t, strings.NewReader("line\n"), "attach", "-i", "services", number)
	require.Equal(t, 3, out.status, out.stderr)
	require.Equal(t, "started\ngot line\n", out.stdout)
	require.Equal(t, exitFailure, cli(t, "attach", "services", number).status, "who has got the exit status ends it")
}
