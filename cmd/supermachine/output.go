package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// printJSON writes v as indented JSON; an empty list is [], not null.
func printJSON[T any](w io.Writer, list []T) error {
	if list == nil {
		list = []T{}
	}
	return printObject(w, list)
}

// printObject writes v as indented JSON.
func printObject(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printTable writes rows under a header, in columns.
func printTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// ago describes a point in the past, such as "3 minutes ago".
func ago(t time.Time) string {
	if t.IsZero() || t.Year() < 1980 {
		return "-"
	}
	d := time.Since(t)
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int(d / u.unit); n > 0 {
			s := fmt.Sprintf("%d %s", n, u.name)
			if n > 1 {
				s += "s"
			}
			return s + " ago"
		}
	}
	return "now"
}

// size describes a number of bytes, such as "43.7 MB".
func size(n int64) string {
	for _, u := range []struct {
		unit float64
		name string
	}{{1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if float64(n) >= u.unit {
			return fmt.Sprintf("%.1f %s", float64(n)/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func shortDigest(d string) string { return shortID(strings.TrimPrefix(d, "sha256:")) }

// shortID is as much of a long ID as people need.
func shortID(id string) string { return id[:min(len(id), 12)] }
