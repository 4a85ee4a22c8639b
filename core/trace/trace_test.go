package trace

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStepsFollowEachOther(t *testing.T) {
	SetSink(nil)
	require.Nil(t, Begin(Restore, "a"))
	(*Operation)(nil).Step("nothing happens")

	var got []Step
	SetSink(func(s Step) { got = append(got, s) })
	defer SetSink(nil)
	op := Begin(Restore, "vm")
	op.Step("first")
	op.Step("second")
	require.Len(t, got, 2)
	require.Equal(t, Restore, got[1].Category)
	require.Equal(t, "vm", got[1].Object)
	require.Equal(t, []string{"first", "second"}, []string{got[0].Name, got[1].Name})
	require.Zero(t, got[0].Start)
	require.Equal(t, got[0].Took, got[1].Start)
}
