package core

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/snapshot"
)

// recipe is everything that a baked snapshot depends on.
type recipe struct {
	Format, Protocol int
	Arch, CPU        string
	Guest            string // GuestDigest
	Image, RootFS    string
	ImageConfig      any
	Name             string
	Command, Env     []string
	User, Dir        string
	MemoryMiB, VCPUs int
	ScratchMiB       int
	GuestPort        uint16
	Ready            string
	ReadyCommand     []string
	Warmup           [][]string
}

// fingerprint returns 64 hexadecimal digits that are the same for the same inputs and else are not.
func (b BakeSpec) fingerprint(img *Image, guest string, command []string) (string, error) {
	hv, err := openHypervisor()
	if err != nil {
		return "", err
	}
	r := recipe{
		Format: snapshot.Version, Protocol: wire.Version, Arch: runtime.GOARCH, CPU: hv.CPUDigest(), Guest: guest,
		Image: img.Digest, RootFS: img.RootFSKey, ImageConfig: img.Config,
		Name: b.Name, Command: command, Env: b.Env, User: b.User, Dir: b.Dir, MemoryMiB: b.MemoryMiB, VCPUs: b.VCPUs,
		ScratchMiB: b.ScratchMiB, GuestPort: b.GuestPort, Ready: b.Ready.String(), ReadyCommand: b.Ready.command, Warmup: b.Warmup,
	}
	j, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(j)
	return hex.EncodeToString(sum[:]), nil
}

// GuestDigest identifies the kernel and initramfs that VMs of a configuration boot, of which AssetsDir and StateDir count. Reading them is
// spared as long as they are the same files.
func GuestDigest(cfg Config) (string, error) {
	cfg, err := cfg.withDefaults("guest")
	if err != nil {
		return "", err
	}
	assets, err := FindAssets(cfg.AssetsDir)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, path := range []string{assets.Kernel, assets.Initramfs} {
		sum, err := fileDigest(cfg.StateDir, path)
		if err != nil {
			return "", err
		}
		io.WriteString(h, sum)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// settled is how long a file must not have changed for its digest to be remembered. Clocks of file systems tick some hundred times a second: a
// younger file may change again and look the same.
var settled = time.Second

// fileDigest returns the SHA-256 of a file. It is remembered in the state directory for as long as the file is the same one, since the kernel
// is too large to be read at each start.
func fileDigest(stateDir, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", &Error{Code: ErrAssets, Op: "read", Object: path, Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", &Error{Code: ErrAssets, Op: "read", Object: path, Err: err}
	}
	dir := filepath.Join(stateDir, "digests")
	known, changed := "", time.Time{}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		changed = changeTime(sys)
		known = filepath.Join(dir, fmt.Sprintf("%x-%x-%x-%x-%x", sys.Dev, sys.Ino, st.Size(), st.ModTime().UnixNano(), changed.UnixNano()))
		if b, err := os.ReadFile(known); err == nil && len(b) == 2*sha256.Size {
			return string(b), nil
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", &Error{Code: ErrAssets, Op: "read", Object: path, Err: err}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if known != "" && time.Since(changed) >= settled && os.MkdirAll(dir, 0o700) == nil { // it only saves time
		tmp := known + ".new-" + newID()
		if os.WriteFile(tmp, []byte(sum), 0o600) == nil && os.Rename(tmp, known) != nil {
			os.Remove(tmp)
		}
	}
	return sum, nil
}
