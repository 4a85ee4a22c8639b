package api

import (
	"fmt"
	"strings"

	"github.com/supermachine/supermachine/core"
)

// Where what is made begins and ends in include/supermachine.h.
const (
	enumBegin   = "typedef enum sm_error {\n\tSM_OK = 0,\n"
	enumEnd     = "} sm_error;\n"
	headerBegin = "/* The calls, from the table in capi/api. */\n"
	headerEnd   = "/* End of the calls. */\n"
)

const headerWidth = 140

// Header returns include/supermachine.h with the codes of errors and the prototypes of all calls, and what each is.
func Header(text string) (string, error) {
	text, err := replaceBetween(text, enumBegin, enumEnd, enumCodes())
	if err != nil {
		return "", err
	}
	return replaceBetween(text, headerBegin, headerEnd, prototypes())
}

func replaceBetween(text, begin, end, by string) (string, error) {
	head, rest, ok := strings.Cut(text, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("include/supermachine.h has no place between %q and %q", begin, end)
	}
	return head + begin + by + end + tail, nil
}

func enumCodes() string {
	var b strings.Builder
	codes := core.Codes()
	for i, c := range codes {
		comma := ","
		if i == len(codes)-1 {
			comma = ""
		}
		fmt.Fprintf(&b, "\t%-31s/* %s */\n", fmt.Sprintf("SM_ERR_%s = %d%s", strings.ToUpper(c.Error()), int(c), comma), c.Description())
	}
	return b.String()
}

func prototypes() string {
	var b strings.Builder
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
	return b.String() + "\n"
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

// Files returns what is made from the tables besides the header: the text of each file.
func Files() map[string]string {
	return map[string]string{
		"docs/abi.md":                              Markdown(),
		"capi/calls.h":                             CallList(),
		"bindings/node/lib/calls.d.ts":             TypeScript(),
		"bindings/node/lib/codes.json":             ErrorCodes(),
		"bindings/ruby/lib/supermachine/errors.rb": RubyErrors(),
	}
}
