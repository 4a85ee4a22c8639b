// Command abigen writes what is derived from the tables of calls and of errors: docs/abi.md, the list of calls for the C side, the types of the
// Node package, and parts of include/supermachine.h.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/supermachine/supermachine/capi/api"
)

func main() {
	header, err := os.ReadFile("include/supermachine.h")
	if err == nil {
		var text string
		if text, err = api.Header(string(header)); err == nil {
			err = os.WriteFile("include/supermachine.h", []byte(text), 0o644)
		}
	}
	for name, text := range api.Files() {
		if err == nil {
			err = os.WriteFile(name, []byte(text), 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "abigen:", strings.TrimSpace(err.Error()))
		os.Exit(1)
	}
}
