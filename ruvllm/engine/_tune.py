"""The number of threads `ruvllm bench --tune` found best, remembered per machine and model.

Owns ``<home>/tune.json`` and the decision.  The idea to hold: opening a model asks once, and may
never suffer from it: no file means no work, a file that cannot be used is a line in the log and the
default.  A machine is its CPU, instruction sets and the CPUs this process may use; a model is its
size and the first 4 KiB, which hold its metadata's beginning, so no weights are read.

    {"version": 1, "entries": {"<machine>|<model>": {"n_threads": 2, ...what was measured}}}
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ruvllm import _core
from ruvllm._errors import FileError
from ruvllm._paths import home
from ruvllm.engine._entries import BROKEN, put_entry, read_entries

_log = logging.getLogger("ruvllm")
_HEAD: Final = 4096  # bytes of the model that are part of its key
_MAX_THREADS: Final = 256
_PROMPT, _REPLY = 512, 128  # tokens of the request that is to be over soonest
_WORTH: Final = 0.03  # what one more thread must gain, or it is left to others


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens per second of one thread count."""

    n_threads: int
    prefill: float
    decode: float

    @property
    def seconds(self) -> float:
        """What a request of 512 prompt tokens and 128 generated ones would take."""
        return _PROMPT / self.prefill + _REPLY / self.decode


def tune_path() -> Path:
    """The file; it need not exist."""
    return home() / "tune.json"


def best(measured: Sequence[Measured]) -> Measured:
    """The thread count to use: the fastest, or a smaller one that is within 3 % of it.

    measured: at least one.
    """
    fastest = min(m.seconds for m in measured)
    enough = [m for m in measured if m.seconds <= fastest * (1 + _WORTH)]
    return min(enough, key=lambda m: m.n_threads)


def tuned_threads(path: str) -> int | None:
    """The remembered number of threads for this machine and model file, or None.

    Never raises: what is wrong with tune.json goes to the log (logger "ruvllm") and counts as
    nothing remembered.
    """
    try:
        file = tune_path()
    except RuntimeError:  # there is no home folder
        return None
    try:
        entries = read_entries(file)
        entry = entries.get(_key(path)) if entries else None
        if entry is None:
            return None
        n = entry["n_threads"]
        if type(n) is not int or not 1 <= n <= _MAX_THREADS:
            raise ValueError(f"n_threads is {n!r:.40}, want 1 .. {_MAX_THREADS}")
        return n
    except OSError:
        return None  # the model cannot be read: opening it says so
    except BROKEN as e:
        _log.warning("%s: ignored: %s", file, e)
        return None


def remember(path: str, measured: Sequence[Measured], about: Mapping[str, Any]) -> tuple[int, Path]:
    """Write what was measured for a model file; returns the chosen thread count and the file.

    about: more to keep for people.  Raises FileError when it cannot be written.
    """
    file = tune_path()
    chosen = best(measured)
    entry = {"n_threads": chosen.n_threads, "measured": [asdict(m) for m in measured], **about}
    try:
        key = _key(path)
    except OSError as e:
        raise FileError(f"{path}: {e.strerror}") from e
    put_entry(file, key, entry)
    return chosen.n_threads, file


def cpu_name() -> str:
    """The CPU as its maker calls it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            head = f.read(4096)  # the first core; all of it takes long where there are hundreds
    except OSError:
        head = ""
    for line in head.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def n_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(path: str) -> str:
    with open(path, "rb") as f:
        digest = hashlib.sha256(str(os.fstat(f.fileno()).st_size).encode() + b" " + f.read(_HEAD))
    return f"{cpu_name()}, {_core.cpu()['machine']}, {n_cpus()} CPUs|{digest.hexdigest()[:32]}"
