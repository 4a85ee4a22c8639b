// What the C tests share: checks that end the program, and calls.
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "../../examples/c/mp.h"
#include "../../include/supermachine.h"

#define CHECK(yes)                                                                 \
	do {                                                                           \
		if (!(yes)) {                                                              \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #yes);      \
			abort();                                                               \
		}                                                                          \
	} while (0)

typedef int32_t (*sm_function)(const sm_async *, uint64_t, const void *, size_t, sm_bytes *);

// Makes a call and requires its code. Frees the options; the result is to be freed.
static inline sm_bytes expect_at(const char *file, int line, int32_t want, sm_function call, uint64_t handle, mp options) {
	sm_bytes result = {NULL, 0};
	int32_t code = call(NULL, handle, options.data, options.len, &result);
	free(options.data);
	if (code != want) {
		mp_value message = mp_get(result.data, result.len, "message");
		fprintf(stderr, "%s:%d: code %d, expected %d: %.*s\n", file, line, code, want, (int)message.n, message.type == 's' ? (const char *)message.p : "");
		abort();
	}
	return result;
}

// The same, of whose result one integer is wanted.
static inline int64_t expect_number_at(const char *file, int line, int32_t want, sm_function call, uint64_t handle, mp options, const char *key) {
	sm_bytes result = expect_at(file, line, want, call, handle, options);
	mp_value v = mp_get(result.data, result.len, key);
	if (v.type != 'i' && v.type != 'b') {
		fprintf(stderr, "%s:%d: the result has no number %s\n", file, line, key);
		abort();
	}
	sm_bytes_free(&result);
	return v.i;
}

#define expect(...) expect_at(__FILE__, __LINE__, __VA_ARGS__)
#define expect_number(...) expect_number_at(__FILE__, __LINE__, __VA_ARGS__)
#define expect_code(...)                              \
	do {                                              \
		sm_bytes ignored_ = expect(__VA_ARGS__);      \
		sm_bytes_free(&ignored_);                     \
	} while (0)

#endif
