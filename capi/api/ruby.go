package api

import (
	"fmt"
	"strings"

	"github.com/supermachine/supermachine/core"
)

// RubyErrors returns bindings/ruby/lib/supermachine/errors.rb: a class for each error.
func RubyErrors() string {
	var b strings.Builder
	b.WriteString(`# frozen_string_literal: true

# Made by "make abi" from the table of error codes.

require_relative "error"

module Supermachine
`)
	for _, c := range core.Codes() {
		fmt.Fprintf(&b, "  # %s: %s.\n  class %sError < Error; end\n\n", c.Error(), c.Description(), pascal(c.Error()))
	}
	b.WriteString("  # The class for each code.\n  ERRORS = {\n")
	for _, c := range core.Codes() {
		fmt.Fprintf(&b, "    %d => %sError,\n", int(c), pascal(c.Error()))
	}
	b.WriteString("  }.freeze\nend\n")
	return b.String()
}
