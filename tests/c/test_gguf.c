/* gguf: the reader from C; hostile files are mostly in tests/py/test_gguf_bad.py. */
#include "test.h"

static void gguf_reads_the_golden_file(void) {
    rv_gguf *g = NULL;
    rv_err err = {0};
    CHECK(rv_gguf_open(&g, RV_TEST_DATA "/golden/llama-d64-f32.gguf", &err) == RV_OK);
    const rv_gguf_kv *kv = rv_gguf_find_kv(g, "general.architecture");
    CHECK(kv && kv->type == RV_GGUF_STR && kv->s.n == 5 && memcmp(kv->s.p, "llama", 5) == 0);
    CHECK(rv_gguf_n_tensors(g) > 0 && rv_gguf_find_tensor(g, "token_embd.weight"));
    rv_gguf_free(&g);
    CHECK(g == NULL);
}

const rv_test tests_gguf[] = {
    {"gguf_reads_the_golden_file", gguf_reads_the_golden_file},
    {NULL, NULL},
};
