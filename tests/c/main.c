/* rv_tests: runs every C test, or those whose names are given. */
#include "test.h"

extern const rv_test tests_attn[], tests_base[], tests_batch[], tests_budget[], tests_engine[],
    tests_gguf[], tests_kernels[], tests_kv[], tests_kvfile[], tests_numerics[], tests_ops[],
    tests_pages[], tests_panels[], tests_pass[], tests_prefix[], tests_sample[], tests_sched[],
    tests_shared[], tests_spans[], tests_store[], tests_tok[];

static const rv_test *const ALL[] = {
    tests_attn,    tests_base,  tests_batch,  tests_budget,   tests_engine, tests_gguf,
    tests_kernels, tests_kv,    tests_kvfile, tests_numerics, tests_ops,    tests_pages,
    tests_panels,  tests_pass,  tests_prefix, tests_sample,   tests_sched,  tests_shared,
    tests_spans,   tests_store, tests_tok,
};

int main(int argc, char **argv) {
    rv_init();
    int n_run = 0;
    for (size_t i = 0; i < RV_COUNT(ALL); i++) {
        for (const rv_test *t = ALL[i]; t->name; t++) {
            bool wanted = argc == 1;
            for (int k = 1; k < argc; k++) wanted |= strcmp(argv[k], t->name) == 0;
            if (argc == 2 && strcmp(argv[1], "--list") == 0) {
                puts(t->name);
            } else if (wanted) {
                size_t live = rv_live_bytes();
                t->fn();
                CHECK(rv_live_bytes() == live);
                printf("ok %s\n", t->name);
                n_run++;
            }
        }
    }
    if (argc == 2 && strcmp(argv[1], "--list") == 0) return 0;
    printf("%d passed, 0 failed\n", n_run);
    return n_run ? 0 : 1;
}
