package trace

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStepsFollowEachOther(t *testing.T) {
	require.Nil(t, Begin(Restore, "a"))
	(*Operation)(nil).Step("nothing happens")
	Event(Net, "a", "nobody looks")

	var got, others []Step
	remove := Add(func(s Step) { got = append(got, s) }, Restore, Net)
	removeOther := Add(func(s Step) { others = append(others, s) }, Net)
	require.Nil(t, Begin(Boot, "vm"), "nobody wants it")
	op := Begin(Restore, "vm")
	op.Step("first")
	op.Step("second %d", 2)
	Event(Net, "vm", "refused %s", "x")
	require.Len(t, got, 3)
	require.Equal(t, Restore, got[1].Category)
	require.Equal(t, "vm", got[1].Object)
	require.Equal(t, []string{"first", "second 2", "refused x"}, []string{got[0].Name, got[1].Name, got[2].Name})
	require.Zero(t, got[0].Start)
	require.Equal(t, got[0].Took, got[1].Start)
	require.Len(t, others, 1)
	remove()
	require.Nil(t, Begin(Restore, "a"))
	Event(Net, "vm", "more")
	require.Len(t, got, 3)
	require.Len(t, others, 2)
	removeOther()
	require.Nil(t, sinks.Load())
}

func TestStepsInALog(t *testing.T) {
	var b bytes.Buffer
	defer AddLogger(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})), Exec)()
	Event(Exec, "abc", "run true")
	require.Contains(t, b.String(), `msg="run true" category=exec object=abc`)
}

func TestParseCategories(t *testing.T) {
	all, err := ParseCategories()
	require.NoError(t, err)
	require.Equal(t, Categories(), all)
	some, err := ParseCategories(" net", "", "exec ")
	require.NoError(t, err)
	require.Equal(t, []Category{Net, Exec}, some)
	all, err = ParseCategories("net", "all")
	require.NoError(t, err)
	require.Equal(t, Categories(), all)
	_, err = ParseCategories("network")
	require.ErrorContains(t, err, "network")
}
