// Command hello runs one program in a new VM: go run ./examples/hello IMAGE PROGRAM [ARG…]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/supermachine/supermachine/core"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: hello IMAGE PROGRAM [ARG…]")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2:]); err != nil {
		if errors.Is(err, core.ErrNoVirtualization) {
			fmt.Fprintln(os.Stderr, "this host cannot run VMs; `supermachine doctor` tells why")
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, image string, program []string) error {
	store, err := core.OpenImages("")
	if err != nil {
		return err
	}
	img, err := store.Pull(ctx, image, core.PullOptions{})
	if err != nil {
		return err
	}
	vm, err := core.Start(ctx, img, core.Config{})
	if err != nil {
		return err
	}
	defer vm.Close()
	out, err := vm.Run(ctx, core.Exec{Args: program})
	if err != nil {
		return err
	}
	fmt.Printf("%s%s", out.Stdout, out.Stderr)
	fmt.Printf("exit status %d after %v\n", out.Code, out.Duration)
	return nil
}
