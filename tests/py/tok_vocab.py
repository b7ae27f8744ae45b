"""The golden vocabularies, and the same with another pre-tokenizer."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from ruvllm import _core

FOLDER = Path(__file__).parents[1] / "golden" / "vocab"
KEY = b"tokenizer.ggml.pre"


def path(name: str) -> Path:
    return FOLDER / f"ggml-vocab-{name}.gguf"


def with_pre(data: bytes, pre: str) -> bytes:
    """The file with ``tokenizer.ggml.pre`` replaced; it has no tensors, so nothing else moves."""
    at = data.index(struct.pack("<Q", len(KEY)) + KEY) + 8 + len(KEY)
    kind, n = struct.unpack_from("<IQ", data, at)
    assert kind == 8
    return data[: at + 4] + struct.pack("<Q", len(pre)) + pre.encode() + data[at + 12 + n :]


@cache
def tokenizer(name: str, pre: str = "") -> _core.Tokenizer:
    if not pre:
        return _core.tokenizer_open(_core.gguf_open(str(path(name))))
    return _core.tokenizer_open(_core.gguf_open_bytes(with_pre(path(name).read_bytes(), pre)))
