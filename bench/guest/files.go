package main

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// aligned returns n bytes as O_DIRECT wants them.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

func direct(name string, flags int) (*os.File, error) {
	return os.OpenFile(name, flags|unix.O_DIRECT, 0o600)
}

// random reads and writes random blocks of a file of 64 MiB, which it makes if it is missing.
func random(n int, name string) error {
	const size, block = 64 << 20, 4 << 10
	if _, err := os.Stat(name); err != nil {
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			return err
		}
		unix.Sync()
	}
	f, err := direct(name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := aligned(block)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 2)) // the same blocks for everyone
	start := time.Now()
	for i := range n {
		off := r.Int64N(size/block) * block
		if i%2 == 0 {
			_, err = f.ReadAt(buf, off)
		} else {
			_, err = f.WriteAt(buf, off)
		}
		if err != nil {
			return err
		}
	}
	fmt.Println(time.Since(start).Nanoseconds())
	return nil
}

func sequential(n int, name string) error {
	f, err := direct(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := aligned(1 << 20)
	if err != nil {
		return err
	}
	start := time.Now()
	for i := range n {
		if _, err := f.WriteAt(buf, int64(i)<<20); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	for i := range n {
		if _, err := f.ReadAt(buf, int64(i)<<20); err != nil {
			return err
		}
	}
	fmt.Println(time.Since(start).Nanoseconds())
	return nil
}

func readWhole(n int, name string) error {
	buf := make([]byte, 1<<20)
	for range n {
		start := time.Now()
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		f.Close()
		if err != io.EOF {
			return err
		}
		fmt.Println(time.Since(start).Nanoseconds())
	}
	return nil
}

// lookAt does what git status does to a tree that has not changed: lstat on every file, and a look into every directory.
func lookAt(n int, dir string) error {
	for range n {
		start := time.Now()
		err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if err == nil {
				_, err = e.Info()
			}
			return err
		})
		if err != nil {
			return err
		}
		fmt.Println(time.Since(start).Nanoseconds())
	}
	return nil
}
