package api

import (
	"context"
	"fmt"
	"runtime"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/trace"
)

type versionResult struct {
	Version string `msgpack:"version" doc:"Of the library, such as v1.2.3."`
	ABI     int    `msgpack:"abi" doc:"Of the ABI, as sm_abi_version."`
	Go      string `msgpack:"go" doc:"Of the Go toolchain that built it."`
}

type check struct {
	Name   string `msgpack:"name" doc:"What was looked at."`
	Status string `msgpack:"status" doc:"ok, warning or failed."`
	Detail string `msgpack:"detail" doc:"What was found."`
	Fix    string `msgpack:"fix" doc:"What to do about it; may be empty."`
}

type doctorResult struct {
	OK     bool    `msgpack:"ok" doc:"VMs can run here."`
	Checks []check `msgpack:"checks" doc:"A map for each: name, status (ok, warning or failed), detail, fix."`
}

type admissionOptions struct {
	Wait      bool `msgpack:"wait" doc:"A start waits for memory; else it fails."`
	MarginMiB int  `msgpack:"margin_mib" doc:"Memory that VMs leave to the host; default 128."`
	Parallel  int  `msgpack:"parallel" doc:"How many VMs are restored at the same time; the others wait. Default: twice the number of CPUs."`
	PerVMMiB  int  `msgpack:"per_vm_mib" doc:"What a restored VM is expected to need for itself; default 16."`
}

type traceEvent struct {
	Category string `msgpack:"category"`
	Object   string `msgpack:"object"`
	Step     string `msgpack:"step"`
	StartUS  int64  `msgpack:"start_us"`
	TookUS   int64  `msgpack:"took_us"`
}

func init() {
	define("version", KindNone, quick, "Says which library this is.",
		func(context.Context, *env, None, *None) (versionResult, error) {
			return versionResult{core.Version(), Version, runtime.Version()}, nil
		})
	define("doctor", KindNone, 0, "Looks at everything that this host needs to run VMs, and changes nothing.",
		func(context.Context, *env, None, *None) (doctorResult, error) {
			r := doctorResult{OK: true}
			for _, c := range core.Doctor() {
				r.OK = r.OK && c.Status != core.CheckFailed
				r.Checks = append(r.Checks, check{c.Name, string(c.Status), c.Detail, c.Fix})
			}
			return r, nil
		})
	define("metrics", KindNone, quick, "Returns what this process has done so far and has open, as text in Prometheus' format.",
		func(context.Context, *env, None, *None) (textResult, error) { return textResult{core.Metrics()}, nil })
	define("set_admission", KindNone, quick, "Changes how this process decides whether a VM may start.",
		func(_ context.Context, _ *env, _ None, o *admissionOptions) (None, error) {
			return None{}, core.SetAdmission(core.Admission{Wait: o.Wait, MarginMiB: o.MarginMiB, Parallel: o.Parallel, PerVMMiB: o.PerVMMiB})
		})
	define("trace", KindNone, 0, "Sends an event for each step of what the library does, until it is canceled.",
		func(ctx context.Context, e *env, _ None, o *struct {
			Categories []string `msgpack:"categories" doc:"Of boot, restore, snapshot, bake, exec, vsock, fs, net, pool and oci; default: all."`
		}) (None, error) {
			if e.event == nil {
				return None{}, &core.Error{Code: core.ErrInvalidArgument, Op: "trace", Err: fmt.Errorf("its events need a queue; call it asynchronously")}
			}
			categories, err := trace.ParseCategories(o.Categories...)
			if err != nil {
				return None{}, &core.Error{Code: core.ErrInvalidArgument, Op: "trace", Err: err}
			}
			defer trace.Add(func(s trace.Step) {
				e.event(traceEvent{string(s.Category), s.Object, s.Name, s.Start.Microseconds(), s.Took.Microseconds()})
			}, categories...)()
			<-ctx.Done()
			return None{}, ctx.Err()
		})
}

func parseVerify(s string) (core.Verify, error) {
	switch s {
	case "", "once":
		return core.VerifyOnce, nil
	case "always":
		return core.VerifyAlways, nil
	case "never":
		return core.VerifyNever, nil
	}
	return 0, &core.Error{Code: core.ErrInvalidArgument, Op: "read option", Object: "verify", Err: fmt.Errorf("%q is none of once, always and never", s)}
}
