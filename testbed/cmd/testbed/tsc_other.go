//go:build !amd64

package main

// tscParameter: where this machine has no such counter, the one that TCG gives to its guest counts nanoseconds.
func tscParameter() string { return "tsc_early_khz=1000000" }
