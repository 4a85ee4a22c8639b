/*
 * As much of msgpack as the options and results of libsupermachine need: a writer for maps of strings, integers, truth values, bytes and lists
 * of strings, and a reader that finds the value of a key. Programs of some size will want msgpack-c instead.
 */
#ifndef MP_H
#define MP_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A map that is being written. Begin with mp_map(number of keys); free data. */
typedef struct mp {
	unsigned char *data;
	size_t len, cap;
} mp;

static inline void mp_raw(mp *m, const void *p, size_t n) {
	if (m->len + n > m->cap) {
		m->cap = 2 * m->cap + n + 64;
		m->data = (unsigned char *)realloc(m->data, m->cap);
		if (m->data == NULL)
			abort();
	}
	if (n > 0)
		memcpy(m->data + m->len, p, n);
	m->len += n;
}

static inline void mp_head(mp *m, unsigned char code, uint64_t n, int size) {
	unsigned char b[9];
	b[0] = code;
	for (int i = 0; i < size; i++)
		b[1 + i] = (unsigned char)(n >> (8 * (size - 1 - i)));
	mp_raw(m, b, 1 + (size_t)size);
}

static inline mp mp_map(uint32_t keys) {
	mp m = {NULL, 0, 0};
	mp_head(&m, 0xdf, keys, 4);
	return m;
}

static inline void mp_text(mp *m, const char *s) {
	size_t n = strlen(s);
	mp_head(m, 0xdb, n, 4);
	mp_raw(m, s, n);
}

static inline void mp_str(mp *m, const char *key, const char *value) { mp_text(m, key), mp_text(m, value); }
static inline void mp_bool(mp *m, const char *key, int value) { mp_text(m, key), mp_head(m, value ? 0xc3 : 0xc2, 0, 0); }

static inline void mp_uint(mp *m, const char *key, uint64_t value) { mp_text(m, key), mp_head(m, 0xcf, value, 8); }

static inline void mp_bin(mp *m, const char *key, const void *p, uint32_t n) {
	mp_text(m, key);
	mp_head(m, 0xc6, n, 4);
	mp_raw(m, p, n);
}

/* A list of strings that ends with NULL. */
static inline void mp_strs(mp *m, const char *key, const char *const *values) {
	uint32_t n = 0;
	while (values[n] != NULL)
		n++;
	mp_text(m, key);
	mp_head(m, 0xdd, n, 4);
	for (uint32_t i = 0; i < n; i++)
		mp_text(m, values[i]);
}

/* A value that was read. */
typedef struct mp_value {
	char type; /* 0: none; 'n' nil; 'b' truth value; 'i' integer; 'f' fraction; 's' string or bytes; 'a' array; 'm' map */
	int64_t i; /* integer, truth value; number of elements of an array, of keys of a map */
	const unsigned char *p; /* string or bytes, or the first element */
	size_t n;               /* length of string or bytes */
} mp_value;

static inline uint64_t mp_big(const unsigned char *p, int size) {
	uint64_t n = 0;
	for (int i = 0; i < size; i++)
		n = n << 8 | p[i];
	return n;
}

/* Reads the value at p and returns where the next one is, NULL if the bytes end too early. Arrays and maps: where their first element is. */
static inline const unsigned char *mp_read(const unsigned char *p, const unsigned char *end, mp_value *v) {
	memset(v, 0, sizeof *v);
	if (p >= end)
		return NULL;
	unsigned char c = *p++;
	int size = 0, str = 0;
	if (c <= 0x7f || c >= 0xe0) {
		v->type = 'i', v->i = (signed char)c;
		return p;
	}
	if (c <= 0x9f) {
		v->type = c <= 0x8f ? 'm' : 'a', v->i = c & 15, v->p = p;
		return p;
	}
	if (c <= 0xbf) {
		str = 1, v->n = c & 31;
	} else {
		switch (c) {
		case 0xc0: v->type = 'n'; return p;
		case 0xc2: case 0xc3: v->type = 'b', v->i = c & 1; return p;
		case 0xc4: case 0xd9: str = 1, size = 1; break;
		case 0xc5: case 0xda: str = 1, size = 2; break;
		case 0xc6: case 0xdb: str = 1, size = 4; break;
		case 0xca: v->type = 'f', size = 4; break;
		case 0xcb: v->type = 'f', size = 8; break;
		case 0xcc: case 0xd0: v->type = 'i', size = 1; break;
		case 0xcd: case 0xd1: v->type = 'i', size = 2; break;
		case 0xce: case 0xd2: v->type = 'i', size = 4; break;
		case 0xcf: case 0xd3: v->type = 'i', size = 8; break;
		case 0xdc: v->type = 'a', size = 2; break;
		case 0xdd: v->type = 'a', size = 4; break;
		case 0xde: v->type = 'm', size = 2; break;
		case 0xdf: v->type = 'm', size = 4; break;
		default: return NULL;
		}
	}
	if (end - p < size)
		return NULL;
	uint64_t n = mp_big(p, size);
	p += size;
	if (str) {
		if (size > 0)
			v->n = (size_t)n;
		if ((size_t)(end - p) < v->n)
			return NULL;
		v->type = 's', v->p = p;
		return p + v->n;
	}
	v->i = (int64_t)n;
	if (c >= 0xd0 && c <= 0xd2) /* sign */
		v->i = (int64_t)(n << (64 - 8 * size)) >> (64 - 8 * size);
	if (v->type == 'a' || v->type == 'm')
		v->p = p;
	return p;
}

/* Returns what follows the value at p, with all that is in it. */
static inline const unsigned char *mp_skip(const unsigned char *p, const unsigned char *end) {
	for (int64_t left = 1; left > 0; left--) {
		mp_value v;
		p = mp_read(p, end, &v);
		if (p == NULL)
			return NULL;
		if (v.type == 'a')
			left += v.i;
		if (v.type == 'm')
			left += 2 * v.i;
	}
	return p;
}

/* Finds the value of a key in a map; its type is 0 if there is none. */
static inline mp_value mp_get(const void *data, size_t len, const char *key) {
	const unsigned char *p = (const unsigned char *)data, *end = p + len;
	mp_value none, v, k;
	memset(&none, 0, sizeof none);
	if (data == NULL || (p = mp_read(p, end, &v)) == NULL || v.type != 'm')
		return none;
	for (int64_t i = 0; i < v.i; i++) {
		mp_value found;
		if ((p = mp_read(p, end, &k)) == NULL || mp_read(p, end, &found) == NULL)
			return none;
		if (k.type == 's' && k.n == strlen(key) && memcmp(k.p, key, k.n) == 0)
			return found;
		if ((p = mp_skip(p, end)) == NULL)
			return none;
	}
	return none;
}

#endif
