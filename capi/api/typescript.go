package api

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/supermachine/supermachine/core"
)

// TypeScript returns bindings/node/lib/calls.d.ts: the options and results of the calls as the Node package has them, with names in camel case,
// and a class for each error.
func TypeScript() string {
	t := typescript{written: map[reflect.Type]string{}}
	t.b.WriteString("// Made by `make abi` from the table in capi/api.\n\nimport { Image, Store, SupermachineError } from './index';\n")
	for _, c := range calls {
		t.options(pascal(c.Name)+"Options", c.Doc, c.Options)
		t.result(pascal(c.Name)+"Result", c.Result)
	}
	t.b.WriteString("\n/** A class for each error code. */\nexport namespace errors {\n")
	for _, c := range core.Codes() {
		fmt.Fprintf(&t.b, "  /** %s: %s. */\n  class %sError extends SupermachineError {}\n", c.Error(), c.Description(), pascal(c.Error()))
	}
	t.b.WriteString("}\n")
	return t.b.String()
}

// ErrorCodes returns bindings/node/lib/codes.json: the name of each code, and that of its class.
func ErrorCodes() string {
	var lines []string
	for _, c := range core.Codes() {
		lines = append(lines, fmt.Sprintf(`  {"code": %d, "name": %q, "class": "%sError"}`, int(c), c.Error(), pascal(c.Error())))
	}
	return "[\n" + strings.Join(lines, ",\n") + "\n]\n"
}

type typescript struct {
	b       strings.Builder
	written map[reflect.Type]string // by what names
}

// doc returns a field's text, with the names of other fields as this language has them.
func (t *typescript) doc(f reflect.StructField) string {
	return snake.ReplaceAllStringFunc(f.Tag.Get("doc"), func(name string) string {
		for _, c := range calls {
			if name == c.Name {
				return name
			}
		}
		return camel(name)
	})
}

var snake = regexp.MustCompile(`\b[a-z]+(_[a-z0-9]+)+\b`)

func (t *typescript) options(name, doc string, typ reflect.Type) {
	var rows strings.Builder
	for _, f := range reflect.VisibleFields(typ) {
		key := f.Tag.Get("msgpack")
		if key == "" {
			continue
		}
		mark := "?"
		if strings.Contains(f.Tag.Get("doc"), "required") {
			mark = ""
		}
		kind := t.optionKind(f.Type)
		switch {
		case key == "env":
			kind = "Record<string, string> | string[]"
		case key == "args":
			kind = "(string | Uint8Array)[]"
		case key == "store":
			kind = "Store"
		case key == "base":
			kind = "Image"
		case kind == "Buffer":
			kind = "Uint8Array | string"
		}
		fmt.Fprintf(&rows, "  /** %s */\n  %s%s: %s;\n", t.doc(f), camel(key), mark, kind)
	}
	if rows.Len() > 0 {
		fmt.Fprintf(&t.b, "\n/** %s */\nexport interface %s {\n%s}\n", doc, name, rows.String())
	}
}

// optionKind is kind for what a caller gives: of a struct only what is required must be there.
func (t *typescript) optionKind(typ reflect.Type) string {
	if typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct {
		return t.optionKind(typ.Elem()) + "[]"
	}
	if typ.Kind() != reflect.Struct {
		return t.kind(typ)
	}
	if _, ok := t.written[typ]; !ok {
		name := strings.ToUpper(typ.Name()[:1]) + typ.Name()[1:]
		t.written[typ] = name
		t.options(name, nestedDocs[typ], typ)
	}
	return t.written[typ]
}

// nestedDocs say what the structs are that options hold.
var nestedDocs = map[reflect.Type]string{
	reflect.TypeFor[chainFile](): "A file that a chain writes.",
	reflect.TypeFor[program]():   "What to run.",
}

// result writes a result's interface: what it has besides handles and file descriptors.
func (t *typescript) result(name string, typ reflect.Type) {
	if known, ok := t.written[typ]; ok {
		fmt.Fprintf(&t.b, "\nexport type %s = %s;\n", name, known)
		return
	}
	var rows strings.Builder
	for _, f := range reflect.VisibleFields(typ) {
		if key := f.Tag.Get("msgpack"); key != "" && f.Tag.Get("holds") == "" {
			fmt.Fprintf(&rows, "  /** %s */\n  %s: %s;\n", t.doc(f), camel(key), t.kind(f.Type))
		}
	}
	if rows.Len() > 0 {
		t.written[typ] = name
		fmt.Fprintf(&t.b, "\nexport interface %s {\n%s}\n", name, rows.String())
	}
}

func (t *typescript) kind(typ reflect.Type) string {
	if typ == reflect.TypeFor[guestText]() {
		return "string | Buffer"
	}
	switch kindName(typ) {
	case "str":
		return "string"
	case "bool":
		return "boolean"
	case "int", "uint":
		return "number"
	case "bin":
		return "Buffer"
	case "map":
		if _, ok := t.written[typ]; !ok {
			t.result(strings.ToUpper(typ.Name()[:1])+typ.Name()[1:], typ)
		}
		return t.written[typ]
	}
	elem := t.kind(typ.Elem())
	if strings.Contains(elem, "|") {
		elem = "(" + elem + ")"
	}
	return elem + "[]"
}

var initialisms = map[string]string{"vm": "VM", "io": "IO", "oci": "OCI"}

// pascal makes VMRun of vm_run.
func pascal(name string) string {
	var b strings.Builder
	for _, w := range strings.Split(name, "_") {
		if s, ok := initialisms[w]; ok {
			b.WriteString(s)
		} else {
			b.WriteString(strings.ToUpper(w[:1]) + w[1:])
		}
	}
	return b.String()
}

// camel makes memoryMib of memory_mib.
func camel(name string) string {
	words := strings.Split(name, "_")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}
