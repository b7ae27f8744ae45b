/* Every SQL string of the project, by name: see sql.c. */
#ifndef RV_STORE_SQL_H
#define RV_STORE_SQL_H

#include "base/base.h"

#define RV_SQL_APPLICATION_ID 0x5256534d /* "RVSM": ours, in the file's header */
#define RV_SQL_SCHEMA 1                  /* user_version: the schema this build writes */

typedef enum rv_sql { /* statements; those marked w belong to the writing connection */
                      RV_SQL_WITNESS_PUT, /* w */
                      RV_SQL_DIGEST_PUT,  /* w */
                      RV_SQL_META_PUT,    /* w */
                      RV_SQL_N_WRITES,
                      RV_SQL_WITNESS_GET = RV_SQL_N_WRITES,
                      RV_SQL_WITNESS_GET_COUNT,
                      RV_SQL_WITNESS_LIST,
                      RV_SQL_WITNESS_LIST_SESSION,
                      RV_SQL_WITNESS_COUNT,
                      RV_SQL_WITNESS_COUNT_SESSION,
                      RV_SQL_DIGEST_GET,
                      RV_SQL_META_GET,
                      RV_SQL_COUNT,
} rv_sql;

extern const char *const rv_sql_text[RV_SQL_COUNT];
/* rv_sql_migrations[i] takes schema i to i + 1; run inside one transaction. */
extern const char *const rv_sql_migrations[RV_SQL_SCHEMA];

extern const char rv_sql_begin[], rv_sql_begin_read[], rv_sql_commit[], rv_sql_rollback[];
extern const char rv_sql_get_application_id[], rv_sql_get_schema[], rv_sql_n_objects[];
extern const char rv_sql_set_application_id[]; /* both run inside the migration's transaction */
extern const char rv_sql_set_schema[];
extern const char rv_sql_wal[];        /* answers the journal mode in force */
extern const char rv_sql_connection[]; /* settings of every connection */
extern const char rv_sql_writer[];     /* and of the writing one */
extern const char rv_sql_reader[];     /* and of reading ones */

/* The queries and writes callers name, with the types of their arguments:
 * 'i' INT, 't' TEXT; in upper case they may be null. */
typedef struct rv_sql_call {
    const char *name;
    const char *args;
    rv_sql sql;
} rv_sql_call;
extern const rv_sql_call rv_sql_queries[RV_QUERY_META + 1];
extern const rv_sql_call rv_sql_writes[RV_WRITE_META + 1];

#endif
