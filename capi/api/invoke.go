package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core"
)

// OK is the code of success. All others are those of core.Code.
const OK = 0

// failure is what an error looks like in msgpack.
type failure struct {
	Code    int    `msgpack:"code"`
	Name    string `msgpack:"name"`
	Message string `msgpack:"message"`
	Op      string `msgpack:"op"`
	Object  string `msgpack:"object"`
	Output  string `msgpack:"output,omitempty"`  // of a workload that did not become ready
	Console string `msgpack:"console,omitempty"` // of a guest that did not come up
}

// encodeError returns an error's code and its map.
func encodeError(err error) (int32, []byte) {
	code := core.CodeOf(err)
	f := failure{Code: int(code), Name: code.Error(), Message: err.Error()}
	var own *core.Error
	if errors.As(err, &own) {
		f.Op, f.Object = own.Op, own.Object
	}
	var boot *core.BootError
	if errors.As(err, &boot) {
		f.Console = boot.Console
	}
	var ready *core.NotReadyError
	if errors.As(err, &ready) {
		f.Output, f.Console = ready.Output, ready.Console
	}
	b, err := marshal(f)
	if err != nil {
		return int32(core.ErrInternal), nil
	}
	return int32(code), b
}

// encode returns the code and the map of an outcome. With an error there is no result: a call that fails has released what it made.
func (l *Library) encode(result any, err error) (int32, []byte) {
	if err != nil {
		return encodeError(err)
	}
	b, err := marshal(result)
	if err != nil {
		l.drop(result)
		return encodeError(&core.Error{Code: core.ErrInternal, Op: "encode a result", Err: err})
	}
	return OK, b
}

// marshal encodes integers in as few bytes as they need: only those that a language's usual numbers may not hold take eight.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := msgpack.GetEncoder()
	defer msgpack.PutEncoder(e)
	e.Reset(&b)
	e.UseCompactInts(true)
	err := e.Encode(v)
	return b.Bytes(), err
}

// callOf returns the call that the C library has by that number.
func callOf(number int) (*Call, error) {
	if number < 0 || number >= len(calls) {
		return nil, &core.Error{Code: core.ErrInternal, Op: "call", Err: fmt.Errorf("there is no call %d", number)}
	}
	return calls[number], nil
}

// Call makes a call and waits for its end. The request is not kept.
func (l *Library) Call(number int, handle uint64, request []byte) (int32, []byte) {
	c, err := callOf(number)
	if err != nil {
		return encodeError(err)
	}
	if c.Quick {
		return l.encode(l.do(context.Background(), c, handle, request, nil))
	}
	// Not on the caller's thread: each wait of a goroutine that is bound to a thread costs tens of microseconds, and on the library's own
	// threads a write to a closed socket raises no signal.
	type outcome struct {
		result any
		err    error
	}
	ended := make(chan outcome, 1)
	go func() {
		result, err := l.do(context.Background(), c, handle, request, nil)
		ended <- outcome{result, err}
	}()
	o := <-ended
	return l.encode(o.result, o.err)
}

// Start begins a call whose outcome, and whose events before it, come out of a queue with the given tag. It returns a handle for Cancel,
// which is closed when the outcome is taken.
func (l *Library) Start(number int, queueHandle, tag, handle uint64, request []byte) (token uint64, code int32, result []byte) {
	fail := func(err error) (uint64, int32, []byte) {
		code, result := encodeError(err)
		return 0, code, result
	}
	c, err := callOf(number)
	if err != nil {
		return fail(err)
	}
	o, err := l.handles.get(queueHandle, KindQueue)
	if err != nil {
		return fail(&core.Error{Code: core.ErrInvalidHandle, Op: "call", Object: "sm_" + c.Name, Err: err})
	}
	q := o.(*Queue)
	own := append([]byte(nil), request...) // the caller's bytes are its own again when this returns
	ctx, cancel := context.WithCancel(q.ctx)
	token = l.handles.put(KindCall, &pending{q, cancel})
	if !q.begin(token) {
		cancel()
		l.handles.take(token, KindCall)
		return fail(&core.Error{Code: core.ErrInvalidHandle, Op: "call", Object: "sm_" + c.Name, Err: errClosedHandle(KindQueue)})
	}
	go func() {
		defer cancel()
		result, err := l.do(ctx, c, handle, own, func(event any) {
			if b, err := marshal(event); err == nil {
				q.event(Completion{Tag: tag, Call: token, Kind: CompletionEvent, Payload: b})
			}
		})
		end := Completion{Tag: tag, Call: token, Kind: CompletionResult, release: func() {}}
		if end.Code, end.Payload = l.encode(result, err); end.Code == OK {
			end.release = func() { l.drop(result) }
		}
		q.result(end)
	}()
	return token, OK, nil
}

// pending is a call behind a handle.
type pending struct {
	queue  *Queue
	cancel context.CancelFunc
}

// Cancel has a call end soon, with core.ErrCanceled unless it has succeeded by then. Its outcome comes out of its queue either way. A call
// that has ended, or never was, is left alone.
func (l *Library) Cancel(token uint64) {
	if o, err := l.handles.get(token, KindCall); err == nil {
		o.(*pending).cancel()
	}
}

// Abandon cancels a call, and has released what it has made or still makes: nothing of it comes out of its queue any more. What was taken
// from the queue before is the caller's.
func (l *Library) Abandon(token uint64) {
	if o, err := l.handles.take(token, KindCall); err == nil {
		o.(*pending).cancel()
		o.(*pending).queue.abandon(token)
	}
}

// Code returns an error's code, OK for nil.
func Code(err error) int32 {
	if err == nil {
		return OK
	}
	return int32(core.CodeOf(err))
}
