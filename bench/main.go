// Command bench measures supermachine where KVM works and writes build/bench.json: for each figure its floor, measured in the same run.
// bench/run builds and runs it, in the testbed if need be.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"
)

// result is one line of bench.json. Value and floor are medians.
type result struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"`
	Ratio float64 `json:"ratio"` // value to floor: for times smaller is better, for MB/s larger
	N     int     `json:"n"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
}

type options struct {
	busybox, debian string // image references
	guest           string // the guest's half, a static program
	peerKernel      string // of the peer that has 9p
	boots, execs    int
	restores        int
	forks, dense    int
	idle            int
	bytes           int64
}

func main() {
	var o options
	var out, only string
	var add []string
	flag.StringVar(&out, "out", "build/bench.json", "`file` to write")
	flag.Func("add", "`file` with results measured elsewhere, to include; may be given more than once", func(name string) error {
		add = append(add, name)
		return nil
	})
	flag.StringVar(&only, "only", "", "measure only what has this in its name")
	flag.StringVar(&o.busybox, "busybox", "", "image for boot")
	flag.StringVar(&o.debian, "debian", "", "image for exec and streams")
	flag.StringVar(&o.guest, "guest", "build/bench/guest", "the guest's half")
	flag.StringVar(&o.peerKernel, "peer-kernel", "", "kernel with 9p, for the peer of fs")
	flag.IntVar(&o.boots, "boots", 7, "number of boots")
	flag.IntVar(&o.execs, "execs", 100, "number of execs")
	flag.IntVar(&o.restores, "restores", 30, "number of restores")
	flag.IntVar(&o.forks, "forks", 100, "number of children of a fork")
	flag.IntVar(&o.dense, "dense", 200, "number of VMs at once")
	flag.IntVar(&o.idle, "idle", 100, "number of idle VMs")
	flag.Int64Var(&o.bytes, "bytes", 64<<20, "bytes of a transfer")
	flag.Parse()
	if err := run(context.Background(), o, out, add, only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out string, add []string, only string) error {
	var results []result
	for _, name := range add {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var more []result
		if err := json.Unmarshal(b, &more); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		results = append(results, more...)
	}
	for _, b := range []struct {
		name string
		run  func(context.Context, options) ([]result, error)
	}{{"boot.agent", bootAgent}, {"exec.true", execTrue}, {"vsock.h2g vsock.g2h", vsockStreams},
		{"start.first_exec", firstExec}, {"fork.private_bytes", forkPrivate}, {"density.200", density},
		{"call", bindingCalls}, {"stream node.stall", bindingStreams}, {"idle.cpu", idleCPU},
		{"forward", forwards}, {"exec.parallel", execParallel}, {"block", blocks}, {"net.tcp", network}, {"fs", directories}} {
		if !strings.Contains(b.name, only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measure %s\n", b.name)
		r, err := b.run(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		results = append(results, r...)
	}
	printTable(results)
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

func printTable(results []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "name\tvalue\tunit\tfloor\tratio\tn\tp50\tp99\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%.3g\t%s\t%.3g\t%.2f\t%d\t%.3g\t%.3g\t\n", r.Name, r.Value, r.Unit, r.Floor, r.Ratio, r.N, r.P50, r.P99)
	}
	w.Flush()
}

// milliseconds turns samples into a result.
func milliseconds(name string, samples, floor []time.Duration) result {
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	p50, p99, f := quantile(samples, 50), quantile(samples, 99), quantile(floor, 50)
	return result{Name: name, Value: ms(p50), Unit: "ms", Floor: ms(f), Ratio: float64(p50) / float64(f), N: len(samples), P50: ms(p50), P99: ms(p99)}
}

// throughput turns the times of transfers of n bytes into a result.
func throughput(name string, n int64, samples, floor []time.Duration) result {
	rate := func(d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }
	p50, f := rate(quantile(samples, 50)), rate(quantile(floor, 50))
	return result{Name: name, Value: p50, Unit: "MB/s", Floor: f, Ratio: p50 / f, N: len(samples), P50: p50, P99: rate(quantile(samples, 99))}
}

// quantile returns the smallest sample that p percent of all do not exceed.
func quantile(samples []time.Duration, p int) time.Duration {
	s := append([]time.Duration(nil), samples...)
	sort.Slice(s, func(i, j int) bool { return s[i] < s[j] })
	return s[(len(s)*p+99)/100-1]
}
