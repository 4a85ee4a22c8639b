package agent

import (
	"bufio"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func TestParseListening(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 300 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   2: 0100007F:9999 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 50 1 0 100 0 0 10 0
   3: 0A00A8C0:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20 1 0 100 0 0 10 0
   4: 00000000:0000:0 0A
   5: 00000000:ZZ 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	const table6 = `   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0     0        0 400 1
   1: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A 0:0 00:0 0     0        0 200 1
   2: 000080FE000000000000000001000000:1539 00000000000000000000000000000000:0000 0A 0:0 00:0 0     0        0 201 1
`
	all := parseListening(bufio.NewScanner(strings.NewReader(table)))
	all = append(all, parseListening(bufio.NewScanner(strings.NewReader(table6)))...)
	require.Equal(t, []uint16{80, 0x1538, 8080}, oldestFirst(all))
}

func TestPortsAreTheOldestFirst(t *testing.T) {
	client := newGuest(t).client(t)
	first, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer first.Close()
	second, err := net.Listen("tcp", "[::]:0")
	require.NoError(t, err)
	defer second.Close()
	ports, err := client.Ports(t.Context())
	require.NoError(t, err)
	at := func(l net.Listener) int {
		for i, p := range ports {
			if int(p) == l.Addr().(*net.TCPAddr).Port {
				return i
			}
		}
		return -1
	}
	require.GreaterOrEqual(t, at(first), 0)
	require.Greater(t, at(second), at(first))
}

func TestReverseConnectsToTheHost(t *testing.T) {
	hostSide, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer hostSide.Close()
	g := newGuest(t)
	g.server.cfg.DialHost = func(port uint32) (net.Conn, error) {
		require.EqualValues(t, 1<<20, port)
		return net.Dial("tcp", hostSide.Addr().String())
	}
	client := g.client(t)
	port, stop, err := client.Reverse(t.Context(), 0, 1<<20)
	require.NoError(t, err)
	require.NotZero(t, port)
	address := "127.0.0.1:" + strconv.Itoa(int(port))

	_, _, err = client.Reverse(t.Context(), port, 1<<20)
	var refused *agent.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, wire.KindInUse, refused.Kind)

	guest, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer guest.Close()
	host, err := hostSide.Accept()
	require.NoError(t, err)
	_, err = guest.Write([]byte("question"))
	require.NoError(t, err)
	require.NoError(t, guest.(*net.TCPConn).CloseWrite())
	question, err := io.ReadAll(host)
	require.NoError(t, err)
	require.Equal(t, "question", string(question), "a half-close goes through")
	_, err = host.Write([]byte("answer"))
	require.NoError(t, err)
	host.Close()
	answer, err := io.ReadAll(guest)
	require.NoError(t, err)
	require.Equal(t, "answer", string(answer))

	stop()
	for { // the agent hears of it a moment later
		c, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		c.Close()
	}
}
