package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent/wire"
)

func encodeProgram(t testing.TB, p *Program) []byte {
	var b bytes.Buffer
	w := wire.NewRecordWriter(&b)
	require.NoError(t, w.Write(p))
	require.NoError(t, w.Flush())
	return b.Bytes()
}

func TestADetachedExecIsDoneAtOnce(t *testing.T) {
	c, g := connect(t)
	req := ExecRequest{Args: []string{"x"}, Limits: []Rlimit{{Name: "core", Soft: 1, Hard: Unlimited}}, Detach: true, OpenStdin: true}
	started := later(func() error {
		p, err := c.Exec(testContext(t), req)
		if err != nil {
			return err
		}
		require.EqualValues(t, 9, p.ID())
		return wait(p)
	})
	id, got := g.request()
	require.Equal(t, wire.Request{Exec: &wire.Exec{Args: []string{"x"}, Limits: req.Limits, Detach: true, Stdin: true}}, got)
	g.send(wire.TypeReply, id, 0, wire.Reply{PID: 7, ID: 9})
	g.send(wire.TypeResult, id, 0, wire.Result{Detached: true})
	require.ErrorIs(t, <-started, ErrDetached)
}

// An agent that does not know limits must not run a program without them.
func TestAnAttachment(t *testing.T) {
	c, g := connect(t)
	var out, errs bytes.Buffer
	statuses := make(chan ExitStatus, 1)
	attached := later(func() error {
		p, err := c.Attach(testContext(t), 9, AttachRequest{Stdout: &out, Stderr: &errs})
		if err != nil {
			return err
		}
		st, err := p.Wait()
		statuses <- st
		return err
	})
	id, got := g.request()
	require.Equal(t, wire.Request{Attach: &wire.Attach{ID: 9}}, got)
	g.send(wire.TypeReply, id, 0, wire.Reply{PID: 7, ID: 9})
	g.send(wire.TypeData, id, wire.ChannelErr, []byte("err"))
	g.send(wire.TypeData, id, wire.ChannelOut, []byte("out"))
	g.send(wire.TypeResult, id, 0, wire.Result{Code: 3, Lost: -5})
	require.NoError(t, <-attached)
	require.Equal(t, "out err", out.String()+" "+errs.String())
	st := <-statuses
	require.Equal(t, 3, st.Code)
	require.Zero(t, st.Lost, "a guest says what it likes")

	for _, piped := range []AttachRequest{{Pipes: true}, {Stdin: strings.NewReader("")}} {
		attached = later(func() error { _, err := c.Attach(testContext(t), 9, piped); return err })
		id, got = g.request()
		require.True(t, got.Attach.Stdin)
		g.send(wire.TypeResult, id, 0, wire.Result{Error: &wire.Error{Kind: wire.KindNotFound, Message: "no"}})
		var e *Error
		require.ErrorAs(t, <-attached, &e)
	}
}

func TestAListOfPrograms(t *testing.T) {
	c, g := connect(t)
	type list struct {
		all  []Program
		more bool
		err  error
	}
	lists := make(chan list, 1)
	ask := func() uint32 {
		go func() {
			all, more, err := c.Programs(testContext(t))
			lists <- list{all, more, err}
		}()
		id, req := g.request()
		require.NotNil(t, req.List)
		return id
	}
	id := ask()
	body := append(encodeProgram(t, &Program{ID: 1, Args: []string{"a\x1b"}}), encodeProgram(t, &Program{ID: 2, Ended: true, Code: 7})...)
	g.send(wire.TypeReply, id, 0, wire.Reply{})
	g.send(wire.TypeData, id, wire.ChannelOut, body[:5])
	g.send(wire.TypeData, id, wire.ChannelOut, body[5:])
	g.send(wire.TypeEOF, id, wire.ChannelOut, []byte{})
	g.send(wire.TypeResult, id, 0, wire.Result{Truncated: true})
	got := <-lists
	require.NoError(t, got.err)
	require.True(t, got.more)
	require.Len(t, got.all, 2)
	require.Equal(t, []string{"a\uFFFD"}, got.all[0].Args)
	require.Equal(t, 7, got.all[1].Code)

	for name, broken := range map[string][]byte{
		"long":    {0, 1, 0, 0},
		"cut":     body[:7],
		"garbage": {0, 0, 0, 1, 0xc1},
		"nested":  append([]byte{0, 0, 0x20, 0}, bytes.Repeat([]byte{0x91}, 8<<10)...),
	} {
		id := ask()
		g.send(wire.TypeData, id, wire.ChannelOut, broken)
		g.send(wire.TypeEOF, id, wire.ChannelOut, []byte{})
		require.Equal(t, wire.TypeAbandon, g.next().Type)
		err := (<-lists).err
		require.True(t, errors.Is(err, wire.ErrProtocol) || errors.Is(err, io.ErrUnexpectedEOF), name)
	}
	id = ask()
	g.send(wire.TypeResult, id, 0, wire.Result{Error: &wire.Error{Kind: wire.KindInvalid, Message: "old"}})
	var e *Error
	require.ErrorAs(t, (<-lists).err, &e)

	id = ask() // without an end
	many := bytes.Repeat(encodeProgram(t, &Program{}), 8)
	go func() {
		for {
			if _, err := g.conn.Write(encode(t, wire.TypeData, id, wire.ChannelOut, many)); err != nil {
				return
			}
		}
	}()
	go func() {
		for {
			if _, err := g.r.Read(); err != nil {
				return
			}
		}
	}()
	require.ErrorIs(t, (<-lists).err, wire.ErrProtocol)
}

func TestDetachingIsARequestOfItsOwn(t *testing.T) {
	c, g := connect(t)
	procs := make(chan *Process, 1)
	ended := later(func() error {
		p, err := c.Exec(testContext(t), ExecRequest{Args: []string{"x"}})
		if err != nil {
			return err
		}
		procs <- p
		return wait(p)
	})
	id, _ := g.request()
	g.send(wire.TypeReply, id, 0, wire.Reply{PID: 7, ID: 9})
	p := <-procs
	detached := later(func() error { return p.Detach(testContext(t)) })
	request, got := g.request()
	require.Equal(t, wire.Request{Detach: &wire.Detach{ID: 9}}, got)
	g.send(wire.TypeResult, id, 0, wire.Result{Detached: true})
	g.answer(request)
	require.NoError(t, <-detached)
	require.ErrorIs(t, <-ended, ErrDetached)
	require.ErrorIs(t, p.Kill(), ErrDetached)
}

func TestOutputIsCapped(t *testing.T) {
	c, g := connect(t)
	outputs := make(chan Output, 1)
	run := func(most int64) <-chan error {
		return later(func() error {
			out, err := c.Run(testContext(t), ExecRequest{Args: []string{"x"}, MaxOutput: most})
			outputs <- out
			return err
		})
	}
	done := run(4)
	id, _ := g.request()
	g.send(wire.TypeReply, id, 0, wire.Reply{ID: 1})
	for _, s := range []string{"abc", "def", "ghi"} {
		g.send(wire.TypeData, id, wire.ChannelOut, []byte(s))
	}
	g.send(wire.TypeData, id, wire.ChannelErr, []byte("four"))
	g.send(wire.TypeResult, id, 0, wire.Result{Code: 2})
	require.NoError(t, <-done)
	out := <-outputs
	require.Equal(t, "abcd four", string(out.Stdout)+" "+string(out.Stderr))
	require.True(t, out.StdoutTruncated)
	require.False(t, out.StderrTruncated)
	require.EqualValues(t, 9, out.StdoutBytes)
	require.EqualValues(t, 4, out.StderrBytes)
	require.Equal(t, 2, out.Code)

	var e *Error
	require.ErrorAs(t, <-run(-1), &e)
	require.Equal(t, wire.KindInvalid, e.Kind)
}

func TestACollectorWithoutALimitOfItsOwn(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &collector{full: cancel}
	chunk := make([]byte, 1<<20)
	for range MaxOutput / len(chunk) {
		_, err := c.Write(chunk)
		require.NoError(t, err)
	}
	require.NoError(t, ctx.Err())
	_, err := c.Write(chunk[:1])
	require.ErrorIs(t, err, ErrOutputTooLarge)
	require.ErrorIs(t, context.Cause(ctx), ErrOutputTooLarge)
	require.Equal(t, MaxOutput, c.b.Len())
}
