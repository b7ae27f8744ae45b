/* rv_tests: runs every C test, or those whose names are given. */
#include "test.h"

/* The lists, one per line and in the order of their files. */
/* clang-format off */
#define TEST_LISTS(X) \
    X(tests_attn) \
    X(tests_base) \
    X(tests_batch) \
    X(tests_budget) \
    X(tests_engine) \
    X(tests_gguf) \
    X(tests_kernels) \
    X(tests_kv) \
    X(tests_kvfile) \
    X(tests_numerics) \
    X(tests_ops) \
    X(tests_pages) \
    X(tests_panels) \
    X(tests_pass) \
    X(tests_prefix) \
    X(tests_sample) \
    X(tests_sched) \
    X(tests_shared) \
    X(tests_spans) \
    X(tests_store) \
    X(tests_tok)
/* clang-format on */

#define DECLARE(list) extern const rv_test list[];
#define NAME(list) list,
TEST_LISTS(DECLARE)

static const rv_test *const ALL[] = {TEST_LISTS(NAME)};

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
