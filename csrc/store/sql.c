/* Every SQL string of the project: schema, migrations, statements, connection settings.
 *
 * A schema that was released is never edited: a change is a new migration and a higher
 * RV_SQL_SCHEMA.  Tables are STRICT, so a value of the wrong type is refused instead of stored.
 * Text that holds JSON says so with a CHECK; so do the ranges and block sizes that readers rely
 * on.  The columns of RV_SQL_WITNESS_PUT stand in the order of rv_witness_fields(). */
#include "store/sql.h"

/* A column per line. */
/* clang-format off */
#define JSON(col) " " col " TEXT CHECK (" col " IS NULL OR json_valid(" col ")),"
#define UNIT(col) " " col " REAL CHECK (" col " IS NULL OR " col " BETWEEN 0 AND 1),"
#define WORDS(col) " " col " BLOB CHECK (" col " IS NULL OR length(" col ") % 4 = 0),"

const char *const rv_sql_migrations[RV_SQL_SCHEMA] = {
    "CREATE TABLE witness ("
    " seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    " id TEXT NOT NULL UNIQUE CHECK (length(id) = 36),"
    " request_id TEXT,"
    " session_id TEXT,"
    " ts_ms INTEGER NOT NULL,"
    " kind TEXT NOT NULL,"
    " model_used TEXT,"
    " model_name TEXT,"
    " model_digest TEXT,"
    " model_path TEXT,"
    " adapter TEXT,"
    JSON("routing")
    UNIT("propensity")
    " policy_version TEXT,"
    WORDS("query_embedding")
    WORDS("response_embedding")
    UNIT("quality_score")
    JSON("quality_metrics")
    " embedding_ms REAL,"
    " retrieval_ms REAL,"
    " routing_ms REAL,"
    " attention_ms REAL,"
    " generation_ms REAL,"
    " total_ms REAL,"
    " prefill_ms REAL,"
    " queue_ms REAL,"
    JSON("context_doc_ids")
    JSON("error")
    JSON("tags")
    " prompt_text TEXT,"
    WORDS("prompt_ids")
    " output_text TEXT,"
    WORDS("output_ids")
    " seed INTEGER,"
    JSON("params")
    " finish_reason TEXT,"
    " n_prompt INTEGER,"
    " n_output INTEGER,"
    JSON("engine")
    " user_id TEXT,"
    " prev_hash BLOB CHECK (prev_hash IS NULL OR length(prev_hash) = 32),"
    " hash BLOB CHECK (hash IS NULL OR length(hash) = 32),"
    " legal_hold INTEGER NOT NULL DEFAULT 0 CHECK (legal_hold IN (0, 1))"
    ") STRICT;"
    "CREATE INDEX witness_by_time ON witness (ts_ms);"
    "CREATE INDEX witness_by_session ON witness (session_id, ts_ms);"
    "CREATE INDEX witness_by_digest ON witness (model_digest);"
    "CREATE TABLE model_digest_cache ("
    " path TEXT PRIMARY KEY,"
    " size INTEGER NOT NULL,"
    " mtime_ns INTEGER NOT NULL,"
    " inode INTEGER NOT NULL,"
    " digest TEXT NOT NULL"
    ") STRICT, WITHOUT ROWID;"
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) STRICT, WITHOUT ROWID;"
    "INSERT INTO meta VALUES ('created_at', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));",
};
/* clang-format on */

/* coalesce instead of "?1 IS NULL OR ...", so that the range still uses the index on time. */
#define TIME_RANGE " ts_ms >= coalesce(?1, -9223372036854775808) AND (?2 IS NULL OR ts_ms < ?2)"
#define MODEL_KIND " AND (?4 IS NULL OR model_name = ?4) AND (?5 IS NULL OR kind = ?5)"
#define NEWEST " ORDER BY ts_ms DESC, seq DESC LIMIT ?6 OFFSET ?7"
/* Text sorts by bytes and ids are lower-case hexadecimal and '-', all of which sort before '~'. */
#define BEGINS_WITH " id >= ?1 AND id < ?1 || '~'"

const char *const rv_sql_text[RV_SQL_COUNT] = {
    [RV_SQL_WITNESS_PUT] =
        "INSERT INTO witness (id, request_id, session_id, ts_ms, kind, model_used, model_name,"
        " model_digest, model_path, adapter, routing, propensity, policy_version,"
        " query_embedding, response_embedding, quality_score, quality_metrics, embedding_ms,"
        " retrieval_ms, routing_ms, attention_ms, generation_ms, total_ms, prefill_ms, queue_ms,"
        " context_doc_ids, error, tags, prompt_text, prompt_ids, output_text, output_ids, seed,"
        " params, finish_reason, n_prompt, n_output, engine, user_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
        " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    [RV_SQL_DIGEST_PUT] =
        "INSERT INTO model_digest_cache (path, size, mtime_ns, inode, digest)"
        " VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (path) DO UPDATE SET size = ?2, mtime_ns = ?3,"
        " inode = ?4, digest = ?5",
    [RV_SQL_META_PUT] = "INSERT INTO meta (key, value) VALUES (?1, ?2)"
                        " ON CONFLICT (key) DO UPDATE SET value = ?2",
    [RV_SQL_WITNESS_GET] = "SELECT * FROM witness WHERE" BEGINS_WITH " LIMIT 1",
    [RV_SQL_WITNESS_GET_COUNT] = "SELECT count(*) AS n FROM witness WHERE" BEGINS_WITH,
    [RV_SQL_WITNESS_LIST] =
        "SELECT * FROM witness WHERE" TIME_RANGE MODEL_KIND " AND ?3 IS NULL" NEWEST,
    [RV_SQL_WITNESS_LIST_SESSION] =
        "SELECT * FROM witness WHERE session_id = ?3 AND" TIME_RANGE MODEL_KIND NEWEST,
    [RV_SQL_WITNESS_COUNT] =
        "SELECT count(*) AS n FROM witness WHERE" TIME_RANGE MODEL_KIND " AND ?3 IS NULL",
    [RV_SQL_WITNESS_COUNT_SESSION] =
        "SELECT count(*) AS n FROM witness WHERE session_id = ?3 AND" TIME_RANGE MODEL_KIND,
    [RV_SQL_DIGEST_GET] = "SELECT digest FROM model_digest_cache"
                          " WHERE path = ?1 AND size = ?2 AND mtime_ns = ?3 AND inode = ?4",
    [RV_SQL_META_GET] = "SELECT value FROM meta WHERE key = ?1",
};

const rv_sql_call rv_sql_queries[RV_QUERY_META + 1] = {
    [RV_QUERY_WITNESS_GET] = {"witness_get", "t", RV_SQL_WITNESS_GET},
    [RV_QUERY_WITNESS_LIST] = {"witness_list", "IITTTii", RV_SQL_WITNESS_LIST},
    [RV_QUERY_WITNESS_COUNT] = {"witness_count", "IITTT", RV_SQL_WITNESS_COUNT},
    [RV_QUERY_DIGEST] = {"digest", "tiii", RV_SQL_DIGEST_GET},
    [RV_QUERY_META] = {"meta", "t", RV_SQL_META_GET},
};

const rv_sql_call rv_sql_writes[RV_WRITE_META + 1] = {
    [RV_WRITE_DIGEST] = {"digest", "tiiit", RV_SQL_DIGEST_PUT},
    [RV_WRITE_META] = {"meta", "tT", RV_SQL_META_PUT},
};

const char rv_sql_begin[] = "BEGIN IMMEDIATE";
const char rv_sql_begin_read[] = "BEGIN";
const char rv_sql_commit[] = "COMMIT";
const char rv_sql_rollback[] = "ROLLBACK";
const char rv_sql_get_application_id[] = "PRAGMA application_id";
const char rv_sql_get_schema[] = "PRAGMA user_version";
const char rv_sql_n_objects[] = "SELECT count(*) FROM sqlite_master";
#define TEXT_OF_(x) #x
#define TEXT_OF(x) TEXT_OF_(x)
const char rv_sql_set_application_id[] = "PRAGMA application_id = " TEXT_OF(RV_SQL_APPLICATION_ID);
const char rv_sql_set_schema[] = "PRAGMA user_version = " TEXT_OF(RV_SQL_SCHEMA);
const char rv_sql_wal[] = "PRAGMA journal_mode = WAL";
/* trusted_schema stays on: with it off SQLite before 3.42 refuses json_valid in a CHECK. */
const char rv_sql_connection[] = "PRAGMA foreign_keys = ON;"
                                 " PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY";
/* NORMAL: a commit is not an fsync; the writer syncs the log itself where someone waits for it. */
const char rv_sql_writer[] = "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 1000;"
                             " PRAGMA journal_size_limit = 67108864";
const char rv_sql_reader[] = "PRAGMA query_only = ON";
