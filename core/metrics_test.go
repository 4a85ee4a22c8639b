package core

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Prometheus, "Exposition formats": a HELP and a TYPE line before the samples of each metric.
func TestMetricsAreWellFormed(t *testing.T) {
	counters.execs.Add(3)
	defer counters.execs.Add(-3)
	sample := regexp.MustCompile(`^(supermachine_[a-z_]+)(\{reason="[a-z ]+"\})? \d+$`)
	described := map[string]int{}
	for line := range strings.Lines(Metrics()) {
		line = strings.TrimSuffix(line, "\n")
		if f := strings.Fields(line); f[0] == "#" {
			require.Contains(t, []string{"HELP", "TYPE"}, f[1])
			described[f[2]]++
			continue
		}
		m := sample.FindStringSubmatch(line)
		require.NotNil(t, m, line)
		require.Equal(t, 2, described[m[1]], line)
	}
	require.Contains(t, Metrics(), "\nsupermachine_execs_total ")
	require.Contains(t, Metrics(), `supermachine_vms_ended_total{reason="kernel panic"} `)
}
