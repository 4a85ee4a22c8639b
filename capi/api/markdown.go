package api

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/supermachine/supermachine/core"
)

// Markdown returns docs/abi.md: every call with its options and its result, and the error codes.
func Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# The calls of libsupermachine

This file is made by `+"`make abi`"+` from the table in capi/api. include/supermachine.h says how calls are made; this says what each takes and gives.
ABI version %d.

Options and results are msgpack maps. An option that is left out, or nil, has its default; one that is not listed is an error. A result may have
more keys in later versions. Types: int and uint are msgpack integers, str may be given as bin too, [x] is an array of x. Handles are uint.

## Calls
`, Version)
	for _, c := range calls {
		handle := "Handle: none, 0."
		switch {
		case c.Kind == KindStore:
			handle = "Handle: a store, or 0 for the user's own."
		case c.Kind != KindNone:
			handle = fmt.Sprintf("Handle: %s.", c.Kind)
		}
		where := "It runs on a thread of the library's; the caller waits, or takes the result from a queue."
		if c.Quick {
			where = "It runs on the caller's thread, unless its result comes out of a queue."
		}
		fmt.Fprintf(&b, "\n### sm_%s\n\n%s\n\n%s %s\n", c.Name, c.Doc, handle, where)
		table(&b, "option", c.Options)
		table(&b, "result", c.Result)
	}
	b.WriteString(`
## Events

Calls say which they send. A pull sends maps with event (the kind: resolved, fetch, convert or done), digest, layer, layers, done and total in bytes. A
bake sends maps with event (step) and step, one line for people. sm_trace sends maps with category, object, step, start_us and took_us.

## Errors

On an error the result is a map with code, name, message, op (what was attempted) and object (what it was attempted on); with output and console where
a guest or its workload did not come up.

| code | name | constant | |
|---|---|---|---|
`)
	for _, c := range core.Codes() {
		fmt.Fprintf(&b, "| %d | %s | SM_ERR_%s | %s |\n", int(c), c.Error(), strings.ToUpper(c.Error()), c.Description())
	}
	return b.String()
}

func table(b *strings.Builder, what string, t reflect.Type) {
	rows := ""
	for _, f := range reflect.VisibleFields(t) {
		if name := f.Tag.Get("msgpack"); name != "" {
			rows += fmt.Sprintf("| %s | %s | %s |\n", name, typeName(f), f.Tag.Get("doc"))
		}
	}
	if rows != "" {
		fmt.Fprintf(b, "\n| %s | type | |\n|---|---|---|\n%s", what, rows)
	}
}

func typeName(f reflect.StructField) string {
	if f.Tag.Get("holds") == "fd" {
		return "file descriptor"
	}
	return kindName(f.Type)
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "str"
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int64:
		return "int"
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "uint"
	case reflect.Struct:
		return "map"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bin"
		}
		return "[" + kindName(t.Elem()) + "]"
	}
	panic("no type of the ABI: " + t.String())
}
