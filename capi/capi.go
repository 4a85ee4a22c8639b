// Package main is libsupermachine, built with -buildmode=c-shared. The C functions are in abi.c; they come here only through the functions
// below, once it is clear that Go may be entered. What the calls do is in package api.
package main

/*
#include <stdlib.h>
#include "../include/supermachine.h"
*/
import "C"

import (
	"unsafe"

	"github.com/supermachine/supermachine/capi/api"
	"github.com/supermachine/supermachine/core"
)

var library = api.New()

// give hands bytes to the caller, who frees them with sm_bytes_free.
func give(b []byte, out *C.sm_bytes) {
	if out == nil {
		return
	}
	out.data, out.len = nil, 0
	if len(b) > 0 {
		out.data, out.len = C.CBytes(b), C.size_t(len(b))
	}
}

// goCall makes a call; async may be NULL.
//
//export goCall
func goCall(number C.int, async *C.sm_async, handle C.uint64_t, request unsafe.Pointer, size C.size_t, out *C.sm_bytes) C.int32_t {
	options := unsafe.Slice((*byte)(request), int(size))
	if async == nil {
		code, result := library.Call(int(number), uint64(handle), options)
		give(result, out)
		return C.int32_t(code)
	}
	token, code, result := library.Start(int(number), uint64(async.queue), uint64(async.tag), uint64(handle), options)
	if async.call != nil {
		*async.call = C.uint64_t(token)
	}
	give(result, out)
	return C.int32_t(code)
}

// goStarted is the first function that is called; it returns once the runtime has come up.
//
//export goStarted
func goStarted(library *C.char) { core.LoadedFrom(C.GoString(library)) }

//export goQueueOpen
func goQueueOpen(queue *C.uint64_t, fd *C.int) C.int32_t {
	token, f, err := library.OpenQueue()
	*queue, *fd = C.uint64_t(token), C.int(f)
	return C.int32_t(api.Code(err))
}

//export goQueueNext
func goQueueNext(queue C.uint64_t, out *C.sm_completion) C.int32_t {
	c, err := library.Next(uint64(queue))
	out.tag, out.call, out.kind, out.code = C.uint64_t(c.Tag), C.uint64_t(c.Call), C.int32_t(c.Kind), C.int32_t(c.Code)
	give(c.Payload, &out.payload)
	return C.int32_t(api.Code(err))
}

//export goQueueClose
func goQueueClose(queue C.uint64_t) C.int32_t {
	return C.int32_t(api.Code(library.CloseQueue(uint64(queue))))
}

//export goCallCancel
func goCallCancel(call C.uint64_t) { library.Cancel(uint64(call)) }

//export goCallAbandon
func goCallAbandon(call C.uint64_t) { library.Abandon(uint64(call)) }

func main() {}
