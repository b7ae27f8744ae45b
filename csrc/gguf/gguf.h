/* Inside of the GGUF reader: what its files share.  The public contract is in ruvllm.h.
 *
 *   open.c    one file or the parts of a split one; accessors
 *   parse.c   one part: header, metadata pairs, tensor descriptions
 *   value.c   one metadata value, arrays in arrays included
 *   table.c   names to positions
 *
 * Bytes of a file become numbers only through rv_cursor, and nothing is allocated for a count that
 * the bytes left in the file cannot hold.  With the two limits below, opening allocates at most
 * 2 x file size + 16 MiB whatever the file says. */
#ifndef RV_GGUF_GGUF_H
#define RV_GGUF_GGUF_H

#include "base/base.h"

enum {
    RV_GGUF_MAX_KV = 65536,      /* metadata pairs of a part */
    RV_GGUF_MAX_TENSORS = 65536, /* of all parts */
    RV_GGUF_MAX_PARTS = 99999,   /* five digits in the file name */
    RV_GGUF_MAX_DEPTH = 8,       /* arrays in arrays, the outermost counted */
    RV_GGUF_MAX_KEY = 65535,     /* bytes, from the format's specification */
    RV_GGUF_MAX_NAME = 64,       /* bytes, from the format's specification */
    RV_GGUF_DEFAULT_ALIGNMENT = 32,
    RV_GGUF_MIN_ALIGNMENT = 8,
    RV_GGUF_MAX_ALIGNMENT = 65536,
};

/* ---- table.c ---- */

/* Positions of items by name: open addressing, at most half full. */
typedef struct rv_gguf_table {
    uint32_t *slot; /* position + 1; 0: empty */
    size_t mask;
    uint64_t seed; /* differs from run to run, so that no file can be made of colliding names */
} rv_gguf_table;

/* Index n items of size bytes each, whose first member is their rv_str name.  Of two equal names
 * the position of the second goes to *dup and RV_EFORMAT comes back without a message. */
rv_status rv_gguf_table_build(rv_gguf_table *t, const void *items, size_t size, size_t n,
                              size_t *dup);
void rv_gguf_table_free(rv_gguf_table *t);
/* The item of that name, or NULL. */
const void *rv_gguf_table_find(const rv_gguf_table *t, const void *items, size_t size, rv_str name);

/* ---- value.c ---- */

/* "u32", "str", ...; NULL for a number that is no value type. */
const char *rv_gguf_type_name(uint32_t type);
/* Read the type and the value of a pair whose key is set; errors stay in the cursor. */
void rv_gguf_read_value(rv_cursor *c, rv_gguf_kv *kv);
/* s between double quotes for a message: cut, and everything but plain ASCII escaped. */
enum { RV_GGUF_QUOTED = 96 };
const char *rv_gguf_quote(char buf[RV_GGUF_QUOTED], rv_str s);
/* The end of a path, which says most, short enough to leave room for a message. */
const char *rv_gguf_path_end(const char *path);
/* Put "<context>: " before the message of the cursor, if it has failed. */
void rv_gguf_context(rv_cursor *c, const char *fmt, ...) RV_PRINTF(2, 3);

/* ---- parse.c ---- */

/* What a part says about itself. */
typedef struct rv_gguf_head {
    uint32_t version;
    uint64_t alignment;
    rv_gguf_kv *kv;
    size_t n_kv;
    rv_gguf_table keys;
} rv_gguf_head;

typedef struct rv_gguf_part {
    rv_map map;
    bool borrowed; /* the bytes are the caller's */
} rv_gguf_part;

struct rv_gguf {
    rv_gguf_part *parts;
    size_t n_parts, cap_parts;
    rv_gguf_head head; /* of the first part */
    rv_gguf_tensor *tensors;
    size_t n_tensors, cap_tensors;
    size_t max_tensors; /* what the parts may hold together */
    rv_gguf_table names;
};

/* Parse the last part of g: fills *head, appends to g->tensors.  what names the file in messages.
 * On failure the caller frees both. */
rv_status rv_gguf_parse(rv_gguf *g, rv_gguf_head *head, const char *what, rv_err *err);
void rv_gguf_head_free(rv_gguf_head *head);
const rv_gguf_kv *rv_gguf_head_find(const rv_gguf_head *head, const char *key);

#endif
