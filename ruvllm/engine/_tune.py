"""The number of threads `ruvllm bench --tune` found best, remembered per machine and model.

Owns ``<home>/tune.json`` and the decision.  The idea to hold: opening a model asks once, and may
never suffer from it: no file means no work, a file that cannot be used is a line in the log and the
default.  A machine is its CPU, instruction sets and the CPUs this process may use; a model is its
size and the first 4 KiB, which hold its metadata's beginning, so no weights are read.

    {"version": 1, "entries": {"<machine>|<model>": {"n_threads": 2, ...what was measured}}}
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ruvllm import _core
from ruvllm._errors import FileError
from ruvllm._paths import home

_log = logging.getLogger("ruvllm")
_VERSION: Final = 1
_LARGEST: Final = 1 << 20  # bytes of tune.json: some thousand entries
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
        with open(file, "rb") as f:
            data = f.read(_LARGEST + 1)
    except (OSError, RuntimeError):  # there is none, or no home folder
        return None
    try:
        key = _key(path)
    except (OSError, ValueError):
        return None  # the model cannot be read: opening it says so
    try:
        entry = _entries(data).get(key)
        if entry is None:
            return None
        n = entry["n_threads"]
        if type(n) is not int or not 1 <= n <= _MAX_THREADS:
            raise ValueError(f"n_threads is {n!r:.40}, want 1 .. {_MAX_THREADS}")
        return n
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        _log.warning("%s: ignored: %s", file, e)
        return None


def remember(path: str, measured: Sequence[Measured], about: Mapping[str, Any]) -> tuple[int, Path]:
    """Write what was measured for a model file; returns the chosen thread count and the file.

    about: more to keep for people.  The file is replaced at once, so a reader sees the old or the
    new one; of two writers at the same time the later one wins.  What cannot be read is replaced.
    Raises FileError when it cannot be written.
    """
    file = tune_path()
    chosen = best(measured)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = _kept(file)
        entries[_key(path)] = {
            "n_threads": chosen.n_threads,
            "measured": [asdict(m) for m in measured],
            **about,
        }
        text = json.dumps({"version": _VERSION, "entries": entries}, indent=1)
        _replace(file, text.encode() + b"\n")
    except OSError as e:
        raise FileError(f"{e.filename or file}: {e.strerror}") from e
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


def _entries(data: bytes) -> dict[str, dict[str, Any]]:
    if len(data) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    found = json.loads(data)
    version = found.get("version") if isinstance(found, dict) else None
    if version != _VERSION:
        raise ValueError(f"version is {version!r:.40}, want {_VERSION}")
    entries: dict[str, dict[str, Any]] = found["entries"]
    if not isinstance(entries, dict):
        raise TypeError(f"entries is a {type(entries).__name__}, want an object")
    return entries


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(_entries(file.read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        _log.warning("%s: replaced: %s", file, e)
        return {}


def _replace(file: Path, data: bytes) -> None:
    fd, name = tempfile.mkstemp(dir=file.parent, prefix=".tune-")
    try:
        with open(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
