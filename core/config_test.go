package core_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
)

func TestConfigIsCheckedBeforeAnythingStarts(t *testing.T) {
	require.NoError(t, core.Config{}.Check())
	require.NoError(t, core.Config{Name: "a-1", MemoryMiB: 64, VCPUs: 8, ScratchMiB: 16}.Check())
	for text, cfg := range map[string]core.Config{
		"memory":       {MemoryMiB: 63},
		"MiB":          {MemoryMiB: -1},
		"524288 MiB":   {MemoryMiB: 1 << 40},
		"cpus":         {VCPUs: 9},
		"1 to 8":       {VCPUs: -1},
		"scratch disk": {ScratchMiB: 15},
		"1048576":      {ScratchMiB: 1<<20 + 1},
		"boot timeout": {BootTimeout: -time.Second},
		"name":         {Name: "under_score"},
		"letters":      {Name: "a.b"},
		"inner":        {Name: "-a"},
		"63":           {Name: string(make([]byte, 64))},
	} {
		err := cfg.Check()
		require.ErrorIs(t, err, core.ErrInvalidArgument, text)
		require.ErrorContains(t, err, text)
		_, err = core.Start(t.Context(), &core.Image{}, cfg)
		require.ErrorIs(t, err, core.ErrInvalidArgument, text)
	}
}
