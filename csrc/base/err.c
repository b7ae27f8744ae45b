/* Error reports: one code and one line of text, filled by the deepest frame that knows. */
#include <stdio.h>

#include "base/base.h"

rv_status rv_fail(rv_err *err, rv_status code, const char *fmt, ...) {
    if (!err || err->code != RV_OK) return code;
    err->code = code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    /* One line, whatever a file or a path put into the text. */
    for (char *p = err->msg; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    return code;
}

const char *rv_version(void) {
    return RUVLLM_VERSION; /* from pyproject.toml, by CMakeLists.txt */
}
