package core

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// AssetsEnv names the environment variable that holds the directory of the guest's kernel and initramfs.
const AssetsEnv = "SUPERMACHINE_ASSETS"

// Assets are the files every guest boots from.
type Assets struct {
	Kernel    string // uncompressed kernel, vmlinux-ARCH
	Initramfs string // init and agent, initramfs-ARCH.cpio
}

var library string

// LoadedFrom says that this package is part of a shared library, and of which file. It is to be called before anything else.
func LoadedFrom(file string) { library = file }

// program returns the file that holds this package: the shared library, or else the executable.
func program() (string, error) {
	file := library
	if file == "" {
		var err error
		if file, err = os.Executable(); err != nil {
			return "", err
		}
	}
	return filepath.EvalSymlinks(file)
}

// FindAssets returns the guest's kernel and initramfs. It looks into dir if that is not empty, else into $SUPERMACHINE_ASSETS if that
// is set, else beside the library or executable (DIR and DIR/../share/supermachine) and in the system's share directories, and takes the
// first directory that holds both. The error (ErrAssets) names every directory it looked into.
func FindAssets(dir string) (Assets, error) {
	var dirs []string
	switch env := os.Getenv(AssetsEnv); {
	case dir != "":
		dirs = []string{dir}
	case env != "":
		dirs = []string{env}
	default:
		if file, err := program(); err == nil {
			beside := filepath.Dir(file)
			dirs = append(dirs, beside, filepath.Join(beside, "..", "share", "supermachine"))
		}
		dirs = append(dirs, "/usr/local/share/supermachine", "/usr/share/supermachine")
	}
	for _, d := range dirs {
		a := Assets{
			Kernel:    filepath.Join(d, "vmlinux-"+runtime.GOARCH),
			Initramfs: filepath.Join(d, "initramfs-"+runtime.GOARCH+".cpio"),
		}
		if isFile(a.Kernel) && isFile(a.Initramfs) {
			return a, nil
		}
	}
	return Assets{}, &Error{
		Code: ErrAssets, Op: "find the guest's kernel and initramfs", Object: "vmlinux-" + runtime.GOARCH,
		Err: fmt.Errorf("not in any of %q; set %s to the directory that holds them", dirs, AssetsEnv),
	}
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
