package core

import "syscall"

// changeTime returns when a file's content or attributes last changed, in nanoseconds.
func changeTime(st *syscall.Stat_t) int64 { return st.Ctim.Nano() }
