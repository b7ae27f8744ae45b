/* Who is next: the waiting requests, the tenants, the order of the running ones.
 *
 * Ageing moves every waiting request at the same pace, so it need not move any.  Time is cut into
 * epochs of age_steps; a request that came into the queue in epoch e with priority p has, in epoch
 * t, been lifted t - e times and stands at p + t - e.  Of two requests the one with the smaller
 * e - p is therefore ahead at all times: a number that stays while it waits, and a heap does.
 *
 *   ready    tenants, by rank of their first request, then share   ─┐ first of the first
 *   waiting  of each: its requests, by rank, cost, arrival          ─┘
 *   active   tenants with requests, by share: where a new one starts (VTC, arXiv 2401.00588) */
#include "engine/sched_impl.h"

/* ---- heap ---- */

static rv_link *meld(rv_link *a, rv_link *b, rv_before before) {
    if (!a || !b) return a ? a : b;
    if (before(b, a)) {
        rv_link *c = a;
        a = b;
        b = c;
    }
    b->prev = a;
    b->next = a->child;
    if (a->child) a->child->prev = b;
    a->child = b;
    return a;
}

/* One heap of siblings: in pairs from the left, then all from the right. */
static rv_link *meld_all(rv_link *first, rv_before before) {
    rv_link *pairs = NULL, *all = NULL;
    while (first) {
        rv_link *a = first, *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b) b->next = b->prev = NULL;
        a = meld(a, b, before);
        a->next = pairs;
        pairs = a;
    }
    while (pairs) {
        rv_link *a = pairs;
        pairs = a->next;
        a->next = NULL;
        all = meld(all, a, before);
    }
    return all;
}

void rv_pheap_push(rv_link **root, rv_link *x, rv_before before) {
    *x = (rv_link){0};
    *root = meld(*root, x, before);
}

void rv_pheap_remove(rv_link **root, rv_link *x, rv_before before) {
    rv_link *rest = meld_all(x->child, before);
    if (*root == x) {
        *root = rest;
    } else {
        if (x->prev->child == x)
            x->prev->child = x->next;
        else
            x->prev->next = x->next;
        if (x->next) x->next->prev = x->prev;
        *root = meld(*root, rest, before);
    }
    *x = (rv_link){0};
}

/* ---- table ---- */

enum { TABLE_MIN = 64 };

static rv_entry **slot_of(const rv_table *t, uint64_t key) {
    key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
    key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
    return &t->slot[(size_t)(key ^ (key >> 31)) & t->mask];
}

bool rv_table_init(rv_table *t) {
    *t = (rv_table){.slot = rv_calloc(TABLE_MIN, sizeof *t->slot), .mask = TABLE_MIN - 1};
    return t->slot != NULL;
}

rv_entry *rv_table_get(const rv_table *t, uint64_t key) {
    rv_entry *e = *slot_of(t, key);
    while (e && e->key != key) e = e->next;
    return e;
}

static void chain(rv_table *t, rv_entry *e) {
    rv_entry **slot = slot_of(t, e->key);
    e->next = *slot;
    *slot = e;
}

void rv_table_put(rv_table *t, rv_entry *e) {
    rv_table big = {.mask = 2 * t->mask + 1};
    if (t->n > t->mask) big.slot = rv_calloc(big.mask + 1, sizeof *big.slot);
    if (big.slot) {
        for (size_t i = 0; i <= t->mask; i++) {
            for (rv_entry *x = t->slot[i], *next; x; x = next) {
                next = x->next;
                chain(&big, x);
            }
        }
        rv_free(t->slot);
        t->slot = big.slot;
        t->mask = big.mask;
    }
    chain(t, e);
    t->n++;
}

void rv_table_take(rv_table *t, rv_entry *e) {
    rv_entry **at = slot_of(t, e->key);
    while (*at != e) at = &(*at)->next;
    *at = e->next;
    t->n--;
}

/* ---- orders ---- */

static rv_req *first_of(const rv_tenant *t) {
    return RV_OUTER(t->waiting, rv_req, by_rank);
}

static bool request_before(rv_link *la, rv_link *lb) {
    const rv_req *a = RV_OUTER(la, rv_req, by_rank), *b = RV_OUTER(lb, rv_req, by_rank);
    if (a->rank != b->rank) return a->rank < b->rank;
    if (a->cost != b->cost) return a->cost < b->cost;
    return a->entry.key < b->entry.key;
}

static bool tenant_before(rv_link *la, rv_link *lb) {
    const rv_tenant *a = RV_OUTER(la, rv_tenant, by_rank), *b = RV_OUTER(lb, rv_tenant, by_rank);
    const rv_req *x = first_of(a), *y = first_of(b);
    if (x->rank != y->rank) return x->rank < y->rank;
    if (a->share != b->share) return a->share < b->share;
    return x->entry.key < y->entry.key;
}

static bool share_before(rv_link *la, rv_link *lb) {
    const rv_tenant *a = RV_OUTER(la, rv_tenant, by_share), *b = RV_OUTER(lb, rv_tenant, by_share);
    return a->share != b->share ? a->share < b->share : a->entry.key < b->entry.key;
}

static bool deadline_before(rv_link *la, rv_link *lb) {
    const rv_req *a = RV_OUTER(la, rv_req, by_deadline), *b = RV_OUTER(lb, rv_req, by_deadline);
    if (a->deadline_ms != b->deadline_ms) return a->deadline_ms < b->deadline_ms;
    return a->entry.key < b->entry.key;
}

void rv_sched_watch_deadline(rv_sched *s, rv_req *r) {
    if (r->deadline_ms) rv_pheap_push(&s->deadlines, &r->by_deadline, deadline_before);
}

void rv_sched_forget_deadline(rv_sched *s, rv_req *r) {
    if (r->deadline_ms) rv_pheap_remove(&s->deadlines, &r->by_deadline, deadline_before);
    r->deadline_ms = 0;
}

rv_req *rv_sched_next_deadline(const rv_sched *s) {
    return s->deadlines ? RV_OUTER(s->deadlines, rv_req, by_deadline) : NULL;
}

/* ---- tenants ---- */

static uint64_t least_share(const rv_sched *s) {
    return s->active ? RV_OUTER(s->active, rv_tenant, by_share)->share : UINT64_MAX;
}

static void drop_tenant(rv_sched *s, rv_tenant *t) {
    rv_table_take(&s->tenants, &t->entry);
    rv_free(t);
}

/* Tenants without requests whose share is at most least: they would start there anyway. */
static void sweep(rv_sched *s, uint64_t least) {
    for (size_t i = 0; i <= s->tenants.mask; i++) {
        for (rv_entry *e = s->tenants.slot[i], *next; e; e = next) {
            next = e->next;
            rv_tenant *t = RV_OUTER(e, rv_tenant, entry);
            if (!t->n_live && t->share <= least) drop_tenant(s, t);
        }
    }
    s->n_kept = s->tenants.n;
}

void rv_sched_drop_tenants(rv_sched *s) {
    if (s->tenants.slot) sweep(s, UINT64_MAX);
}

rv_tenant *rv_sched_tenant(rv_sched *s, uint64_t id) {
    if (s->o.policy != RV_POLICY_FAIR) id = 0;
    rv_entry *e = rv_table_get(&s->tenants, id);
    if (e) return RV_OUTER(e, rv_tenant, entry);
    if (s->tenants.n > 2 * s->n_kept + TABLE_MIN) sweep(s, least_share(s));
    rv_tenant *t = rv_calloc(1, sizeof *t);
    if (!t) return NULL;
    t->entry.key = id;
    rv_table_put(&s->tenants, &t->entry);
    return t;
}

void rv_sched_join(rv_sched *s, rv_req *r) {
    rv_tenant *t = r->tenant;
    s->n_live++;
    if (t->n_live++) return;
    /* What it did not ask for it has not saved up. */
    if (s->active) t->share = RV_MAX(t->share, least_share(s));
    rv_pheap_push(&s->active, &t->by_share, share_before);
}

void rv_sched_leave(rv_sched *s, rv_req *r) {
    rv_tenant *t = r->tenant;
    r->tenant = NULL;
    s->n_live--;
    if (--t->n_live) return;
    rv_pheap_remove(&s->active, &t->by_share, share_before);
    if (!s->n_live)
        rv_sched_drop_tenants(s); /* a share is of a time when somebody wanted it */
    else if (t->share <= least_share(s))
        drop_tenant(s, t);
}

void rv_sched_charge(rv_sched *s, rv_tenant *t, uint64_t n) {
    if (!n) return;
    rv_pheap_remove(&s->active, &t->by_share, share_before);
    if (t->waiting) rv_pheap_remove(&s->ready, &t->by_rank, tenant_before);
    t->share += n;
    rv_pheap_push(&s->active, &t->by_share, share_before);
    if (t->waiting) rv_pheap_push(&s->ready, &t->by_rank, tenant_before);
}

/* ---- the queue ---- */

void rv_sched_enqueue(rv_sched *s, rv_req *r) {
    rv_tenant *t = r->tenant;
    r->since = s->tick - r->waited;
    r->state = RV_REQ_WAITING;
    r->rank = (s->o.age_steps ? (int64_t)(r->since / s->o.age_steps) : 0) - (int64_t)r->priority;
    r->cost = s->o.policy == RV_POLICY_SJF ? r->n_prompt + r->max_tokens : 0;
    if (t->waiting) rv_pheap_remove(&s->ready, &t->by_rank, tenant_before);
    rv_pheap_push(&t->waiting, &r->by_rank, request_before);
    rv_pheap_push(&s->ready, &t->by_rank, tenant_before);
    s->n_waiting++;
    s->n_queued += r->n_prompt;
}

void rv_sched_dequeue(rv_sched *s, rv_req *r) {
    rv_tenant *t = r->tenant;
    r->waited = s->tick - r->since;
    rv_pheap_remove(&s->ready, &t->by_rank, tenant_before);
    rv_pheap_remove(&t->waiting, &r->by_rank, request_before);
    if (t->waiting) rv_pheap_push(&s->ready, &t->by_rank, tenant_before);
    s->n_waiting--;
    s->n_queued -= r->n_prompt;
}

rv_req *rv_sched_first(const rv_sched *s) {
    return s->ready ? first_of(RV_OUTER(s->ready, rv_tenant, by_rank)) : NULL;
}

/* ---- the running ones ---- */

static bool runs_before(const rv_req *a, const rv_req *b) {
    if (a->rank != b->rank) return a->rank < b->rank;
    if (a->cost != b->cost) return a->cost < b->cost;
    return a->entry.key < b->entry.key;
}

static void merge(rv_req **to, rv_req **from, size_t lo, size_t mid, size_t hi) {
    size_t a = lo, b = mid;
    for (size_t i = lo; i < hi; i++) {
        const bool left = b == hi || (a < mid && runs_before(from[a], from[b]));
        to[i] = from[left ? a++ : b++];
    }
}

/* The share of a tenant with requests changes in the step thread only. */
void rv_sched_rank_running(rv_sched *s) {
    bool sorted = true;
    for (size_t i = 0; i < s->n_run; i++) {
        rv_req *r = s->run[i];
        const uint64_t lifted = s->o.age_steps ? r->waited / s->o.age_steps : 0;
        r->rank = -(int64_t)r->priority - (int64_t)lifted;
        r->cost = s->o.policy == RV_POLICY_FAIR  ? r->tenant->share
                  : s->o.policy == RV_POLICY_SJF ? r->n_prompt + r->max_tokens - rv_kv_len(r->kv)
                                                 : 0;
        if (i && !runs_before(s->run[i - 1], r)) sorted = false;
    }
    for (size_t w = 1; !sorted && w < s->n_run; w *= 2) {
        for (size_t lo = 0; lo < s->n_run; lo += 2 * w)
            merge(s->tmp, s->run, lo, RV_MIN(lo + w, s->n_run), RV_MIN(lo + 2 * w, s->n_run));
        rv_req **swap = s->run;
        s->run = s->tmp;
        s->tmp = swap;
    }
}
