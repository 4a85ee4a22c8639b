// Command pack writes the guest's initramfs: pack INIT > initramfs.cpio.
package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/supermachine/supermachine/guest/initramfs"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: pack INIT > ARCHIVE")
	}
	init, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	err = initramfs.Write(out, []initramfs.File{
		{Name: "init", Mode: initramfs.TypeRegular | 0o755, Data: init},
		// The kernel opens it before init runs.
		{Name: "dev/console", Mode: initramfs.TypeCharacter | 0o600, Major: 5, Minor: 1},
		{Name: "dev/null", Mode: initramfs.TypeCharacter | 0o666, Major: 1, Minor: 3},
	})
	if err != nil {
		return err
	}
	return out.Flush()
}
