/* store: the queue, the writer, queries, ids, refusals, and every allocation failing in turn. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#define S(text) ((rv_str){text, sizeof(text) - 1})

static char g_dir[64];

static const char *new_dir(void) {
    snprintf(g_dir, sizeof g_dir, "/tmp/rv_test_store_XXXXXX");
    CHECK(mkdtemp(g_dir));
    return g_dir;
}

static void remove_dir(void) {
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", g_dir);
    CHECK(strncmp(g_dir, "/tmp/rv_test_store_", 19) == 0 && system(cmd) == 0);
}

static rv_store *open_store(const rv_store_opts *o) {
    rv_err err = {0};
    rv_store *s;
    if (rv_store_open(&s, g_dir, o, &err) != RV_OK) fprintf(stderr, "%s\n", err.msg);
    CHECK(s);
    return s;
}

static rv_store_stats stats_of(rv_store *s) {
    rv_store_stats st;
    CHECK(rv_store_get_stats(s, &st, NULL) == RV_OK);
    return st;
}

static int64_t count_rows(rv_store *s) {
    const rv_value none[5] = {{0}};
    rv_rows *r;
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_COUNT, none, 5, &r, NULL) == RV_OK);
    int64_t n = rv_rows_at(r, 0, 0)->i;
    rv_rows_free(&r);
    return n;
}

/* Give every field a value made from its index, so that a swapped column shows. */
static void fill(rv_witness *w, char texts[][24]) {
    size_t n;
    const rv_witness_field *f = rv_witness_fields(&n);
    rv_witness_init(w);
    for (size_t i = 1; i < n; i++) {
        char *p = (char *)w + f[i].offset;
        int len = snprintf(texts[i], 24, f[i].type == RV_FIELD_JSON ? "{\"v\":%zu}" : "v%zu", i);
        rv_str str = {texts[i], (size_t)len};
        if (f[i].type == RV_FIELD_BLOB) str = (rv_str){"\0\1\2\3\xff\xfe\xfd\xfc", 8};
        double real = 0.25 + (double)i / 64;
        int64_t integer = (int64_t)i * 1000003;
        rv_opt_u64 u = {UINT64_MAX - 7, true};
        switch (f[i].type) {
        case RV_FIELD_REAL: memcpy(p, &real, sizeof real); break;
        case RV_FIELD_INT: memcpy(p, &integer, sizeof integer); break;
        case RV_FIELD_U64: memcpy(p, &u, sizeof u); break;
        default: memcpy(p, &str, sizeof str);
        }
    }
    w->kind = S("chat");
}

static void store_keeps_every_field(void) {
    new_dir();
    rv_store *s = open_store(NULL);
    char texts[64][24], id[37];
    rv_witness w;
    fill(&w, texts);
    CHECK(rv_store_witness_put(s, &w, true, id, NULL) == RV_OK && strlen(id) == 36);
    rv_rows *r;
    rv_value arg = {.type = RV_VAL_TEXT, .s = {id, 36}};
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_GET, &arg, 1, &r, NULL) == RV_OK);
    size_t n;
    const rv_witness_field *f = rv_witness_fields(&n);
    CHECK(rv_rows_n(r) == 1 && rv_rows_n_cols(r) == n + 4);
    CHECK(strcmp(rv_rows_name(r, 0), "seq") == 0 && rv_rows_at(r, 0, 0)->i == 1);
    for (size_t i = 0; i < n; i++) {
        const rv_value *v = rv_rows_at(r, 0, i + 1);
        CHECK(strcmp(rv_rows_name(r, i + 1), f[i].name) == 0);
        if (f[i].type == RV_FIELD_REAL)
            CHECK(v->type == RV_VAL_REAL && v->f == 0.25 + (double)i / 64);
        if (f[i].type == RV_FIELD_INT) CHECK(v->type == RV_VAL_INT && v->i == (int64_t)i * 1000003);
        if (f[i].type == RV_FIELD_U64) CHECK(v->type == RV_VAL_INT && v->i == -8);
        if (f[i].type == RV_FIELD_BLOB)
            CHECK(v->type == RV_VAL_BLOB && v->s.n == 8 && v->s.p[4] == '\xff');
        if (f[i].type == RV_FIELD_JSON || f[i].type == RV_FIELD_TEXT) {
            const char *want = i == 0 ? id : strcmp(f[i].name, "kind") == 0 ? "chat" : texts[i];
            CHECK(v->type == RV_VAL_TEXT && strcmp(v->s.p, want) == 0);
        }
    }
    rv_rows_free(&r);
    rv_witness_init(&w); /* all null */
    CHECK(rv_store_witness_put(s, &w, true, id, NULL) == RV_OK);
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_GET, &arg, 1, &r, NULL) == RV_OK);
    for (size_t i = 0; i < n; i++)
        if (i != 0 && strcmp(f[i].name, "kind") != 0 && strcmp(f[i].name, "ts_ms") != 0)
            CHECK(rv_rows_at(r, 0, i + 1)->type == RV_VAL_NULL);
    rv_rows_free(&r);
    rv_store_free(&s);
    CHECK(s == NULL);
    remove_dir();
}

static void store_counts_a_full_queue(void) {
    new_dir();
    rv_store *s = open_store(&(rv_store_opts){.queue_depth = 10, .max_wait_ms = 3600000});
    rv_witness w;
    rv_witness_init(&w);
    rv_err err = {0};
    for (int i = 0; i < 10; i++) CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_OK);
    CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_EFULL);
    CHECK(strstr(err.msg, "10 rows of 10"));
    rv_store_stats st = stats_of(s);
    CHECK(st.queued == 10 && st.dropped == 1 && st.queue_depth == 10 && st.written == 0);
    CHECK(st.queued_seq == 10 && st.committed_seq == 0 && st.durable_seq == 0);
    CHECK(count_rows(s) == 0);
    CHECK(rv_store_flush(s, -1, false, NULL) == RV_OK && count_rows(s) == 10);
    st = stats_of(s);
    CHECK(st.committed_seq == 10 && st.durable_seq == 0 && st.batches == 1 && st.queue_bytes == 0);
    CHECK(rv_store_flush(s, -1, true, NULL) == RV_OK && stats_of(s).durable_seq == 10);
    rv_store_free(&s);

    s = open_store(&(rv_store_opts){.queue_bytes = 10000, .max_wait_ms = 3600000});
    char big[9000];
    memset(big, 'x', sizeof big);
    w.prompt_text = (rv_str){big, sizeof big};
    CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_EFULL);
    CHECK(strstr(err.msg, "of 10000"));
    CHECK(rv_store_witness_put(s, &w, true, NULL, &err) == RV_OK); /* critical: taken */
    rv_store_free(&s);
    remove_dir();
}

static void store_a_bad_row_keeps_its_batch(void) {
    new_dir();
    rv_store *s = open_store(&(rv_store_opts){.max_wait_ms = 3600000});
    rv_err err = {0};
    rv_witness w;
    rv_witness_init(&w);
    for (int i = 0; i < 20; i++) {
        w.tags = i == 7 ? S("{not json") : S("[]");
        CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_OK);
    }
    CHECK(rv_store_flush(s, -1, false, &err) == RV_OK); /* says nothing and forgets nothing */
    CHECK(rv_store_flush(s, -1, true, &err) == RV_EFORMAT);
    CHECK(strstr(err.msg, "1 rows refused") && strstr(err.msg, "tags"));
    CHECK(rv_store_flush(s, -1, true, &err) == RV_OK); /* said once */
    rv_store_stats st = stats_of(s);
    CHECK(st.written == 19 && st.failed == 1 && st.batches == 1 && count_rows(s) == 19);
    CHECK(st.last_error.code == RV_EFORMAT && st.committed_seq == 20);

    w.id = S("01890000-0000-7000-8000-000000000000");
    w.tags = S("[]");
    CHECK(rv_store_witness_put(s, &w, true, NULL, &err) == RV_OK);
    CHECK(rv_store_witness_put(s, &w, true, NULL, &err) == RV_EFORMAT); /* told to its caller */
    CHECK(strstr(err.msg, "UNIQUE") && rv_store_flush(s, -1, false, &err) == RV_OK);
    CHECK(rv_store_close(s, &err) == RV_OK);
    CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_ESTATE);
    CHECK(rv_store_close(s, &err) == RV_OK);
    rv_store_free(&s);
    remove_dir();
}

static void store_refuses_bad_arguments(void) {
    new_dir();
    rv_err err = {0};
    rv_store *s;
    CHECK(rv_store_open(&s, g_dir, &(rv_store_opts){.queue_depth = -1}, &err) == RV_EARG && !s);
    CHECK(strstr(err.msg, "queue_depth -1"));
    CHECK(rv_store_open(&s, "", NULL, &err) == RV_EARG);
    CHECK(rv_store_open(&s, "/proc/no/such", NULL, &err) == RV_EIO && strstr(err.msg, "/proc/no"));
    s = open_store(NULL);
    rv_witness w;
    rv_witness_init(&w);
    w.kind = S("sing");
    CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_EARG && strstr(err.msg, "sing"));
    rv_witness_init(&w);
    w.propensity = 1.5;
    CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_EARG && strstr(err.msg, "1.5"));
    rv_witness_init(&w);
    w.id = S("01890000-0000-7000-8000-00000000000G");
    CHECK(rv_store_witness_put(s, &w, false, NULL, &err) == RV_EARG && strstr(err.msg, "UUID"));
    rv_rows *r;
    rv_value v[7] = {{.type = RV_VAL_TEXT, .s = S("")}};
    CHECK(rv_store_query(s, (rv_query)99, v, 0, &r, &err) == RV_EARG && !r);
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_GET, v, 2, &r, &err) == RV_EARG);
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_GET, v, 1, &r, &err) == RV_EARG); /* empty id */
    v[0].s = S("0");
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_GET, v, 1, &r, &err) == RV_ENOTFOUND);
    CHECK(rv_store_query(s, RV_QUERY_WITNESS_LIST, v, 7, &r, &err) == RV_EARG);
    CHECK(strstr(err.msg, "argument 1"));
    CHECK(rv_store_write(s, RV_WRITE_DIGEST, v, 1, false, &err) == RV_EARG);
    CHECK(rv_store_query_id("witness_list") == RV_QUERY_WITNESS_LIST);
    CHECK(rv_store_query_id("nonsense") == -1 && rv_store_write_id("meta") == RV_WRITE_META);
    CHECK(stats_of(s).queued == 0);
    rv_store_free(&s);
    remove_dir();
}

static void store_ids_sort_and_differ(void) {
    new_dir();
    rv_store *s = open_store(NULL);
    char last[37] = "", id[37];
    for (int i = 0; i < 20000; i++) { /* more than the counter holds in a millisecond */
        CHECK(rv_store_new_id(s, id, NULL) == RV_OK && strcmp(id, last) > 0);
        CHECK(id[14] == '7' && strchr("89ab", id[19]));
        memcpy(last, id, sizeof id);
    }
    rv_store_free(&s);
    remove_dir();
}

static void *put_many(void *arg) {
    rv_witness w;
    rv_witness_init(&w);
    for (int i = 0; i < 500; i++)
        CHECK(rv_store_witness_put(arg, &w, i % 100 == 0, NULL, NULL) == 0);
    return NULL;
}

static void store_takes_many_threads(void) {
    new_dir();
    rv_store *s = open_store(NULL);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&t[i], NULL, put_many, s) == 0);
    for (int i = 0; i < 50; i++) CHECK(count_rows(s) >= 0);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    CHECK(rv_store_close(s, NULL) == RV_OK);
    rv_store_stats st = stats_of(s);
    CHECK(st.written == 2000 && st.durable_seq == 2000 && st.queue_depth == 0);
    rv_store_free(&s);
    s = open_store(NULL);
    CHECK(count_rows(s) == 2000);
    rv_store_free(&s);
    remove_dir();
}

static void store_is_closed_to_forks(void) {
    new_dir();
    rv_store *s = open_store(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        rv_err err = {0};
        rv_witness w;
        rv_witness_init(&w);
        rv_store *again;
        char id[37];
        bool ok = rv_store_witness_put(s, &w, false, NULL, &err) == RV_ESTATE &&
                  strstr(err.msg, "fork") && rv_store_flush(s, -1, true, NULL) == RV_ESTATE &&
                  rv_store_new_id(s, id, NULL) == RV_ESTATE &&
                  rv_store_close(s, NULL) == RV_ESTATE &&
                  rv_store_open(&again, g_dir, NULL, &err) == RV_ESTATE && !again;
        rv_store_free(&s);
        _exit(ok && !s ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    rv_witness w;
    rv_witness_init(&w);
    CHECK(rv_store_witness_put(s, &w, true, NULL, NULL) == RV_OK && count_rows(s) == 1);
    rv_store_free(&s);
    pid = fork(); /* closed before the fork: the child may open it */
    if (pid == 0) _exit(rv_store_open(&s, g_dir, NULL, NULL) == RV_OK ? 0 : 1);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    remove_dir();
}

static void store_survives_a_deleted_file(void) {
    new_dir();
    rv_store *s = open_store(NULL);
    rv_witness w;
    rv_witness_init(&w);
    CHECK(rv_store_witness_put(s, &w, true, NULL, NULL) == RV_OK && count_rows(s) == 1);
    CHECK(unlink(rv_store_path(s)) == 0);
    CHECK(rv_store_witness_put(s, &w, true, NULL, NULL) == RV_OK); /* into a new file */
    CHECK(count_rows(s) == 1);
    struct stat sb;
    CHECK(stat(rv_store_path(s), &sb) == 0 && (sb.st_mode & 0777) == 0600);
    rv_store_free(&s);
    s = open_store(NULL);
    CHECK(count_rows(s) == 1);
    rv_store_free(&s);
    remove_dir();
}

static void store_survives_each_failed_allocation(void) {
    new_dir();
    rv_store *s = NULL;
    rv_err err = {0};
    size_t live0 = rv_live_bytes();
    long k = 0;
    for (;; k++) {
        rv_test_fail_alloc_at(k);
        rv_status st = rv_store_open(&s, g_dir, NULL, &err);
        rv_test_fail_alloc_at(-1);
        if (st == RV_OK) break;
        CHECK(st == RV_ENOMEM && s == NULL && rv_live_bytes() == live0);
    }
    CHECK(k >= 2);
    rv_witness w;
    rv_witness_init(&w);
    for (k = 0;; k++) {
        size_t live = rv_live_bytes();
        rv_test_fail_alloc_at(k);
        rv_status st = rv_store_witness_put(s, &w, true, NULL, &err);
        rv_test_fail_alloc_at(-1);
        if (st == RV_OK) break;
        CHECK(st == RV_ENOMEM && rv_live_bytes() == live);
    }
    CHECK(k >= 1 && stats_of(s).queued == 1);
    const rv_value args[7] = {[5] = {.type = RV_VAL_INT, .i = -1}, [6] = {.type = RV_VAL_INT}};
    for (k = 0;; k++) {
        rv_rows *r;
        rv_test_fail_alloc_at(k);
        rv_status st = rv_store_query(s, RV_QUERY_WITNESS_LIST, args, 7, &r, &err);
        rv_test_fail_alloc_at(-1);
        CHECK(st == RV_OK ? rv_rows_n(r) == 1 : st == RV_ENOMEM && !r);
        if (st != RV_OK) continue;
        rv_rows_free(&r);
        break;
    }
    CHECK(k >= 3);
    rv_store_free(&s);
    remove_dir();
}

const rv_test tests_store[] = {
    {"store_keeps_every_field", store_keeps_every_field},
    {"store_counts_a_full_queue", store_counts_a_full_queue},
    {"store_a_bad_row_keeps_its_batch", store_a_bad_row_keeps_its_batch},
    {"store_refuses_bad_arguments", store_refuses_bad_arguments},
    {"store_ids_sort_and_differ", store_ids_sort_and_differ},
    {"store_takes_many_threads", store_takes_many_threads},
    {"store_is_closed_to_forks", store_is_closed_to_forks},
    {"store_survives_a_deleted_file", store_survives_a_deleted_file},
    {"store_survives_each_failed_allocation", store_survives_each_failed_allocation},
    {NULL, NULL},
};
