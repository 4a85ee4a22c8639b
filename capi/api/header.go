package api

import (
	"errors"
	"fmt"
	"strings"
)

// Where the functions begin and end in include/supermachine.h.
const (
	headerBegin = "/* The calls, from the table in capi/api. */\n"
	headerEnd   = "/* End of the calls. */\n"
)

const headerWidth = 140

// Header returns include/supermachine.h with the prototypes of all calls, and what each does.
func Header(text string) (string, error) {
	head, rest, ok := strings.Cut(text, headerBegin)
	_, tail, ok2 := strings.Cut(rest, headerEnd)
	if !ok || !ok2 {
		return "", errors.New("include/supermachine.h has no place for the calls")
	}
	var b strings.Builder
	b.WriteString(head + headerBegin)
	for _, c := range calls {
		on := "no handle (0)"
		switch {
		case c.Kind == KindStore:
			on = "store, or 0 for the user's own"
		case c.Kind != KindNone:
			on = c.Kind.String()
		}
		comment := fmt.Sprintf("%s Handle: %s.", c.Doc, on)
		if !c.Quick {
			comment += " Blocks until it is done."
		}
		fmt.Fprintf(&b, "\n/* %s */\n", strings.Join(wrapText(comment, headerWidth-6), "\n * "))
		fmt.Fprintf(&b, "SM_API int32_t sm_%s(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);\n", c.Name)
	}
	b.WriteString("\n" + headerEnd + tail)
	return b.String(), nil
}

// CallList returns capi/calls.h.
func CallList() string {
	var b strings.Builder
	b.WriteString("// The calls in the order of the table in capi/api, which this file is made from by `make abi`.\n")
	for _, c := range calls {
		fmt.Fprintf(&b, "SM_CALL(%s)\n", c.Name)
	}
	return b.String()
}

// wrapText breaks a text into lines of at most width bytes.
func wrapText(s string, width int) (lines []string) {
	line := ""
	for _, w := range strings.Fields(s) {
		if line != "" && len(line)+1+len(w) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}
