"""The digest that names a model file in the log: "sha256:<hex>" over all of its bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from ruvllm._errors import FileError, NotFoundError

_READ_BYTES = 4 << 20

FileKey = tuple[str, int, int, int]
"""What tells a file from an edited one: absolute path, size, mtime in ns, inode."""


def _key(path: str, st: os.stat_result) -> FileKey:
    return path, st.st_size, st.st_mtime_ns, st.st_ino & (2**63 - 1)


def file_key(path: str | os.PathLike[str]) -> FileKey:
    """The key of a regular file.  Raises NotFoundError, or FileError naming what it is."""
    full = os.path.abspath(path)
    try:
        st = os.stat(full)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{full}: no such file") from None
    except OSError as e:
        raise FileError(f"{full}: cannot stat: {e.strerror}") from e
    if not stat.S_ISREG(st.st_mode):
        raise FileError(f"{full}: is not a regular file")
    return _key(full, st)


def hash_file(path: str | os.PathLike[str]) -> tuple[FileKey, str]:
    """The key and digest of a file, read once in 4 MiB steps; the GIL is free while hashing.

    Raises NotFoundError, FileError (also when the file changes while it is read).
    """
    full = file_key(path)[0]
    buffer = memoryview(bytearray(_READ_BYTES))
    sha = hashlib.sha256()
    try:
        with Path(full).open("rb", buffering=0) as f:
            before = _key(full, os.fstat(f.fileno()))
            while n := f.readinto(buffer):
                sha.update(buffer[:n])
            after = _key(full, os.fstat(f.fileno()))
    except OSError as e:
        raise FileError(f"{full}: cannot read: {e.strerror}") from e
    if before != after:
        raise FileError(f"{full}: changed while it was read")
    return before, "sha256:" + sha.hexdigest()
