package api

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
)

func number(t *testing.T, name string) int {
	t.Helper()
	for i, c := range calls {
		if c.Name == name {
			return i
		}
	}
	t.Fatalf("there is no call %s", name)
	return 0
}

func pack(t *testing.T, v any) []byte {
	t.Helper()
	b, err := msgpack.Marshal(v)
	require.NoError(t, err)
	return b
}

func unpack(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, msgpack.Unmarshal(b, &m))
	return m
}

// What is made from the table is as the table is.
func TestDerivedFilesAreUpToDate(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile("../../" + name)
		require.NoError(t, err)
		return string(b)
	}
	header := read("include/supermachine.h")
	want, err := Header(header)
	require.NoError(t, err)
	require.Equal(t, want, header, "include/supermachine.h: run make abi")
	for name, text := range Files() {
		require.Equal(t, text, read(name), "%s: run make abi", name)
	}
	require.Contains(t, header, fmt.Sprintf("#define SM_ABI_VERSION %d\n", Version))

	inHeader := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^\tSM_ERR_([A-Z_]+) = (\d+)`).FindAllStringSubmatch(header, -1) {
		n, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		inHeader[strings.ToLower(m[1])] = n
	}
	inTable := map[string]int{}
	for _, c := range core.Codes() {
		inTable[c.Error()] = int(c)
	}
	require.Equal(t, inTable, inHeader, "the header's error codes")
}

func TestEveryCallSaysWhatItDoes(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range calls {
		require.False(t, seen[c.Name], "%s is there twice", c.Name)
		seen[c.Name] = true
		require.NotEmpty(t, c.Doc, c.Name)
		for name, f := range fields(c.Options) {
			require.NotEmpty(t, f.Tag.Get("doc"), "%s: option %s", c.Name, name)
		}
		for name, f := range fields(c.Result) {
			require.NotEmpty(t, f.Tag.Get("doc"), "%s: result %s", c.Name, name)
		}
		// The keys are those of the fields: none of an embedded struct hides another.
		var keys, names []string
		for k := range unpack(t, pack(t, reflect.Zero(c.Result).Interface())) {
			keys = append(keys, k)
		}
		for name := range fields(c.Result) {
			names = append(names, name)
		}
		require.ElementsMatch(t, names, keys, c.Name)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	l := New()
	for _, c := range []struct {
		name    string
		request []byte
		want    string
	}{
		{"unknown, near another", pack(t, map[string]any{"direction": "x"}), `unknown option "direction"; the nearest one is "dir"`},
		{"of another type", pack(t, map[string]any{"dir": 5}), "dir: a string is needed, and an integer was given"},
		{"of another type still", pack(t, map[string]any{"dir": []string{"x"}}), "dir: a string is needed, and an array was given"},
		{"no map", pack(t, []string{"dir"}), "a map is needed, and an array was given"},
		{"twice", []byte("\x82\xa3dir\xa1x\xa3dir\xa1y"), "dir is given twice"},
		{"more than a map", []byte("\x80\x80"), "1 bytes follow the map"},
		{"truncated", []byte("\x81\xa3di"), "the bytes end too early"},
		{"a length that is not there", []byte("\xdf\xff\xff\xff\xff"), "the bytes end too early"},
		{"a string that is not there", []byte("\x81\xdb\xff\xff\xff\xff"), "the bytes end too early"},
		{"an extension", []byte("\x81\xa3dir\xd4\x01\x01"), "something else was given"},
	} {
		code, result := l.Call(number(t, "store_open"), 0, c.request)
		require.Equal(t, int32(core.ErrInvalidArgument), code, c.name)
		require.Contains(t, unpack(t, result)["message"], c.want, c.name)
	}
}

func TestNumbersOutOfRange(t *testing.T) {
	for value, want := range map[any]string{
		int64(-1): "-1 is out of range, 0 to 65535 are possible", 65536: "65536 is out of range", uint64(1) << 63: "too large", 1.5: "a fraction was given",
	} {
		_, err := optionsOf(calls[number(t, "image_from_oci")], pack(t, map[string]any{"guest_port": value}))
		require.ErrorContains(t, err, want)
	}
	o, err := optionsOf(calls[number(t, "image_from_oci")],
		pack(t, map[string]any{"guest_port": nil, "warmup": [][]string{{"a", "b"}, {}}, "env": []any{[]byte("A=\xff")}}))
	require.NoError(t, err)
	require.Equal(t, &bakeOptions{Warmup: [][]string{{"a", "b"}, {}}, Env: []string{"A=\xff"}}, o)
}

func TestHandlesOfAllWrongSorts(t *testing.T) {
	l := New()
	queue, _, err := l.OpenQueue()
	require.NoError(t, err)
	info := number(t, "vm_info")
	for handle, want := range map[uint64]string{
		0:                          "0 was given",
		5:                          "no handle",
		^uint64(0):                 "no handle",
		queue:                      "a handle of a vm is needed, and one of a queue was given",
		uint64(KindVM)<<56 | 1<<50: "closed",
	} {
		code, result := l.Call(info, handle, nil)
		require.Equal(t, int32(core.ErrInvalidHandle), code)
		require.Contains(t, unpack(t, result)["message"], want)
	}
	code, _ := l.Call(number(t, "version"), queue, nil)
	require.Equal(t, int32(core.ErrInvalidHandle), code, "a handle where none belongs")
	require.NoError(t, l.CloseQueue(queue))
	require.ErrorIs(t, l.CloseQueue(queue), core.ErrInvalidHandle)
	_, err = l.Next(queue)
	require.ErrorIs(t, err, core.ErrInvalidHandle)
	_, code, _ = l.Start(number(t, "version"), queue, 1, 0, nil)
	require.Equal(t, int32(core.ErrInvalidHandle), code)
	code, _ = l.Call(len(calls), 0, nil)
	require.Equal(t, int32(core.ErrInternal), code)
}

// wait blocks until the queue's descriptor is readable, and takes an item.
func wait(t *testing.T, l *Library, queue uint64, fd int) Completion {
	t.Helper()
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	require.NoError(t, err)
	c, err := l.Next(queue)
	require.NoError(t, err)
	return c
}

func readable(t *testing.T, fd int) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
	return n == 1
}

func TestResultsComeOutOfTheQueue(t *testing.T) {
	l := New()
	queue, fd, err := l.OpenQueue()
	require.NoError(t, err)
	defer l.CloseQueue(queue)
	c, err := l.Next(queue)
	require.NoError(t, err)
	require.EqualValues(t, CompletionNone, c.Kind)
	const n = 100
	started := map[uint64]uint64{} // tag to call
	for i := range uint64(n) {
		token, code, _ := l.Start(number(t, "version"), queue, i, 0, nil)
		require.EqualValues(t, OK, code)
		started[i] = token
	}
	for range n {
		c := wait(t, l, queue, fd)
		require.EqualValues(t, CompletionResult, c.Kind)
		require.EqualValues(t, OK, c.Code)
		require.Equal(t, started[c.Tag], c.Call)
		delete(started, c.Tag)
		require.EqualValues(t, Version, unpack(t, c.Payload)["abi"])
	}
	require.Empty(t, started)
	require.False(t, readable(t, fd))
}

func TestCanceledCallsEnd(t *testing.T) {
	l := New()
	queue, fd, err := l.OpenQueue()
	require.NoError(t, err)
	defer l.CloseQueue(queue)
	token, code, _ := l.Start(number(t, "trace"), queue, 7, 0, nil)
	require.EqualValues(t, OK, code)
	l.Cancel(token)
	l.Cancel(token)
	c := wait(t, l, queue, fd)
	require.Equal(t, int32(core.ErrCanceled), c.Code)
	require.EqualValues(t, 7, c.Tag)
	l.Cancel(token)
	require.False(t, readable(t, fd))
}

// testObject stands for a VM or another object that holds something.
type testObject struct{ closed chan struct{} }

func (o testObject) closeHandle(context.Context) error { close(o.closed); return nil }

type testResult struct {
	Exec uint64 `msgpack:"exec" holds:"handle" doc:"A handle."`
	FD   int    `msgpack:"fd" holds:"fd" doc:"A descriptor."`
}

func TestResultsThatNobodyTakesAreReleased(t *testing.T) {
	defer func(all []*Call) { calls = all }(calls)
	objects := make(chan testObject, 2)
	fds := make(chan int, 2)
	gate := make(chan struct{}, 1)
	define("test", KindNone, 0, "Makes something.", func(ctx context.Context, e *env, _ None, _ *None) (testResult, error) {
		o := testObject{make(chan struct{})}
		conn, fd, err := socketPair()
		if err != nil {
			return testResult{}, err
		}
		conn.Close()
		objects <- o
		fds <- fd
		<-gate
		return testResult{e.lib.handles.put(KindExec, o), fd}, nil
	})
	for name, closeWhen := range map[string]func(l *Library, queue, call uint64, fd int){
		"in the queue": func(l *Library, queue, call uint64, fd int) {
			gate <- struct{}{}
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
			require.NoError(t, l.CloseQueue(queue))
		},
		"still to come": func(l *Library, queue, call uint64, fd int) {
			require.NoError(t, l.CloseQueue(queue))
			gate <- struct{}{}
		},
		"abandoned in the queue": func(l *Library, queue, call uint64, fd int) {
			gate <- struct{}{}
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
			l.Abandon(call)
			require.False(t, readable(t, fd))
			l.Abandon(call)
			require.NoError(t, l.CloseQueue(queue))
		},
		"abandoned before": func(l *Library, queue, call uint64, fd int) {
			l.Abandon(call)
			gate <- struct{}{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := New()
			queue, fd, err := l.OpenQueue()
			require.NoError(t, err)
			call, code, _ := l.Start(len(calls)-1, queue, 0, 0, nil)
			require.EqualValues(t, OK, code)
			o, held := <-objects, <-fds
			closeWhen(l, queue, call, fd)
			<-o.closed
			require.Eventually(t, func() bool {
				_, err := unix.FcntlInt(uintptr(held), unix.F_GETFD, 0)
				return err == unix.EBADF
			}, 10e9, 1e6)
			l.CloseQueue(queue)
			require.Empty(t, l.handles.open)
		})
	}
}

// The zero value of a result holds descriptor 0, which is the program's.
func TestFailuresCloseNothing(t *testing.T) {
	defer func(all []*Call) { calls = all }(calls)
	define("test", KindNone, quick, "Fails.", func(context.Context, *env, None, *None) (testResult, error) { return testResult{}, context.Canceled })
	_, err := unix.FcntlInt(0, unix.F_GETFD, 0)
	require.NoError(t, err)
	l := New()
	code, _ := l.Call(len(calls)-1, 0, nil)
	require.Equal(t, int32(core.ErrCanceled), code)
	queue, fd, err := l.OpenQueue()
	require.NoError(t, err)
	_, code, _ = l.Start(len(calls)-1, queue, 0, 0, nil)
	require.EqualValues(t, OK, code)
	require.Equal(t, int32(core.ErrCanceled), wait(t, l, queue, fd).Code)
	require.NoError(t, l.CloseQueue(queue))
	_, err = unix.FcntlInt(0, unix.F_GETFD, 0)
	require.NoError(t, err)
}

func TestAPanicIsAnError(t *testing.T) {
	defer func(all []*Call) { calls = all }(calls)
	define("test", KindNone, quick, "Panics.", func(context.Context, *env, None, *None) (None, error) { panic("at the disco") })
	code, result := New().Call(len(calls)-1, 0, nil)
	require.Equal(t, int32(core.ErrInternal), code)
	require.Contains(t, unpack(t, result)["message"], "at the disco")
}

func TestUseReleasesAfterTheLastCall(t *testing.T) {
	released := make(chan struct{})
	u := newUse(func() { close(released) })
	leave, ok := u.enter()
	require.True(t, ok)
	u.close()
	require.Error(t, u.context().Err(), "the call is told to end")
	select {
	case <-released:
		t.Fatal("released under a call")
	default:
	}
	_, ok = u.enter()
	require.False(t, ok)
	leave()
	<-released
}

func TestManyThreads(t *testing.T) {
	l := New()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 100 {
				queue, _, err := l.OpenQueue()
				if err != nil {
					t.Error(err)
					return
				}
				l.Start(number(t, "version"), queue, 0, 0, nil)
				l.Call(number(t, "version"), 0, nil)
				l.Call(number(t, "vm_info"), queue, nil)
				if err := l.CloseQueue(queue); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzOptions(f *testing.F) {
	for _, s := range []string{"", "\x80", "\xc0", "\x81\xa3ref\xa1x", "\x81\xa6warmup\x92\x91\xa1a\x90", "\xdf\xff\xff\xff\xff", "\x81\xa6warmup\xdd\x00\xff\xff\xff", "\x81\xa3env\x91\xc4\x01\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, c := range calls {
			optionsOf(c, data)
		}
	})
}

// What a call costs that does next to nothing.
func BenchmarkQuickCall(b *testing.B) {
	l := New()
	n := slices.IndexFunc(calls, func(c *Call) bool { return c.Name == "version" })
	b.ReportAllocs()
	for b.Loop() {
		l.Call(n, 0, []byte{0x80})
	}
}
