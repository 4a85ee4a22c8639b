// Command cheader prints the conformance cases as a C table, with the options of each encoded.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core"
)

type testCase struct {
	Name  string         `json:"name"`
	Do    string         `json:"do"`
	With  map[string]any `json:"with"`
	Gives map[string]any `json:"gives"`
	Error string         `json:"error"`
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "cheader:", err)
		os.Exit(1)
	}
}

func run(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var cases []testCase
	if err := json.Unmarshal(b, &cases); err != nil {
		return err
	}
	for _, c := range cases {
		with := plain(c.With).(map[string]any)
		if env, ok := with["env"].(map[string]any); ok {
			var list []string
			for k, v := range env {
				list = append(list, fmt.Sprintf("%s=%s", k, v))
			}
			sort.Strings(list)
			with["env"] = list
		}
		options, err := msgpack.Marshal(with)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(core.Codes(), func(code core.Code) bool { return code.Error() == c.Error })
		code := 0
		if c.Error != "" {
			if i < 0 {
				return fmt.Errorf("%s: there is no error %s", c.Name, c.Error)
			}
			code = int(core.Codes()[i])
		}
		fmt.Printf("{%q, %q, %s, %d, %d, {", c.Name, c.Do, literal(options), len(options), code)
		gives, _ := plain(c.Gives).(map[string]any)
		for _, key := range sortedKeys(gives) {
			values, ok := gives[key].([]any)
			if !ok {
				values = []any{gives[key]}
			}
			for _, v := range values {
				switch v := v.(type) {
				case []byte:
					fmt.Printf("{%q, 's', 0, %s, %d}, ", key, literal(v), len(v))
				case string:
					fmt.Printf("{%q, 's', 0, %s, %d}, ", key, literal([]byte(v)), len(v))
				case bool:
					fmt.Printf("{%q, 'b', %d, NULL, 0}, ", key, map[bool]int{true: 1}[v])
				case int64:
					fmt.Printf("{%q, 'i', %d, NULL, 0}, ", key, v)
				default:
					return fmt.Errorf("%s: %s: what is a %T in C?", c.Name, key, v)
				}
			}
		}
		fmt.Println("{NULL, 0, 0, NULL, 0}}},")
	}
	return nil
}

// plain returns data as bytes and numbers as integers.
func plain(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		if text, ok := v["text"].(string); ok && len(v) == 1 {
			return []byte(text)
		}
		if text, ok := v["hex"].(string); ok && len(v) == 1 {
			b, _ := hex.DecodeString(text)
			return b
		}
		for k := range v {
			v[k] = plain(v[k])
		}
	case float64:
		return int64(v)
	}
	return v
}

func sortedKeys(m map[string]any) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// literal returns a C string literal of any bytes.
func literal(b []byte) string {
	s := `"`
	for _, c := range b {
		s += fmt.Sprintf(`\%03o`, c)
	}
	return s + `"`
}
