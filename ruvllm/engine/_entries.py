"""Small JSON files in the home folder that remember what was found out, entry by entry.

    {"version": 1, "entries": {"<key>": {...}}}

Owns reading and replacing such a file, not what an entry means.  The idea to hold: a file is of use
and never in the way: where there is none nothing is known, a broken one is the reader's to report
and is replaced by whoever writes.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ruvllm._errors import FileError

_log = logging.getLogger("ruvllm")
_VERSION: Final = 1
_LARGEST: Final = 1 << 20  # bytes of a file: some thousand entries

BROKEN: Final = (ValueError, KeyError, TypeError, RecursionError)
"""What a file, or an entry, that holds something else makes a reader raise."""


def read_entries(file: Path) -> dict[str, dict[str, Any]]:
    """The entries by key; none where the file cannot be read.

    Raises one of BROKEN when it is no such file.
    """
    try:
        return _read(file)
    except OSError:
        return {}


def put_entry(file: Path, key: str, entry: Mapping[str, Any]) -> None:
    """Write one entry, keeping the others.

    The file is replaced at once, so a reader sees the old or the new one; of two writers at the
    same time the later one wins.  What is no such file is replaced, with a line in the log.
    Raises FileError when it cannot be written.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = _kept(file)
        entries[key] = dict(entry)
        text = json.dumps({"version": _VERSION, "entries": entries}, indent=1)
        _replace(file, text.encode() + b"\n")
    except OSError as e:
        raise FileError(f"{e.filename or file}: {e.strerror}") from e


def _read(file: Path) -> dict[str, dict[str, Any]]:
    with open(file, "rb") as f:
        data = f.read(_LARGEST + 1)
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
        return _read(file)
    except FileNotFoundError:
        return {}
    except BROKEN as e:
        _log.warning("%s: replaced: %s", file, e)
        return {}


def _replace(file: Path, data: bytes) -> None:
    fd, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
    try:
        with open(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
