package machine

import "time"

// throttlePeriod is how often a machine with a CPU limit is looked at, and throttleBurst how much of its share it may use ahead.
const (
	throttlePeriod = 10 * time.Millisecond
	throttleBurst  = 100 * time.Millisecond
)

// throttle holds the vCPUs back whenever they have used more of the host's CPUs than the limit, until the machine ends. Devices go on.
func (m *Machine) throttle() {
	tick := time.NewTicker(throttlePeriod)
	defer tick.Stop()
	limit := m.cfg.CPULimit
	most := time.Duration(limit * float64(throttleBurst))
	budget, used, last := most, m.CPUTime(), time.Now()
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-m.ended:
			return
		}
		total := m.CPUTime()
		budget = min(most, budget+time.Duration(limit*float64(now.Sub(last)))-(total-used))
		used, last = total, now
		m.hold(budget < 0)
	}
}

// hold keeps the vCPUs out of the guest, or lets them in again.
func (m *Machine) hold(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held == on {
		return
	}
	m.held = on
	if on && m.phase == phaseRunning {
		m.kickAll()
	}
	m.cond.Broadcast()
}
