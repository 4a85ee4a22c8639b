/* What the examples share: a call that ends the program if it fails. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <stdio.h>
#include <stdlib.h>

#include <supermachine.h>

#include "mp.h"

typedef int32_t (*sm_function)(const sm_async *, uint64_t, const void *, size_t, sm_bytes *);

/* Prints an error's message. */
static inline void complain(const char *what, int32_t code, const sm_bytes *error) {
	mp_value message = mp_get(error->data, error->len, "message");
	fprintf(stderr, "%s: error %d: %.*s\n", what, (int)code, (int)message.n, message.type == 's' ? (const char *)message.p : "");
}

/* Makes a call, and ends the program with what went wrong if it fails. Frees the options. The result is to be freed. */
static inline sm_bytes must(const char *what, sm_function call, uint64_t handle, mp options) {
	sm_bytes result = {NULL, 0};
	int32_t code = call(NULL, handle, options.data, options.len, &result);
	free(options.data);
	if (code != SM_OK) {
		complain(what, code, &result);
		exit(1);
	}
	return result;
}

/* Returns an integer of a result. */
static inline int64_t number(const sm_bytes *result, const char *key) { return mp_get(result->data, result->len, key).i; }

/* Makes a call of whose result one integer is wanted: a handle or a file descriptor. */
static inline int64_t must_number(const char *what, sm_function call, uint64_t handle, mp options, const char *key) {
	sm_bytes result = must(what, call, handle, options);
	int64_t n = number(&result, key);
	sm_bytes_free(&result);
	return n;
}

static inline void must_do(const char *what, sm_function call, uint64_t handle, mp options) {
	sm_bytes result = must(what, call, handle, options);
	sm_bytes_free(&result);
}

#endif
