"""What was said in a conversation, in a file: the truth from which all else can be computed again.

JSON, written whole or not at all; keys and values stand in a file beside it, which may be lost.
Paths are texts: pathlib would keep a part of each for ever.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ruvllm._errors import ArgumentError, FileError, FormatError, NotFoundError

_VERSION = 1
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "model_name": str,
    "session_id": (str, type(None)),
    "user_id": (str, type(None)),
    "messages": list,
    "tokens": list,
}


@dataclasses.dataclass(slots=True)
class Transcript:
    """A conversation: the digest and name of its model, whose it is, messages and all ids."""

    model: str
    model_name: str
    session_id: str | None
    user_id: str | None
    messages: list[dict[str, Any]]
    tokens: list[int]

    def write(self, path: str) -> None:
        """To that file, whole or not at all, and to the disk.  Raises FileError."""
        record = {"ruvllm_session": _VERSION, **{k: getattr(self, k) for k in _FIELDS}}
        _write_whole(path, json.dumps(record) + "\n")

    @classmethod
    def read(cls, path: str, model: str, model_name: str) -> Transcript:
        """What ``write`` wrote, of the model with that digest.

        Raises NotFoundError, FileError, FormatError; ArgumentError when it is of another model.
        """
        record = _read_record(path)
        self = cls(**{k: record[k] for k in _FIELDS})
        if self.model != model:
            raise ArgumentError(
                f"{path}: is of model {self.model_name} ({self.model[:19]}...), "
                f"want {model_name} ({model[:19]}...)"
            )
        return self


def beside(path: str) -> str:
    """Where the keys and values of a transcript are."""
    return path + ".kv"


def as_messages(
    message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Messages as a list; a text is one of the user."""
    if isinstance(message, str):
        return [{"role": "user", "content": message}]
    return [dict(m) for m in ([message] if isinstance(message, Mapping) else message)]


def _write_whole(path: str, text: str) -> None:
    folder, name = os.path.split(path)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder or ".", prefix=name + ".", delete=False
        ) as f:
            try:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
                os.replace(f.name, path)
            except BaseException:
                os.unlink(f.name)
                raise
    except OSError as e:
        raise FileError(f"{path}: {e.strerror}") from e


def _read_record(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as e:
        raise FileError(f"{path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path}: is not a session: {e}") from None
    if not isinstance(record, dict) or "ruvllm_session" not in record:
        raise FormatError(f"{path}: is not a session, want a JSON object that says so")
    if record["ruvllm_session"] != _VERSION:
        found = record["ruvllm_session"]
        raise FormatError(f"{path}: has version {found!r:.20}, want {_VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise FormatError(f"{path}: {name} is {record.get(name)!r:.40}, want {kind}")
    if not all(type(t) is int for t in record["tokens"]):
        raise FormatError(f"{path}: tokens holds something else than ids")
    if not all(isinstance(m, dict) for m in record["messages"]):
        raise FormatError(f"{path}: messages holds something else than messages")
    return record
