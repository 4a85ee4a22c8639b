package api

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// decode reads a msgpack map into a struct. The bytes are the caller's and may be anything: nothing is allocated for a length that is not
// there, and nothing is nested deeper than the struct is. No bytes at all stand for an empty map, and nil for an option that is not given.
func decode(data []byte, into reflect.Value) error {
	const empty = 0x80
	if len(data) == 0 || len(data) == 1 && data[0] == empty {
		return nil
	}
	r := bytes.NewReader(data)
	d := msgpack.NewDecoder(r)
	if err := structure(d, r, into); err != nil {
		return err
	}
	if r.Len() > 0 {
		return fmt.Errorf("%d bytes follow the map", r.Len())
	}
	return nil
}

// structure reads a map into a struct.
func structure(d *msgpack.Decoder, r *bytes.Reader, into reflect.Value) error {
	n, err := length(d, r, isMap, "a map")
	if err != nil {
		return err
	}
	options := fields(into.Type())
	seen := map[string]bool{}
	for range n {
		key, err := text(d, r)
		if err != nil {
			return fmt.Errorf("the name of an option: %w", err)
		}
		f, ok := options[key]
		switch {
		case !ok:
			return unknown(key, options)
		case seen[key]:
			return fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		if err := value(d, r, into.FieldByIndex(f.Index)); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

var fieldsOf sync.Map // of what fields has returned, by type

// fields returns a struct's fields by their names in msgpack.
func fields(t reflect.Type) map[string]reflect.StructField {
	if known, ok := fieldsOf.Load(t); ok {
		return known.(map[string]reflect.StructField)
	}
	all := map[string]reflect.StructField{}
	for _, f := range reflect.VisibleFields(t) {
		if name := f.Tag.Get("msgpack"); name != "" && name != ",inline" {
			all[name] = f
		}
	}
	fieldsOf.Store(t, all)
	return all
}

// unknown explains that there is no such option, and names the nearest there is.
func unknown(key string, options map[string]reflect.StructField) error {
	if len(options) == 0 {
		return fmt.Errorf("unknown option %q: there are none", key)
	}
	best, least := "", math.MaxInt
	for name := range options {
		if d := distance(key, name); d < least || d == least && name < best {
			best, least = name, d
		}
	}
	return fmt.Errorf("unknown option %q; the nearest one is %q", key, best)
}

// distance returns how many letters must be changed, added or taken away to make b of a.
func distance(a, b string) int {
	const most = 64 // of a, which may be anything
	a = a[:min(len(a), most)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			before, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, before+cost)
		}
	}
	return row[len(b)]
}

// value reads one value into a field.
func value(d *msgpack.Decoder, r *bytes.Reader, into reflect.Value) error {
	c, err := d.PeekCode()
	if err != nil {
		return errTruncated
	}
	if c == msgpcode.Nil {
		return d.DecodeNil()
	}
	switch into.Kind() {
	case reflect.String:
		s, err := text(d, r)
		into.SetString(s)
		return err
	case reflect.Bool:
		if c != msgpcode.True && c != msgpcode.False {
			return wants("true or false", c)
		}
		b, err := d.DecodeBool()
		into.SetBool(b)
		return err
	case reflect.Int, reflect.Int64:
		n, err := integer(d, c)
		into.SetInt(n)
		return err
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return unsigned(d, c, into)
	case reflect.Slice:
		return slice(d, r, into)
	case reflect.Struct:
		return structure(d, r, into)
	}
	panic("no such option: " + into.Type().String())
}

// slice reads bytes or an array.
func slice(d *msgpack.Decoder, r *bytes.Reader, into reflect.Value) error {
	if into.Type().Elem().Kind() == reflect.Uint8 {
		b, err := content(d, r)
		into.SetBytes(b)
		return err
	}
	n, err := length(d, r, isArray, "an array")
	if err != nil {
		return err
	}
	into.Set(reflect.MakeSlice(into.Type(), n, n))
	for i := range n {
		if err := value(d, r, into.Index(i)); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

var errTruncated = errors.New("the bytes end too early")

// length reads the head of a map or an array. Each element takes at least one of the bytes that are left.
func length(d *msgpack.Decoder, r *bytes.Reader, is func(byte) bool, what string) (int, error) {
	c, err := d.PeekCode()
	if err != nil {
		return 0, errTruncated
	}
	if !is(c) {
		return 0, wants(what, c)
	}
	var n int
	if isMap(c) {
		n, err = d.DecodeMapLen()
	} else {
		n, err = d.DecodeArrayLen()
	}
	if err != nil || n < 0 || n > r.Len() {
		return 0, errTruncated
	}
	return n, nil
}

// text reads a string. Bytes are as good: what a guest's program is given need not be UTF-8.
func text(d *msgpack.Decoder, r *bytes.Reader) (string, error) {
	c, err := d.PeekCode()
	if err != nil {
		return "", errTruncated
	}
	if !msgpcode.IsString(c) && !msgpcode.IsBin(c) {
		return "", wants("a string", c)
	}
	b, err := content(d, r)
	return string(b), err
}

// content reads bytes.
func content(d *msgpack.Decoder, r *bytes.Reader) ([]byte, error) {
	c, err := d.PeekCode()
	if err != nil {
		return nil, errTruncated
	}
	if !msgpcode.IsString(c) && !msgpcode.IsBin(c) {
		return nil, wants("bytes", c)
	}
	n, err := d.DecodeBytesLen()
	if err != nil || n < 0 || n > r.Len() {
		return nil, errTruncated
	}
	b := make([]byte, n)
	if err := d.ReadFull(b); err != nil {
		return nil, errTruncated
	}
	return b, nil
}

func integer(d *msgpack.Decoder, c byte) (int64, error) {
	if !isInteger(c) {
		return 0, wants("an integer", c)
	}
	if c == msgpcode.Uint64 {
		n, err := d.DecodeUint64()
		if err != nil {
			return 0, errTruncated
		}
		if n > math.MaxInt64 {
			return 0, fmt.Errorf("%d is too large", n)
		}
		return int64(n), nil
	}
	n, err := d.DecodeInt64()
	if err != nil {
		return 0, errTruncated
	}
	return n, nil
}

func unsigned(d *msgpack.Decoder, c byte, into reflect.Value) error {
	if into.Kind() == reflect.Uint64 && c == msgpcode.Uint64 { // a handle
		n, err := d.DecodeUint64()
		if err != nil {
			return errTruncated
		}
		into.SetUint(n)
		return nil
	}
	n, err := integer(d, c)
	if err != nil {
		return err
	}
	if n < 0 || into.OverflowUint(uint64(n)) {
		return fmt.Errorf("%d is out of range, 0 to %d are possible", n, uint64(math.MaxUint64)>>(64-into.Type().Bits()))
	}
	into.SetUint(uint64(n))
	return nil
}

func isMap(c byte) bool { return msgpcode.IsFixedMap(c) || c == msgpcode.Map16 || c == msgpcode.Map32 }
func isArray(c byte) bool {
	return msgpcode.IsFixedArray(c) || c == msgpcode.Array16 || c == msgpcode.Array32
}
func isInteger(c byte) bool {
	return msgpcode.IsFixedNum(c) || c >= msgpcode.Uint8 && c <= msgpcode.Uint64 || c >= msgpcode.Int8 && c <= msgpcode.Int64
}

// wants explains that a value is of the wrong type.
func wants(what string, c byte) error {
	got := "something else"
	switch {
	case c == msgpcode.Nil:
		got = "nil"
	case c == msgpcode.True || c == msgpcode.False:
		got = "a truth value"
	case isInteger(c):
		got = "an integer"
	case c == msgpcode.Float || c == msgpcode.Double:
		got = "a fraction"
	case msgpcode.IsString(c):
		got = "a string"
	case msgpcode.IsBin(c):
		got = "bytes"
	case isArray(c):
		got = "an array"
	case isMap(c):
		got = "a map"
	}
	return fmt.Errorf("%s is needed, and %s was given", what, got)
}
