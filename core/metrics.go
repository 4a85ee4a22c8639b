package core

import (
	"fmt"
	"strings"
	"sync/atomic"
)

// counters are what this process has done. Their names are those of the metrics.
var counters struct {
	booted, restored, forked    atomic.Int64
	failed                      atomic.Int64 // VMs that did not come up
	open                        atomic.Int64
	ended                       [EndExpired + 1]atomic.Int64 // by EndReason
	execs                       atomic.Int64
	connections, forwards       atomic.Int64
	forwarded                   atomic.Int64 // connections
	snapshots, bakes            atomic.Int64
	acquired, reset, poolFailed atomic.Int64
	pulls                       atomic.Int64
}

// Metrics returns what this process has done so far and has open, as text in Prometheus' exposition format (version 0.0.4). Nothing of a guest's
// is in it: no names, and no claims.
func Metrics() string {
	var b strings.Builder
	c := &counters
	metric := func(name, kind, help string, value int64) {
		fmt.Fprintf(&b, "# HELP supermachine_%s %s\n# TYPE supermachine_%s %s\nsupermachine_%s %d\n", name, help, name, kind, name, value)
	}
	metric("vms_open", "gauge", "VMs that have come up and were not closed.", c.open.Load())
	metric("vms_booted_total", "counter", "VMs booted from an image.", c.booted.Load())
	metric("vms_restored_total", "counter", "VMs started from a snapshot.", c.restored.Load())
	metric("vms_forked_total", "counter", "VMs started from another VM.", c.forked.Load())
	metric("vms_failed_total", "counter", "VMs that did not come up.", c.failed.Load())
	const ended = "supermachine_vms_ended_total"
	fmt.Fprintf(&b, "# HELP %s VMs that were closed, by how they ended.\n# TYPE %s counter\n", ended, ended)
	for r := range c.ended {
		fmt.Fprintf(&b, "%s{reason=%q} %d\n", ended, EndReason(r).String(), c.ended[r].Load())
	}
	metric("execs_total", "counter", "Programs started in VMs.", c.execs.Load())
	metric("connections_total", "counter", "Connections opened to ports of guests.", c.connections.Load())
	metric("forwards_open", "gauge", "Forwards that listen.", c.forwards.Load())
	metric("forward_connections_total", "counter", "Connections that came through forwards.", c.forwarded.Load())
	metric("snapshots_total", "counter", "Running VMs saved as snapshots.", c.snapshots.Load())
	metric("bakes_total", "counter", "Snapshots baked from images.", c.bakes.Load())
	metric("pool_acquired_total", "counter", "VMs taken from pools.", c.acquired.Load())
	metric("pool_resets_total", "counter", "Released VMs brought back to their snapshot.", c.reset.Load())
	metric("pool_failures_total", "counter", "VMs that pools could not start or bring back.", c.poolFailed.Load())
	metric("pulls_total", "counter", "Images pulled, those that were there already included.", c.pulls.Load())
	return b.String()
}

// noteStart counts a VM that has come up.
func (vm *VM) noteStart(kind *atomic.Int64) {
	kind.Add(1)
	counters.open.Add(1)
	vm.counted = true
}

// noteClose counts its end.
func (vm *VM) noteClose() {
	if vm.counted {
		counters.open.Add(-1)
		counters.ended[vm.End().Reason].Add(1)
	}
}
