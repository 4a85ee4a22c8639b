package admission

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestGateLetsInInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2)
		first, err := g.Enter(t.Context())
		require.NoError(t, err)
		second, err := g.Enter(t.Context())
		require.NoError(t, err)

		var order []int
		var leaves []func()
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 4 {
			go func() {
				c := t.Context()
				if i == 1 {
					c = ctx
				}
				leave, err := g.Enter(c)
				if i == 1 {
					if err != context.Canceled {
						t.Errorf("unexpected error: %v", err)
					}
					return
				}
				order, leaves = append(order, i), append(leaves, leave)
			}()
			synctest.Wait()
		}
		require.Equal(t, GateStats{Limit: 2, Running: 2, Waiting: 4}, g.Stats())
		cancel()
		synctest.Wait()
		require.Equal(t, 3, g.Stats().Waiting)
		first()
		first()
		synctest.Wait()
		require.Equal(t, []int{0}, order, "leaving twice lets in one only")
		second()
		synctest.Wait()
		leaves[0]()
		synctest.Wait()
		require.Equal(t, []int{0, 2, 3}, order)
		leaves[1]()
		leaves[2]()
		require.Equal(t, GateStats{Limit: 2}, g.Stats())
		_, err = g.Enter(ctx)
		require.Equal(t, context.Canceled, err)
	})
}

func TestGateStorm(t *testing.T) {
	g := NewGate(0)
	limit := int64(runtime.GOMAXPROCS(0))
	require.Equal(t, int(limit), g.Stats().Limit)
	var all sync.WaitGroup
	var inside atomic.Int64
	for i := range 64 {
		all.Go(func() {
			for range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%4 == 0 {
					go cancel()
				}
				leave, err := g.Enter(ctx)
				if err == nil {
					if inside.Add(1) > limit {
						t.Error("too many inside")
					}
					runtime.Gosched()
					inside.Add(-1)
					leave()
				}
				cancel()
			}
		})
	}
	all.Wait()
	require.Equal(t, GateStats{Limit: int(limit)}, g.Stats())
}
