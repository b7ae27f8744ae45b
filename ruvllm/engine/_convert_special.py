"""Special tokens and chat templates of a Hugging Face folder.

Owns which ids begin, end, pad and separate, whether they are put around a text, and the templates.
Four files may say each of these; the order in which they are asked is the contract here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruvllm._errors import FormatError, UnsupportedError
from ruvllm.engine._convert_arch import Config
from ruvllm.engine._convert_vocab import KINDS, Vocab, optional_json, parts_of
from ruvllm.engine._convert_weights import read_json


def content_of(token: Any) -> str | None:
    """The text of a special token as any of the JSON files writes it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def set_special_ids(
    v: Vocab, folder: Path, file: Config | None, extra: Config, config: Config
) -> None:
    """Fill ``v.special`` and the add_bos / add_eos flags.

    First of: tokenizer_config.json, special_tokens_map.json, the model's config.json,
    generation_config.json, what the vocabulary itself says.
    """
    n = len(v.tokens)
    ids: dict[str, int] = {}
    for i, t in enumerate(v.tokens):
        ids.setdefault(t, i)
    named = [extra, optional_json(folder / "special_tokens_map.json")]
    numbered = [config, optional_json(folder / "generation_config.json")]
    own = dict(v.special)
    v.special = {}
    for kind in KINDS:
        texts = (content_of(c.get(f"{kind}_token")) for c in named)
        found = next((ids[t] for t in texts if t is not None and t in ids), None)
        if found is None:
            found = next((i for c in numbered for i in _id_list(c, kind, n)), own.get(kind))
        if found is not None:
            v.special[kind] = found
    if v.model == "bert":
        v.special.setdefault("bos", v.special.get("cls", -1))
        v.special.setdefault("eos", v.special.get("sep", -1))
        missing = [k for k in ("cls", "sep", "unk") if k not in v.special]
        if missing:
            raise FormatError(f"tokenizer: no {missing[0]} token, a WordPiece vocabulary needs one")
    _ends(v, file, extra, ids)
    others = [i for c in numbered[::-1] for i in _id_list(c, "eos", n) if i != v.special.get("eos")]
    for kind, i in zip(("eot", "eom"), dict.fromkeys(others), strict=False):
        v.special.setdefault(kind, i)


def _id_list(c: Config, kind: str, n: int) -> list[int]:
    found = c.get(f"{kind}_token_id")
    if found is None:
        return []
    ids = found if isinstance(found, list) else [found]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int):
            raise FormatError(f"{c.file}: {kind}_token_id: found {found!r:.60}, want an id")
    return [i for i in ids if 0 <= i < n]


def _ends(v: Vocab, file: Config | None, extra: Config, ids: dict[str, int]) -> None:
    """Whether a begin and an end token are put around a text, and which."""
    add = {"bos": extra.get("add_bos_token"), "eos": extra.get("add_eos_token")}
    if v.model == "bert":
        add = {"bos": True, "eos": True}
    elif v.model == "llama" and add["bos"] is None:
        add["bos"] = True  # what the tokenizer class does that such files belong to
    steps = parts_of(file.get("post_processor"), "processors") if file is not None else []
    for step in steps:
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") == "BertProcessing" and v.model == "bert":
            continue
        if step.get("type") != "TemplateProcessing":
            raise UnsupportedError(
                f"tokenizer.json: post_processor {step.get('type')!r}, want "
                "TemplateProcessing or ByteLevel"
            )
        first, last = _template_ends(step, ids)
        add = {"bos": first is not None, "eos": last is not None}
        if first is not None:
            v.special["bos"] = first
        if last is not None and last != v.special.get("eos"):
            if "eos" in v.special:  # generation still ends at the token the config names
                v.special["eot"] = v.special["eos"]
            v.special["eos"] = last
    for kind in ("bos", "eos"):
        v.flags[f"add_{kind}_token"] = add[kind] is True and kind in v.special


def _template_ends(step: dict[str, Any], ids: dict[str, int]) -> tuple[int | None, int | None]:
    """Ids of the tokens that TemplateProcessing puts before and after a single text."""
    single = step.get("single")
    names: list[Any] = []
    for part in single if isinstance(single, list) else []:
        special = part.get("SpecialToken") if isinstance(part, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        names.append(name if name is None else str(name))
    if names.count(None) != 1 or len(names) > 3:
        raise UnsupportedError(
            f"tokenizer.json: post_processor: template {step.get('single')!r:.120}, "
            "want at most one token before and one after the text"
        )
    at = names.index(None)
    if at > 1 or len(names) - at > 2:
        raise UnsupportedError(
            f"tokenizer.json: post_processor: template of {names}, "
            "want at most one token before and one after the text"
        )

    def id_of(name: str) -> int:
        if name not in ids:
            raise FormatError(f"tokenizer.json: post_processor: token {name!r} is not in the vocab")
        return ids[name]

    first = id_of(names[0]) if at == 1 else None
    last = id_of(names[-1]) if at < len(names) - 1 else None
    return first, last


def chat_templates(folder: Path, extra: Config) -> dict[str, str]:
    """Chat templates by name: a .jinja file wins over tokenizer_config.json, as upstream."""
    out: dict[str, str] = {}
    found = extra.get("chat_template")
    if isinstance(found, str):
        out["default"] = found
    elif isinstance(found, list):
        for t in found:
            name, text = (t.get("name"), t.get("template")) if isinstance(t, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(text, str):
                raise FormatError(
                    f"{extra.file}: chat_template: found {t!r:.80}, want a name and a template"
                )
            out[name] = text
    elif found is not None:
        raise FormatError(f"{extra.file}: chat_template: found {found!r:.60}, want a string")
    whole = folder / "chat_template.jinja"
    files = [("default", whole)] if whole.is_file() else []
    files += [(p.stem, p) for p in sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for name, path in files:
        try:
            out[name] = path.read_text("utf-8")
        except UnicodeDecodeError as e:
            raise FormatError(f"{path}: not UTF-8 at byte {e.start}") from None
    if "default" not in out and (old := folder / "chat_template.json").is_file():
        text = read_json(old).get("chat_template")
        if isinstance(text, str):
            out["default"] = text
    return out
