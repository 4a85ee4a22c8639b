// The addon of supermachine-core: loads libsupermachine, makes calls, and hands what comes out of a completion queue to JavaScript. Nothing here
// waits: what takes long comes out of the queue, whose file descriptor the event loop watches.
#define _GNU_SOURCE
#define NAPI_VERSION 8
#include <dlfcn.h>
#include <node_api.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "supermachine.h"

typedef int32_t (*call_function)(const sm_async *, uint64_t, const void *, size_t, sm_bytes *);

// The library, which all threads of the process share; it is loaded by the first.
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static struct {
	void *handle;
	int32_t (*abi_version)(void);
	void (*bytes_free)(sm_bytes *);
	int32_t (*queue_open)(uint64_t *, int *);
	int32_t (*queue_next)(uint64_t, sm_completion *);
	int32_t (*queue_close)(uint64_t);
	int32_t (*call_abandon)(uint64_t);
} sm;

// An object of the library's that JavaScript has.
typedef struct held {
	struct held *next, **link;
	call_function close;
	uint64_t handle;
} held;

// What one environment has, the main thread's or a worker's.
typedef struct {
	napi_env env;
	uint64_t queue;
	uv_poll_t *poll; // NULL until open, and once it is closed
	napi_ref on_completion;
	napi_async_context context;
	napi_async_cleanup_hook_handle cleanup;
	uint32_t pending; // calls whose end has not come: they keep the event loop alive
	bool worker;
	held *held;
} instance;

#define CHECK(call)                                                        \
	do {                                                                   \
		if ((call) != napi_ok) {                                           \
			const napi_extended_error_info *info_;                         \
			napi_get_last_error_info(env, &info_);                         \
			bool thrown_;                                                  \
			napi_is_exception_pending(env, &thrown_);                      \
			if (!thrown_)                                                  \
				napi_throw_error(env, NULL, info_->error_message != NULL ? info_->error_message : #call); \
			return NULL;                                                   \
		}                                                                  \
	} while (0)

static void free_result(napi_env env, void *data, void *hint) {
	(void)env, (void)hint;
	sm_bytes b = {data, 1};
	sm.bytes_free(&b);
}

// Gives bytes of the library's to JavaScript. Small ones are copied, as that is cheaper than a finalizer.
static napi_status to_buffer(napi_env env, sm_bytes *b, napi_value *out) {
	napi_status status;
	if (b->len < 65536 || napi_create_external_buffer(env, b->len, (void *)b->data, free_result, NULL, out) != napi_ok) {
		status = napi_create_buffer_copy(env, b->len, b->data, NULL, out);
		sm.bytes_free(b);
		return status;
	}
	return napi_ok;
}

// Has libuv keep its handler of SIGCHLD for good. Go cannot block that signal on its threads, which may run on stacks of a few KiB; at load its
// runtime makes the handlers that it finds use a stack of their own (SA_ONSTACK), but one that libuv installs later would not. The loop of this
// handle never runs: what is written to its pipe fills it, and is dropped from then on.
static void never(uv_signal_t *watcher, int signal) { (void)watcher, (void)signal; }

static int keep_sigchld(void) {
	static uv_loop_t loop;
	static uv_signal_t watcher;
	if (uv_loop_init(&loop) != 0 || uv_signal_init(&loop, &watcher) != 0)
		return -1;
	return uv_signal_start(&watcher, never, SIGCHLD);
}

static const char *load_library(const char *path) {
	if (sm.handle != NULL)
		return NULL;
	if (keep_sigchld() != 0)
		return "SIGCHLD cannot be watched";
	void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL)
		return dlerror();
	const struct {
		const char *name;
		void *to;
	} functions[] = {
		{"sm_abi_version", &sm.abi_version}, {"sm_bytes_free", &sm.bytes_free}, {"sm_queue_open", &sm.queue_open},
		{"sm_queue_next", &sm.queue_next},   {"sm_queue_close", &sm.queue_close}, {"sm_call_abandon", &sm.call_abandon},
	};
	for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
		void *f = dlsym(handle, functions[i].name);
		if (f == NULL)
			return "it is not libsupermachine, or an older one";
		memcpy(functions[i].to, &f, sizeof f);
	}
	sm.handle = handle;
	return NULL;
}

// load(path): loads the library, unless another thread has, and returns the version of its ABI.
static napi_value load(napi_env env, napi_callback_info info) {
	size_t argc = 1;
	napi_value argv[1], out;
	char path[4096];
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_string_utf8(env, argv[0], path, sizeof path, NULL));
	pthread_mutex_lock(&loading);
	const char *error = load_library(path);
	pthread_mutex_unlock(&loading);
	if (error != NULL) {
		napi_throw_error(env, "ERR_DLOPEN_FAILED", error);
		return NULL;
	}
	CHECK(napi_create_int32(env, sm.abi_version(), &out));
	return out;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
	(void)status, (void)events;
	instance *in = poll->data;
	napi_env env = in->env;
	napi_handle_scope scope;
	if (napi_open_handle_scope(env, &scope) != napi_ok)
		return;
	napi_value callback, receiver;
	napi_get_reference_value(env, in->on_completion, &callback);
	napi_get_global(env, &receiver);
	sm_completion c;
	// A batch, so that a flood of events does not hold the loop up.
	for (int i = 0; i < 64 && in->poll != NULL && sm.queue_next(in->queue, &c) == SM_OK && c.kind != SM_COMPLETION_NONE; i++) {
		if (c.kind == SM_COMPLETION_RESULT && --in->pending == 0)
			uv_unref((uv_handle_t *)poll);
		napi_handle_scope inner;
		napi_value argv[4], ignored;
		if (napi_open_handle_scope(env, &inner) != napi_ok)
			return;
		napi_create_double(env, (double)c.tag, &argv[0]);
		napi_create_int32(env, c.kind, &argv[1]);
		napi_create_int32(env, c.code, &argv[2]);
		if (to_buffer(env, &c.payload, &argv[3]) == napi_ok && napi_make_callback(env, in->context, receiver, callback, 4, argv, &ignored) == napi_pending_exception) {
			napi_value error;
			napi_get_and_clear_last_exception(env, &error);
			napi_fatal_exception(env, error);
		}
		napi_close_handle_scope(env, inner);
	}
	napi_close_handle_scope(env, scope);
}

static void on_closed(uv_handle_t *h) {
	instance *in = h->data;
	free(h);
	napi_remove_async_cleanup_hook(in->cleanup);
	free(in);
}

// The environment ends. What a worker still has is closed, as nobody else can; the main thread's goes with the process.
static void close_instance(napi_async_cleanup_hook_handle hook, void *data) {
	(void)hook;
	instance *in = data;
	if (in->poll == NULL) {
		napi_remove_async_cleanup_hook(in->cleanup);
		free(in);
		return;
	}
	uv_poll_stop(in->poll);
	sm.queue_close(in->queue); // calls that still run are canceled
	for (held *h = in->held, *next; h != NULL; h = next) {
		next = h->next;
		if (in->worker) {
			sm_bytes none = {NULL, 0};
			h->close(NULL, h->handle, NULL, 0, &none);
			sm.bytes_free(&none);
		}
		h->link = NULL; // its finalizer frees it
	}
	in->held = NULL;
	uv_poll_t *poll = in->poll;
	in->poll = NULL;
	uv_close((uv_handle_t *)poll, on_closed);
}

static instance *own(napi_env env) {
	instance *in = NULL;
	napi_get_instance_data(env, (void **)&in);
	return in;
}

// open(onCompletion, worker): opens this environment's queue; onCompletion(tag, kind, code, bytes) is called for what comes out of it.
static napi_value open_queue(napi_env env, napi_callback_info info) {
	size_t argc = 2;
	napi_value argv[2], name;
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	instance *in = own(env);
	CHECK(napi_get_value_bool(env, argv[1], &in->worker));
	uv_loop_t *loop;
	int fd;
	CHECK(napi_get_uv_event_loop(env, &loop));
	if (sm.queue_open(&in->queue, &fd) != SM_OK) {
		napi_throw_error(env, NULL, "no completion queue could be opened");
		return NULL;
	}
	CHECK(napi_create_reference(env, argv[0], 1, &in->on_completion));
	CHECK(napi_create_string_utf8(env, "supermachine", NAPI_AUTO_LENGTH, &name));
	CHECK(napi_async_init(env, NULL, name, &in->context));
	in->poll = calloc(1, sizeof *in->poll);
	if (in->poll == NULL || uv_poll_init(loop, in->poll, fd) != 0) {
		free(in->poll);
		in->poll = NULL;
		sm.queue_close(in->queue);
		napi_throw_error(env, NULL, "the completion queue cannot be watched");
		return NULL;
	}
	in->poll->data = in;
	uv_poll_start(in->poll, UV_READABLE, on_readable);
	uv_unref((uv_handle_t *)in->poll);
	return NULL;
}

// resolve(name): returns the library's function of that name, for call and start.
static napi_value resolve(napi_env env, napi_callback_info info) {
	size_t argc = 1;
	napi_value argv[1], out;
	char name[128] = "sm_";
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_string_utf8(env, argv[0], name + 3, sizeof name - 3, NULL));
	void *f = dlsym(sm.handle, name);
	if (f == NULL) {
		napi_throw_error(env, NULL, "the library has no such call");
		return NULL;
	}
	CHECK(napi_create_external(env, f, NULL, NULL, &out));
	return out;
}

// Throws [code, bytes], which the caller makes an error of.
static napi_value throw_failure(napi_env env, int32_t status, sm_bytes *b) {
	napi_value pair, code, bytes;
	CHECK(to_buffer(env, b, &bytes));
	CHECK(napi_create_array_with_length(env, 2, &pair));
	CHECK(napi_create_int32(env, status, &code));
	CHECK(napi_set_element(env, pair, 0, code));
	CHECK(napi_set_element(env, pair, 1, bytes));
	napi_throw(env, pair);
	return NULL;
}

// call(function, handle, options): makes a call that does not wait; returns its bytes, or throws them: [code, bytes].
static napi_value call(napi_env env, napi_callback_info info) {
	size_t argc = 3, len;
	napi_value argv[3], out;
	void *f, *options;
	uint64_t handle;
	bool lossless;
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_external(env, argv[0], &f));
	CHECK(napi_get_value_bigint_uint64(env, argv[1], &handle, &lossless));
	CHECK(napi_get_typedarray_info(env, argv[2], NULL, &len, &options, NULL, NULL));
	sm_bytes result = {NULL, 0};
	int32_t status = ((call_function)f)(NULL, handle, options, len, &result);
	if (status != SM_OK)
		return throw_failure(env, status, &result);
	CHECK(to_buffer(env, &result, &out));
	return out;
}

// start(function, tag, handle, options): begins a call and returns a token for abandon; throws [code, bytes] if it cannot begin.
static napi_value start(napi_env env, napi_callback_info info) {
	size_t argc = 4, len;
	napi_value argv[4], out;
	void *f, *options;
	uint64_t handle, token = 0;
	double tag;
	bool lossless;
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_external(env, argv[0], &f));
	CHECK(napi_get_value_double(env, argv[1], &tag));
	CHECK(napi_get_value_bigint_uint64(env, argv[2], &handle, &lossless));
	CHECK(napi_get_typedarray_info(env, argv[3], NULL, &len, &options, NULL, NULL));
	instance *in = own(env);
	if (in->poll == NULL) {
		napi_throw_error(env, NULL, "there is no queue");
		return NULL;
	}
	sm_async how = {in->queue, (uint64_t)tag, &token};
	sm_bytes error = {NULL, 0};
	int32_t status = ((call_function)f)(&how, handle, options, len, &error);
	if (status != SM_OK) {
		return throw_failure(env, status, &error);
	}
	if (in->pending++ == 0)
		uv_ref((uv_handle_t *)in->poll);
	CHECK(napi_create_bigint_uint64(env, token, &out));
	return out;
}

// abandon(token): gives a call up; nothing of it comes out any more.
static napi_value abandon(napi_env env, napi_callback_info info) {
	size_t argc = 1;
	napi_value argv[1];
	uint64_t token;
	bool lossless;
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_bigint_uint64(env, argv[0], &token, &lossless));
	instance *in = own(env);
	sm.call_abandon(token);
	if (in->pending > 0 && --in->pending == 0)
		uv_unref((uv_handle_t *)in->poll);
	return NULL;
}

static void free_held(napi_env env, void *data, void *hint) {
	(void)env, (void)hint;
	free(data);
}

// hold(function, handle): has an object closed by that function when this environment ends; returns what drop takes.
static napi_value hold(napi_env env, napi_callback_info info) {
	size_t argc = 2;
	napi_value argv[2], out;
	void *f;
	bool lossless;
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_external(env, argv[0], &f));
	held *h = calloc(1, sizeof *h);
	if (h == NULL) {
		napi_throw_error(env, NULL, "out of memory");
		return NULL;
	}
	if (napi_get_value_bigint_uint64(env, argv[1], &h->handle, &lossless) != napi_ok || napi_create_external(env, h, free_held, NULL, &out) != napi_ok) {
		free(h);
		napi_throw_type_error(env, NULL, "a handle is a bigint");
		return NULL;
	}
	h->close = (call_function)f;
	instance *in = own(env);
	h->next = in->held;
	if (h->next != NULL)
		h->next->link = &h->next;
	h->link = &in->held;
	in->held = h;
	return out;
}

// drop(held): the object is closed, or about to be.
static napi_value drop(napi_env env, napi_callback_info info) {
	size_t argc = 1;
	napi_value argv[1];
	void *data;
	CHECK(napi_get_cb_info(env, info, &argc, argv, NULL, NULL));
	CHECK(napi_get_value_external(env, argv[0], &data));
	held *h = data;
	if (h->link != NULL) {
		*h->link = h->next;
		if (h->next != NULL)
			h->next->link = h->link;
		h->link = NULL;
	}
	return NULL;
}

NAPI_MODULE_INIT() {
	instance *in = calloc(1, sizeof *in);
	if (in == NULL)
		return NULL;
	in->env = env;
	CHECK(napi_set_instance_data(env, in, NULL, NULL));
	CHECK(napi_add_async_cleanup_hook(env, close_instance, in, &in->cleanup));
	const struct {
		const char *name;
		napi_callback f;
	} functions[] = {
		{"load", load},   {"open", open_queue}, {"resolve", resolve}, {"call", call},
		{"start", start}, {"abandon", abandon}, {"hold", hold},       {"drop", drop},
	};
	for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
		napi_value f;
		CHECK(napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].f, NULL, &f));
		CHECK(napi_set_named_property(env, exports, functions[i].name, f));
	}
	return exports;
}
