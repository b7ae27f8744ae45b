"""What a vocabulary of a GGUF is, and the small readers that its makers share.

Owns the `Vocab` record and its spelling as metadata keys; knows no kind of tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ruvllm._errors import FormatError
from ruvllm.engine._convert_arch import Config, Kv
from ruvllm.engine._convert_weights import read_json

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
KINDS: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_KEY_OF: Final = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # sic: ggml's spelling


@dataclass(slots=True)
class Vocab:
    """A vocabulary as a GGUF holds it.

    tokens, types, and scores where there are any, run by id.  special: ids by kind (``bos`` ...).
    flags: further ``tokenizer.ggml`` booleans.  templates: chat templates by name.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)

    def pad_to(self, n: int) -> None:
        """Add unused tokens up to ``n``, the embedding's rows; FormatError when there are more."""
        if len(self.tokens) > n:
            raise FormatError(
                f"tokenizer: found {len(self.tokens)} tokens, the embedding has {n} rows"
            )
        have = set(self.tokens)
        for i in range(len(self.tokens), n):
            self.tokens.append(unused_name(i, have))
            self.types.append(UNUSED)
            if self.scores is not None:
                self.scores.append(-10000.0)

    def kv(self) -> Iterator[Kv]:
        """The metadata, in the usual order."""
        g = "tokenizer.ggml."
        yield g + "model", "str", self.model
        yield g + "pre", "str", self.pre
        yield g + "tokens", "arr[str]", self.tokens
        if self.scores is not None:
            yield g + "scores", "arr[f32]", self.scores
        yield g + "token_type", "arr[i32]", self.types
        if self.merges is not None:
            yield g + "merges", "arr[str]", self.merges
        for kind, i in self.special.items():
            yield f"{g}{_KEY_OF.get(kind, kind)}_token_id", "u32", i
        for name, value in self.flags.items():
            yield g + name, "bool", value
        for name, text in self.templates.items():
            suffix = "" if name == "default" else f".{name}"
            yield f"tokenizer.chat_template{suffix}", "str", text
        if others := [n for n in self.templates if n != "default"]:
            yield "tokenizer.chat_templates", "arr[str]", others


def unused_name(i: int, have: set[str]) -> str:
    name = f"[PAD{i}]"
    while name in have:
        name += "_"
    have.add(name)
    return name


def optional_json(path: Path) -> Config:
    return Config(read_json(path) if path.is_file() else {}, path.name)


def parts_of(node: Any, list_key: str) -> list[dict[str, Any]]:
    """A normalizer, pre_tokenizer or post_processor as a flat list of its steps."""
    if node is None:
        return []
    if not isinstance(node, dict):
        raise FormatError(f"tokenizer.json: {list_key}: found {node!r:.60}, want an object")
    if node.get("type") != "Sequence":
        return [node]
    children = node.get(list_key) or []
    if not isinstance(children, list):
        raise FormatError(f"tokenizer.json: {list_key}: found {children!r:.60}, want a list")
    return [part for child in children for part in parts_of(child, list_key)]
