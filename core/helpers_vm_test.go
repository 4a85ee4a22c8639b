package core_test

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lines reads a stream line by line, so that a test can wait for what a guest says.
type lines struct{ s *bufio.Scanner }

func newLines(r io.Reader) lines { return lines{bufio.NewScanner(r)} }

func (l lines) next(t *testing.T) string {
	t.Helper()
	require.True(t, l.s.Scan(), "no more lines: %v", l.s.Err())
	return l.s.Text()
}

// pipe is an io.Pipe.
type pipe struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func newPipe() pipe {
	r, w := io.Pipe()
	return pipe{r, w}
}

// eventually asks until the answer is yes, for as long as a test lasts: an emulated host is slow.
func eventually(t *testing.T, yes func() bool, why string, args ...any) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !yes(); time.Sleep(50 * time.Millisecond) {
		require.True(t, time.Now().Before(end), fmt.Sprintf(why, args...))
	}
}

type mapping struct {
	size     uint64
	readable bool
}

// parseMaps reads /proc/PID/maps.
func parseMaps(t *testing.T, text string) (all []mapping) {
	t.Helper()
	for line := range strings.Lines(text) {
		var from, to uint64
		var access string
		_, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access)
		require.NoError(t, err, line)
		all = append(all, mapping{to - from, strings.HasPrefix(access, "r")})
	}
	return all
}
