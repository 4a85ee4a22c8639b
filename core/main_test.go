package core_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/supermachine/supermachine/core/vmtest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" { // in a guest
		if err := runRole(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(vmtest.Main(m))
}
