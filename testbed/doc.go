// Package testbed holds the tests of testbed/run, which runs a command where KVM works. docs/testbed.md describes it.
package testbed
