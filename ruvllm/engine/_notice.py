"""What is said once per process in the log (logger "ruvllm").

Owns the two notices about what makes every model slow here: a CPU whose instruction sets no kernel
is written for, and more threads than CPUs.  The idea to hold: both work and give the same results,
so neither is an error, and a service that opens a hundred models wants one line and not a hundred.
"""

from __future__ import annotations

import logging

from ruvllm import _core
from ruvllm.engine._tune import n_cpus

_log = logging.getLogger("ruvllm")
_said: set[str] = set()


def portable_cpu() -> str | None:
    """A line when every kernel in use is portable code, else None."""
    if _core.cpu()["features"] != "portable":
        return None
    return "cpu: found no AVX2 with FMA and F16C: models run in portable code, many times slower"


def notice_speed(n_threads: int) -> None:
    """Say, once per process each, that the CPU is too old or ``n_threads`` too many."""
    if line := portable_cpu():
        notice_once(line)
    if n_threads > n_cpus():
        notice_once(f"n_threads: {n_threads} threads for {n_cpus()} CPUs: they take turns")


def notice_once(line: str) -> None:
    """A line in the log, unless this process has said it before."""
    if line not in _said:
        _said.add(line)
        _log.warning("%s", line)
