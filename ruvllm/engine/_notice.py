"""What makes every model slow here, said once per process in the log (logger "ruvllm").

Owns the two notices: a CPU whose instruction sets no kernel is written for, and more threads than
CPUs.  The idea to hold: both work and give the same results, so neither is an error, and a service
that opens a hundred models wants one line and not a hundred.
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
        _once(line)
    if n_threads > n_cpus():
        _once(f"n_threads: {n_threads} threads for {n_cpus()} CPUs: they take turns")


def _once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _log.warning("%s", line)
