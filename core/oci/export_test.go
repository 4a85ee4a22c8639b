package oci

import (
	"bytes"
	"io"
)

// Decompress exposes the recognition of compressed layers to tests.
func Decompress(data []byte, limit int64) ([]byte, error) {
	r, closeReader, err := decompress(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer closeReader()
	return io.ReadAll(io.LimitReader(r, limit+1))
}

// Dir returns a store's directory.
func (s *Store) Dir() string { return s.dir }
