// Package api is what libsupermachine does behind its C functions: the table of calls with their options and results, handles, the msgpack
// form of both, completion queues. It is Go alone, so that all of it can be tested without C; package capi adds the C side.
package api

import (
	"context"
	"fmt"
	"reflect"
	"runtime/debug"

	"github.com/supermachine/supermachine/core"
)

// Version is the version of the ABI: it grows with each call, option or result that is added. Nothing is ever taken away or changed in meaning.
const Version = 1

// Call is one function of the library, sm_NAME in C.
type Call struct {
	Name string
	Doc  string
	Kind Kind // of the handle that it is called on; KindNone if that must be 0
	// Quick calls run on the caller's thread, as they end within microseconds unless they have to wait for something. The others run on
	// one of the library's own.
	Quick   bool
	Options reflect.Type // a struct with a field for each option
	Result  reflect.Type // a struct with a field for each value

	takes bool // it closes the handle, whatever comes of it
	run   func(ctx context.Context, e *env, object, options any) (any, error)
}

// env is what a call gets besides its options.
type env struct {
	lib   *Library
	event func(any) // tells the caller of progress; nil if nobody listens
}

// None stands for no object, no options and no result.
type None struct{}

type flags int

const quick flags = 1

var calls []*Call

// define adds a call to the table. O is the type of the object behind the handle, Q and R are those of options and result.
func define[O, Q, R any](name string, kind Kind, f flags, doc string, run func(ctx context.Context, e *env, object O, options *Q) (R, error)) {
	calls = append(calls, &Call{
		Name: name, Doc: doc, Kind: kind, Quick: f&quick != 0, Options: reflect.TypeFor[Q](), Result: reflect.TypeFor[R](),
		run: func(ctx context.Context, e *env, object, options any) (any, error) {
			o, _ := object.(O) // None if there is no handle
			r, err := run(ctx, e, o, options.(*Q))
			return r, err
		},
	})
}

// Calls returns the table. The position of a call in it is its number in the C library.
func Calls() []*Call { return calls }

// Library is the state behind one loaded library.
type Library struct {
	handles handles
	own     ownStore
}

// New returns a library that nothing is open in.
func New() *Library {
	l := &Library{}
	l.handles.init()
	return l
}

// do makes one call: finds the object, reads the options and runs it. A panic is a bug of ours, but no reason to end the host program.
func (l *Library) do(ctx context.Context, c *Call, handle uint64, request []byte, event func(any)) (result any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &core.Error{Code: core.ErrInternal, Op: "call", Object: "sm_" + c.Name, Err: fmt.Errorf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	options, err := optionsOf(c, request)
	if err != nil {
		return nil, err
	}
	object, done, err := l.object(c, handle)
	if err != nil {
		return nil, err
	}
	defer done()
	if u, ok := object.(interface{ context() context.Context }); ok && !c.takes { // the call ends when its object is closed
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(u.context(), cancel)()
	}
	return c.run(ctx, &env{l, event}, object, options)
}

// optionsOf returns a pointer to the call's options, as the request gives them.
func optionsOf(c *Call, request []byte) (any, error) {
	options := reflect.New(c.Options)
	if err := decode(request, options.Elem()); err != nil {
		return nil, &core.Error{Code: core.ErrInvalidArgument, Op: "read the options of", Object: "sm_" + c.Name, Err: err}
	}
	return options.Interface(), nil
}

// object returns what the handle stands for, and a function to be called once it is no longer used.
func (l *Library) object(c *Call, handle uint64) (any, func(), error) {
	bad := func(err error) (any, func(), error) {
		return nil, nil, &core.Error{Code: core.ErrInvalidHandle, Op: "call", Object: "sm_" + c.Name, Err: err}
	}
	switch {
	case c.Kind == KindNone && handle != 0:
		return bad(fmt.Errorf("this call takes no handle, and must be given 0"))
	case c.Kind == KindNone:
		return None{}, func() {}, nil
	case c.Kind == KindStore && handle == 0:
		s, err := l.own.open()
		return s, func() {}, err
	}
	if c.takes {
		object, err := l.handles.take(handle, c.Kind)
		if err != nil {
			return bad(err)
		}
		return object, func() {}, nil
	}
	object, err := l.handles.get(handle, c.Kind)
	if err != nil {
		return bad(err)
	}
	if u, ok := object.(interface{ enter() (func(), bool) }); ok {
		leave, ok := u.enter()
		if !ok {
			return bad(errClosedHandle(c.Kind))
		}
		return object, leave, nil
	}
	return object, func() {}, nil
}
