package instances

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
)

// Dial opens a client to the agent of a running VM, through the process that owns it.
func Dial(ctx context.Context, info Info) (*agent.Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", info.Socket)
	if err != nil {
		return nil, fmt.Errorf("reach VM %s: %w", info.ID, err)
	}
	return agent.NewClient(conn)
}

// powerOffTime is what a guest gets to power off once its workload is gone.
const powerOffTime = 5 * time.Second

// Stop ends a running VM, by ID, the beginning of an ID, or name, and returns when it is gone. The workload gets its stop signal and grace
// to end. A guest that does not make it, and with force every guest, is ended by killing the process that owns it.
func Stop(ctx context.Context, dir, name string, grace time.Duration, force bool) error {
	info, err := Find(dir, name)
	if err != nil {
		return err
	}
	if !force {
		if err := shutdown(ctx, dir, info, grace); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := unix.Kill(info.PID, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("stop VM %s: kill its process %d: %w", info.ID, info.PID, err)
	}
	return waitGone(ctx, dir, info.ID)
}

func shutdown(ctx context.Context, dir string, info Info, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace+powerOffTime)
	defer cancel()
	client, err := Dial(ctx, info)
	if err != nil {
		return err
	}
	defer client.Close()
	go client.Shutdown(ctx, grace) // the connection may break before the answer; what counts is that the VM goes
	return waitGone(ctx, dir, info.ID)
}

// waitGone blocks until the owner of a VM has let go of its lock.
func waitGone(ctx context.Context, dir, id string) error {
	path := filepath.Join(dir, id)
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for VM %s: %w", id, err)
	}
	free := make(chan error, 1)
	go func() {
		defer lock.Close()
		free <- unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}()
	select {
	case err := <-free:
		os.RemoveAll(path) // what an owner that was killed left
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for VM %s: %w", id, ctx.Err())
	}
}
