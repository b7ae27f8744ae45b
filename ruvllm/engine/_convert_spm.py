"""Reads SentencePiece's `tokenizer.model`: the few fields of its protocol buffer that we need.

The format is a list of (field number, wire type, value).  Ours, from SentencePiece's published
description: ModelProto { pieces = 1, trainer_spec = 2, normalizer_spec = 3 }, a piece is
{ piece = 1, score = 2 (float), type = 3 }; everything else is stepped over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ruvllm._errors import FormatError, UnsupportedError

_BPE: Final = 2  # TrainerSpec.model_type
_PIECE_TYPES: Final = range(1, 7)  # NORMAL .. BYTE, numbered as tokenizer.ggml.token_type is


@dataclass(slots=True)
class SentencePiece:
    """Pieces by id with scores and types, the flags of the normaliser, ids of special tokens."""

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)  # -1: none
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


class _Broken(Exception):
    pass


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Broken
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """``(number, value)``: an int for a varint, bytes for the rest."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        else:
            if wire == 2:
                n, at = _varint(data, at)
            elif wire in (1, 5):
                n = 8 if wire == 1 else 4
            else:
                raise _Broken
            if n > len(data) - at:
                raise _Broken
            value = data[at : at + n]
            at += n
        yield tag >> 3, value


def _signed(value: int | bytes) -> int:
    """An int32 field: negative ones are stored as 64-bit two's complement."""
    if not isinstance(value, int):
        raise _Broken
    return value - (1 << 64) if value >= 1 << 63 else value


def _piece(out: SentencePiece, data: bytes) -> None:
    text, score, kind = b"", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and value in _PIECE_TYPES and isinstance(value, int):
            kind = value
        elif number <= 3:
            raise _Broken
    out.tokens.append(text.decode("utf-8"))
    out.scores.append(score)
    out.types.append(kind)


def _trainer(out: SentencePiece, data: bytes, path: Path) -> None:
    model, ids = 1, {40: ("unk", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("pad", -1)}
    out.special = dict(ids.values())
    for number, value in _fields(data):
        if number == 3:
            model = _signed(value)
        elif number in ids:
            out.special[ids[number][0]] = _signed(value)
    if model != _BPE:
        raise UnsupportedError(f"{path}: SentencePiece model type {model}, want BPE ({_BPE})")


def read_sentencepiece(path: Path) -> SentencePiece:
    """The pieces of a ``tokenizer.model``.

    Raises FormatError when the bytes are no such file, UnsupportedError for a model other than BPE.
    """
    out = SentencePiece()
    try:
        seen_trainer = False
        for number, value in _fields(path.read_bytes()):
            if not isinstance(value, bytes):
                raise _Broken
            if number == 1:
                _piece(out, value)
            elif number == 2:
                seen_trainer = True
                _trainer(out, value, path)
            elif number == 3:
                for n, flag in _fields(value):
                    if n == 3:
                        out.add_dummy_prefix = flag == 1
                    elif n == 4:
                        out.remove_extra_whitespaces = flag == 1
        if not out.tokens or not seen_trainer:
            raise _Broken
    except (_Broken, UnicodeDecodeError):
        raise FormatError(f"{path}: not a SentencePiece model") from None
    return out
