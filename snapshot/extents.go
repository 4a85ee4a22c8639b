package snapshot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/supermachine/supermachine/snapshot/memory"
)

// Extent is a run of bytes of a file, at a multiple of PageSize and as long.
type Extent = memory.Extent

// Layer is an open sparse file together with the extents of it that count.
type Layer = memory.Layer

// Extents is an ascending list of extents that do not overlap. Its JSON is a flat list of numbers in units of PageSize: for each
// extent the distance from the end of the one before, then its length.
type Extents []Extent

// MarshalJSON implements json.Marshaler.
func (l Extents) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 2+8*len(l)), '[')
	var end int64
	for i, e := range l {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, (e.Off-end)/PageSize, 10)
		b = strconv.AppendInt(append(b, ','), e.Len/PageSize, 10)
		end = e.Off + e.Len
	}
	return append(b, ']'), nil
}

// UnmarshalJSON implements json.Unmarshaler. It is a scanner of its own because a list may have millions of numbers.
func (l *Extents) UnmarshalJSON(b []byte) error {
	*l = nil
	numbers := 0
	var gap, end int64
	err := scanInts(b, func(n int64) error {
		if numbers++; numbers%2 == 1 {
			gap = n
			return nil
		}
		if len(*l) == MaxExtents {
			return fmt.Errorf("more than %d extents", MaxExtents)
		}
		// Each term is at most maxOffset, so that their sum cannot overflow.
		off, size := end+gap*PageSize, n*PageSize
		if end = off + size; end > maxOffset {
			return fmt.Errorf("extent beyond %d", int64(maxOffset))
		}
		*l = append(*l, Extent{Off: off, Len: size})
		return nil
	})
	if err == nil && numbers%2 != 0 {
		err = errors.New("odd number of numbers in a list of extents")
	}
	return err
}

const (
	maxOffset = 1 << 60
	maxNumber = maxOffset / PageSize
)

// scanInts calls f with each number of a JSON list of natural numbers. The JSON is known to be well-formed.
func scanInts(b []byte, f func(int64) error) error {
	number, digits := int64(0), false
	for i, c := range b {
		switch {
		case c >= '0' && c <= '9':
			if number = number*10 + int64(c-'0'); number > maxNumber {
				return fmt.Errorf("number beyond %d in a list of extents", int64(maxNumber))
			}
			digits = true
		case c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '[' && i == 0:
		case digits && c == ',' || c == ']' && i == len(b)-1:
			if digits {
				if err := f(number); err != nil {
					return err
				}
			}
			number, digits = 0, false
		default:
			return errors.New("a list of extents is a list of natural numbers")
		}
	}
	return nil
}

// checkExtents returns what is wrong with a list of extents of a file of size bytes.
func checkExtents(l Extents, unit, size int64) error {
	if len(l) > MaxExtents {
		return fmt.Errorf("%d extents, at most %d are possible", len(l), MaxExtents)
	}
	var next int64
	for _, e := range l {
		if e.Len <= 0 || e.Off < next || e.Off > size || e.Len > size-e.Off || e.Off%unit != 0 || e.Len%unit != 0 {
			return fmt.Errorf("extent of %d bytes at %d in a file of %d", e.Len, e.Off, size)
		}
		next = e.Off + e.Len
	}
	return nil
}

// checkCount returns an error unless there are as many checksums as the extents have chunks. The extents are known to be valid.
func checkCount(sums Checksums, l Extents) error {
	if want := chunkCount(total(l)); int64(len(sums)) != want {
		return fmt.Errorf("%d checksums instead of %d", len(sums), want)
	}
	return nil
}

// Checksums is a list of CRC-32C values. Its JSON is one string of eight hexadecimal digits for each.
type Checksums []uint32

// MarshalJSON implements json.Marshaler.
func (c Checksums) MarshalJSON() ([]byte, error) {
	raw := make([]byte, 0, 4*len(c))
	for _, s := range c {
		raw = append(raw, byte(s>>24), byte(s>>16), byte(s>>8), byte(s))
	}
	b := append(make([]byte, 0, 2+2*len(raw)), '"')
	return append(hex.AppendEncode(b, raw), '"'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *Checksums) UnmarshalJSON(b []byte) error {
	*c = nil
	if len(b) < 2 || b[0] != '"' || (len(b)-2)%8 != 0 {
		return errors.New("checksums are a string of eight digits each")
	}
	b = b[1 : len(b)-1]
	raw := make([]byte, len(b)/2)
	if _, err := hex.Decode(raw, b); err != nil {
		return errors.New("checksums are hexadecimal digits")
	}
	for ; len(raw) > 0; raw = raw[4:] {
		*c = append(*c, uint32(raw[0])<<24|uint32(raw[1])<<16|uint32(raw[2])<<8|uint32(raw[3]))
	}
	return nil
}
