package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5"
)

// MaxRecord is the most bytes of a record. Records follow one another on a channel, each a 4-byte big-endian length and that many bytes of msgpack.
const MaxRecord = 64 << 10

// RecordWriter writes records, several in one piece.
type RecordWriter struct{ w *bufio.Writer }

// NewRecordWriter returns a RecordWriter to w.
func NewRecordWriter(w io.Writer) *RecordWriter { return &RecordWriter{bufio.NewWriterSize(w, 32<<10)} }

// Write adds a record. One that is larger than MaxRecord is ErrTooLarge.
func (w *RecordWriter) Write(v any) error {
	b, err := msgpack.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxRecord {
		return fmt.Errorf("%w: a record of %d bytes, at most %d are possible", ErrTooLarge, len(b), MaxRecord)
	}
	var header [4]byte
	binary.BigEndian.PutUint32(header[:], uint32(len(b)))
	w.w.Write(header[:]) // an error comes again
	_, err = w.w.Write(b)
	return err
}

// Flush sends what was written.
func (w *RecordWriter) Flush() error { return w.w.Flush() }

// RecordReader reads records.
type RecordReader struct {
	r   *bufio.Reader
	buf []byte
}

// NewRecordReader returns a RecordReader over r.
func NewRecordReader(r io.Reader) *RecordReader {
	return &RecordReader{r: bufio.NewReaderSize(r, 16<<10)}
}

// Read decodes the next record; io.EOF means that there is none. Unknown keys are ignored.
func (r *RecordReader) Read(into any) error {
	var header [4]byte
	if _, err := io.ReadFull(r.r, header[:]); err != nil {
		return cutOff(err, io.EOF)
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > MaxRecord {
		return fmt.Errorf("%w: a record of %d bytes, at most %d are allowed", ErrProtocol, n, MaxRecord)
	}
	if int(n) > cap(r.buf) {
		r.buf = make([]byte, n)
	}
	b := r.buf[:n]
	if _, err := io.ReadFull(r.r, b); err != nil {
		return cutOff(err, io.ErrUnexpectedEOF)
	}
	if err := unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: record: %v", ErrProtocol, err)
	}
	return nil
}

// cutOff makes an end inside a record the peer's fault.
func cutOff(err, end error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF && end != io.EOF {
		return fmt.Errorf("%w: a record is cut off", ErrProtocol)
	}
	return err
}
