package oci

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// layerStream decompresses and hashes a layer in its own goroutine, ahead of the reader.
type layerStream struct {
	ctx    context.Context
	full   chan []byte
	empty  chan []byte
	cur    []byte // rest of the buffer being read
	whole  []byte // that buffer
	err    error  // set before full is closed; nil at the end of the layer
	diffID string // set before full is closed, if all went well
	total  int64  // uncompressed bytes, likewise
}

const (
	streamBuffers    = 8
	streamBufferSize = 256 << 10
	// zstdWindow is the most memory that a zstd frame may ask for: what the format recommends to support, times 16.
	zstdWindow = 128 << 20
)

// newLayerStream starts reading src, compressed or not; limit bounds the
// uncompressed bytes. The goroutine ends with src, or when ctx is cancelled.
func newLayerStream(ctx context.Context, src io.Reader, limit int64) *layerStream {
	s := &layerStream{ctx: ctx, full: make(chan []byte, streamBuffers), empty: make(chan []byte, streamBuffers)}
	for range streamBuffers {
		s.empty <- make([]byte, streamBufferSize)
	}
	go s.run(src, limit)
	return s
}

func (s *layerStream) run(src io.Reader, limit int64) {
	defer close(s.full)
	in := &sourceReader{r: src}
	r, closeReader, err := decompress(in)
	if err == nil {
		defer closeReader()
		err = s.pump(r, limit)
	}
	if err == nil {
		// The checks of the whole blob come at its very end.
		_, err = io.Copy(io.Discard, in)
	}
	var e *Error
	switch {
	case err == nil:
	case in.err != nil:
		s.err = in.err
	case errors.As(err, &e), isContextError(err):
		s.err = err
	default:
		s.err = invalid("", "bad compressed data: %w", err)
	}
}

func (s *layerStream) pump(r io.Reader, limit int64) error {
	sum := sha256.New()
	for {
		var p []byte
		select {
		case p = <-s.empty:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		n, err := readFull(r, p)
		sum.Write(p[:n])
		if s.total += int64(n); s.total > limit {
			return overLimit("", "more than %d bytes uncompressed", limit)
		}
		if n > 0 {
			select {
			case s.full <- p[:n]:
			case <-s.ctx.Done():
				return s.ctx.Err()
			}
		}
		if err == io.EOF {
			s.diffID = "sha256:" + hex.EncodeToString(sum.Sum(nil))
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readFull is io.ReadFull, but returns the reader's own error: an EOF after some
// bytes is not the same as a decompressor that says its input was cut.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// Read returns the layer's next bytes.
func (s *layerStream) Read(p []byte) (int, error) {
	for len(s.cur) == 0 {
		if s.whole != nil {
			s.empty <- s.whole[:cap(s.whole)]
			s.whole = nil
		}
		b, ok := <-s.full
		if !ok {
			if s.err != nil {
				return 0, s.err
			}
			return 0, io.EOF
		}
		s.cur, s.whole = b, b
	}
	n := copy(p, s.cur)
	s.cur = s.cur[n:]
	return n, nil
}

// wait returns when the goroutine has ended; its context must have been cancelled, or all been read.
func (s *layerStream) wait() {
	for range s.full {
	}
}

// decompress recognises the compression by its first bytes: media types are not always right.
func decompress(src io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(src, 128<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { z.Close() }, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// plainReader says whether decompress found its input not to be compressed.
func plainReader(r io.Reader) bool {
	_, ok := r.(*bufio.Reader)
	return ok
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
