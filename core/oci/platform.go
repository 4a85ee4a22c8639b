package oci

import (
	"fmt"
	"runtime"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parsePlatform parses "os/arch[/variant]"; empty means Linux on the host's architecture.
func parsePlatform(s string) (v1.Platform, error) {
	if s == "" {
		s = "linux/" + runtime.GOARCH
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return v1.Platform{}, &Error{
			Op: "parse platform", Ref: s, Kind: ErrPlatform,
			Err: fmt.Errorf("expected OS/ARCH[/VARIANT], as in linux/arm64"),
		}
	}
	p := v1.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// platformString is how platforms are written: without what hardly ever matters.
func platformString(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// defaultVariant is what an unnamed variant of an architecture means.
func defaultVariant(p v1.Platform) string {
	switch {
	case p.Variant != "":
		return p.Variant
	case p.Architecture == "arm64":
		return "v8"
	case p.Architecture == "arm":
		return "v7"
	}
	return ""
}

// fits says whether an image for have is what was asked for by want. A variant
// that was not asked for does not matter.
func fits(have, want v1.Platform) bool {
	return have.OS == want.OS && have.Architecture == want.Architecture &&
		(want.Variant == "" || defaultVariant(have) == want.Variant)
}

// choosePlatform picks the manifest for want from an index. One without a
// platform is taken if it is the only one: its config will tell.
func choosePlatform(index *v1.IndexManifest, want v1.Platform) (v1.Descriptor, error) {
	var best *v1.Descriptor
	var unnamed []*v1.Descriptor
	available := map[string]bool{}
	for i := range index.Manifests {
		d := &index.Manifests[i]
		switch {
		case d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "":
			unnamed = append(unnamed, d)
			continue
		case d.Platform.OS == "unknown": // attestations
			continue
		}
		available[platformString(*d.Platform)] = true
		if !fits(*d.Platform, want) {
			continue
		}
		// Among several variants the usual one wins, otherwise the first.
		if best == nil || defaultVariant(*d.Platform) == defaultVariant(want) && defaultVariant(*best.Platform) != defaultVariant(want) {
			best = d
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case len(available) == 0 && len(unnamed) == 1:
		return *unnamed[0], nil
	}
	return v1.Descriptor{}, platformError(want, available)
}

func platformError(want v1.Platform, available map[string]bool) error {
	names := make([]string, 0, len(available))
	for name := range available {
		names = append(names, name)
	}
	sort.Strings(names)
	return &Error{Kind: ErrPlatform, Err: &PlatformError{Want: platformString(want), Available: names}}
}
