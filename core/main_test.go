package core_test

import (
	"os"
	"testing"

	"github.com/supermachine/supermachine/core/vmtest"
)

func TestMain(m *testing.M) { os.Exit(vmtest.Main(m)) }
