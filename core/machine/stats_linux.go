package machine

import "golang.org/x/sys/unix"

// threadTime returns the CPU time in nanoseconds that a thread of this process has used; 0 if there is none with that number. The clock's
// number is made as pthread_getcpuclockid does it (Linux, include/linux/posix-timers.h: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED).
func threadTime(tid int32) int64 {
	var ts unix.Timespec
	if unix.ClockGettime(^tid<<3|4|2, &ts) != nil {
		return 0
	}
	return ts.Nano()
}
