package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPathsOfVMs(t *testing.T) {
	for s, want := range map[string][2]string{
		"web:/etc": {"web", "/etc"}, "web:relative": {"web", "relative"}, "./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, "file": {"", "file"}, ":x": {"", ":x"},
	} {
		vm, path := vmPath(s)
		require.Equal(t, want, [2]string{vm, path}, s)
	}
}
