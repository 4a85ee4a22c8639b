package agent

import (
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
)

// terminal is a program on a terminal, driven by what is typed.
type terminal struct {
	*agent.Process
	keys   *io.PipeWriter
	screen *lockedBuffer
}

func newTerminal(t *testing.T, c *agent.Client, req agent.ExecRequest) terminal {
	r, w := io.Pipe()
	screen := &lockedBuffer{}
	req.TTY, req.Stdin, req.Stdout = true, r, screen
	p, err := c.Exec(testContext(t), req)
	require.NoError(t, err)
	t.Cleanup(func() { w.Close() })
	return terminal{p, w, screen}
}

func (term terminal) typeKeys(t *testing.T, keys string) {
	_, err := io.WriteString(term.keys, keys)
	require.NoError(t, err)
}

func (term terminal) shows(t *testing.T, text string) {
	t.Helper()
	eventually(t, func() bool { return strings.Contains(term.screen.String(), text) }, text)
}

func TestTerminal(t *testing.T) {
	c := newGuest(t).client(t)
	term := newTerminal(t, c, agent.ExecRequest{Args: []string{"sh"}, Rows: 30, Cols: 100})
	term.typeKeys(t, "tty; stty size; echo T=$TERM\n")
	term.shows(t, "/dev/pts/0\r\n30 100\r\nT=xterm\r\n")
	require.NoError(t, term.Resize(40, 120))
	term.typeKeys(t, "stty size\n")
	term.shows(t, "40 120\r\n")
	term.typeKeys(t, "sleep 1000\n")
	eventually(t, func() bool { return processes(t, c, "sleep 1000") == 1 }, "start")
	term.typeKeys(t, "\x03")
	eventually(t, func() bool { return processes(t, c, "sleep 1000") == 0 }, "interrupt")
	term.typeKeys(t, "echo status $?\n")
	term.shows(t, "status 130")
	term.typeKeys(t, "exit 5\n")
	st, err := term.Wait()
	require.NoError(t, err)
	require.Equal(t, 5, st.Code)
	require.False(t, st.Truncated)
}

func TestTheEndOfStdinIsTheEndOfATerminal(t *testing.T) {
	c := newGuest(t).client(t)
	term := newTerminal(t, c, agent.ExecRequest{Args: []string{"cat"}, User: "app"})
	term.typeKeys(t, "line\n")
	term.shows(t, "line\r\nline\r\n")
	require.NoError(t, term.keys.Close())
	st, err := term.Wait()
	require.NoError(t, err)
	require.Zero(t, st.Code)
}

func TestATerminalIsHungUp(t *testing.T) {
	c := newGuest(t).client(t)
	term := newTerminal(t, c, agent.ExecRequest{Args: []string{"sh", "-c", "sleep 5551 & echo ready; read x; exit 0"}})
	term.shows(t, "ready")
	term.typeKeys(t, "\n")
	st, err := term.Wait()
	require.NoError(t, err)
	require.Zero(t, st.Code)
	eventually(t, func() bool { return processes(t, c, "sleep 5551") == 0 }, "the background child gets SIGHUP")
}

func TestResizeAndSignalsOfAProgramWithoutTerminal(t *testing.T) {
	c := newGuest(t).client(t)
	p, err := c.Exec(testContext(t), sh("sleep 1000"))
	require.NoError(t, err)
	require.NoError(t, p.Resize(1, 1))
	require.NoError(t, p.Signal(syscall.Signal(99)), "no such signal")
	require.NoError(t, p.Signal(syscall.SIGINT))
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGINT, st.Signal)
}
