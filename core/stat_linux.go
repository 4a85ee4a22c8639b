package core

import (
	"syscall"
	"time"
)

// changeTime returns when a file's content or attributes last changed.
func changeTime(st *syscall.Stat_t) time.Time { return time.Unix(st.Ctim.Unix()) }
