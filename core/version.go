package core

import (
	"runtime/debug"
	"sync"
)

const modulePath = "github.com/supermachine/supermachine"

// Version returns the version of this module that the program was built with, such as v1.2.3; "(devel)" if it was built in a checkout.
func Version() string { return version() }

var version = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == modulePath && m.Version != "" {
				return m.Version
			}
		}
	}
	return "(devel)"
})
