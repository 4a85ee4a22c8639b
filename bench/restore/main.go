// Command restore measures what bringing a saved VM back costs on the host, natively on any /dev/kvm: its guest is a few instructions long.
// The floors are measured in the same run: the bare system calls in C (floor/floor.c), a whole release, a channel.
//
//	restore [-n ROUNDS] [-floor PROGRAM] [-only TEXT] [-out FILE]
//
// It writes results in the format of build/bench.json, and none where /dev/kvm does not open.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/supermachine/supermachine/kvm"
)

// result is one element of build/bench.json.
type result struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"`
	Ratio float64 `json:"ratio"`
	N     int     `json:"n"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
}

func main() {
	n := flag.Int("n", 300, "rounds")
	floor := flag.String("floor", "build/bench/restore-floor", "`program` made of floor/floor.c")
	only := flag.String("only", "", "measure only what has this in its name")
	out := flag.String("out", "build/bench/restore.json", "`file` to write")
	flag.Parse()
	results, err := run(*n, *floor, *only)
	if err == nil {
		var b []byte
		if b, err = json.MarshalIndent(results, "", "  "); err == nil {
			err = os.WriteFile(*out, append(b, '\n'), 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/restore:", err)
		os.Exit(1)
	}
}

func run(n int, floor, only string) ([]result, error) {
	results := []result{}
	for _, a := range []struct {
		name   string
		refill bool
	}{{"pool.acquire", false}, {"pool.acquire.refill", true}} {
		if !strings.Contains(a.name, only) {
			continue
		}
		r, err := acquire(a.name, a.refill, 10*n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.name, err)
		}
		results = append(results, r)
	}
	if _, err := kvm.OpenUnchecked(); err != nil {
		fmt.Fprintf(os.Stderr, "bench/restore: the restore figures are left out: %v\n", err)
		return results, nil
	}
	b, err := newBench(floor)
	if err != nil {
		return nil, err
	}
	defer b.close()
	restores, err := b.measure(n, only)
	return append(results, restores...), err
}

// summarize turns samples into a result; the unit is "ms" or "us".
func summarize(name, unit string, samples, floor []time.Duration) result {
	in := func(d time.Duration) float64 {
		if unit == "us" {
			return float64(d) / 1e3
		}
		return float64(d) / 1e6
	}
	p50, p99, f := quantile(samples, 50), quantile(samples, 99), quantile(floor, 50)
	fmt.Fprintf(os.Stderr, "%-19s p50 %8.4g p99 %8.4g floor p50 %8.4g p99 %8.4g %s, ratios %.2f and %.2f, n %d\n",
		name, in(p50), in(p99), in(f), in(quantile(floor, 99)), unit,
		float64(p50)/float64(f), float64(p99)/float64(quantile(floor, 99)), len(samples))
	return result{Name: name, Value: in(p50), Unit: unit, Floor: in(f), Ratio: float64(p50) / float64(f), N: len(samples), P50: in(p50), P99: in(p99)}
}

// quantile returns the smallest sample that p percent of all do not exceed.
func quantile(samples []time.Duration, p int) time.Duration {
	s := slices.Sorted(slices.Values(samples))
	return s[(len(s)*p+99)/100-1]
}
