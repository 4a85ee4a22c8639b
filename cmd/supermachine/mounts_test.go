package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
)

// A rate of less than a MiB is a rate, and not none.
func TestSmallNetworkRatesLimit(t *testing.T) {
	for s, want := range map[string]int64{"100k": 100 << 10, "3m": 3 << 20, "512b": 512} {
		var cfg core.Config
		require.NoError(t, (&attachFlags{rate: s}).parse(&cfg))
		require.Equal(t, want, cfg.Network.BytesPerSecond, s)
	}
	require.Error(t, (&attachFlags{rate: "fast"}).parse(new(core.Config)))
}
