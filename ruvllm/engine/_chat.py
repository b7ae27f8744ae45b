"""Chat templates: messages to the text the model was trained on, and that text to ids.

The rule: what a user wrote never becomes a control token.  A rendering is therefore not a string
but segments (text, trusted).  Trusted are the characters that stand in the template itself, its
begin and end tokens, and the usual names of roles (so that '<|' + message.role + '|>' works); all
the rest, message contents, tool schemas, arguments, other roles and whatever the template computes
from them, is not.  ``encode`` looks for control tokens inside trusted text alone.

How trust is kept through the template's operations: _jinja_text.py.  How the template is run, and
what bounds it: _jinja.py.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from ruvllm._errors import ArgumentError, FormatError, InternalError, UnsupportedError
from ruvllm.engine import _jinja
from ruvllm.engine import _jinja_text as T
from ruvllm.engine._jinja_values import MAX_TEXT, from_python

Segments = list[tuple[str, bool]]

#: Roles whose names may be part of a control token that the template puts together.
ROLES = frozenset(
    {"assistant", "context", "developer", "function", "ipython", "model", "system", "tool", "user"}
)


class ChatTokenizer(Protocol):
    """What ``encode`` needs of a tokenizer; weakly referenced."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""

    def tokenize(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
        """Ids of text; special: text that spells a control token becomes it."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes a token adds to the text; of control tokens nothing unless special."""


def _refuse(message: str) -> NoReturn:
    raise ArgumentError(message)


class ChatTemplate:
    """A model's chat template.

    source: Jinja, at most 1 MiB, in the dialect of Hugging Face's chat templates.  bos_token,
    eos_token: the spellings the template may use under those names ("" when there are none).
    time_limit_s: most wall time of parsing, and of each rendering.  name: for messages.
    Raises FormatError, naming template and line, if it does not parse.  Thread-safe.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        time_limit_s: float = 2.0,
        name: str = "chat template",
    ) -> None:
        if not isinstance(source, str):
            raise ArgumentError(f"{name}: is a {type(source).__name__}, want a string")
        self.source = source
        self._name = name
        self._tokens = {"bos_token": T.trusted(bos_token), "eos_token": T.trusted(eos_token)}
        self._time_limit_s = time_limit_s
        try:
            self._tree = _jinja.parse(source, time_limit_s)
        except _jinja.TemplateError as e:
            raise FormatError(f"{name}: {e}") from None

    @classmethod
    def of_model(cls, source: object, *, path: str, bos_token: str, eos_token: str) -> ChatTemplate:
        """The template of a file's ``tokenizer.chat_template``.

        Raises UnsupportedError if the file has none, saying how to give one.
        """
        if not isinstance(source, str) or not source:
            raise UnsupportedError(
                f"{path}: has no chat template (tokenizer.chat_template), want one given as "
                "chat_template=, or generate() with a prompt already in the model's form"
            )
        return cls(source, bos_token=bos_token, eos_token=eos_token)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        now: datetime.datetime | None = None,
        **kwargs: Any,
    ) -> Segments:
        """The conversation as (text, trusted) segments, in order, none empty.

        messages: mappings with "role" (a string) and "content": a string, a list of
        {"type": "text", "text": ...}, whose texts are joined as they are, or None beside
        "tool_calls"; other keys are passed on.  Arguments of tool calls may be mappings or, as in
        OpenAI's form, JSON text of an object; templates get a mapping, and if they fail the text;
        likewise "" for a content of None.  tools: JSON schemas of functions.
        now: what strftime_now reads (default: the local time).
        kwargs: further variables of the template (JSON values).
        Raises ArgumentError naming the message, FormatError if the template fails (its own
        raise_exception too), takes too long or writes more than 4 Mi characters.
        """
        values: dict[str, Any] = {
            name: from_python(value, name, _refuse) for name, value in kwargs.items()
        }
        values["messages"] = check_messages(messages)
        values["tools"] = _check_tools(tools)
        values["add_generation_prompt"] = bool(add_generation_prompt)
        values |= self._tokens
        now = now or datetime.datetime.now()
        first_failure = ""
        for form in _forms(values["messages"]):
            try:
                return self._run(values | {"messages": form}, now)
            except _jinja.TemplateError as e:
                first_failure = first_failure or str(e)
        raise FormatError(f"{self._name}: {first_failure}")

    def _run(self, values: dict[str, Any], now: datetime.datetime) -> Segments:
        segments = _jinja.Evaluator(values, now, self._time_limit_s).render(self._tree)
        for text, _ in segments:
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise _jinja.TemplateError("writes a lone surrogate") from None
        return segments


# ---- messages ----


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain copies of the messages.  Raises ArgumentError naming what is wrong, and where."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise ArgumentError(f"messages: is a {type(messages).__name__}, want a list of mappings")
    if not messages:
        raise ArgumentError("messages: is empty, want at least one message")
    checked = [_check_message(m, f"messages[{i}]") for i, m in enumerate(messages)]
    n = sum(len(m["content"] or "") for m in checked)
    if n > MAX_TEXT:
        raise ArgumentError(f"messages: have {n} characters of content, want at most {MAX_TEXT}")
    return checked


def _check_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ArgumentError(
            f"{where}: is a {type(message).__name__}, want a mapping with role and content"
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ArgumentError(f"{where}.role: is {role!r:.60}, want a non-empty string")
    rest = {k: v for k, v in message.items() if k not in ("role", "content")}
    out: dict[str, Any] = from_python(rest, where, _refuse)
    calls = out.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(c, dict) for c in calls)
    ):
        raise ArgumentError(f"{where}.tool_calls: is not a list of mappings")
    content = _check_content(message.get("content"), where + ".content")
    if content is None and not calls:
        raise ArgumentError(
            f"{where}.content: is None, want a string or a list of text parts "
            "(None only beside tool_calls)"
        )
    plain_role = from_python(role, where + ".role", _refuse)
    head = {"role": T.trusted(plain_role) if plain_role in ROLES else plain_role}
    return head | {"content": content} | out


def _check_content(content: object, where: str) -> str | None:
    if content is None or isinstance(content, str):
        checked: str | None = from_python(content, where, _refuse)
        return checked
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray, memoryview)):
        raise ArgumentError(
            f"{where}: is a {type(content).__name__}, want a string or a list of text parts"
        )
    parts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise ArgumentError(f"{where}[{i}]: is a {type(part).__name__}, want a mapping")
        if part.get("type") != "text":
            raise ArgumentError(f"{where}[{i}].type: is {part.get('type')!r:.60}, want 'text'")
        if not isinstance(part.get("text"), str):
            raise ArgumentError(
                f"{where}[{i}].text: is a {type(part.get('text')).__name__}, want a string"
            )
        parts.append(from_python(part["text"], f"{where}[{i}].text", _refuse))
    return "".join(parts)


def _check_tools(tools: object) -> list[Any] | None:
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes)):
        raise ArgumentError(f"tools: is a {type(tools).__name__}, want a list of mappings")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ArgumentError(f"tools[{i}]: is a {type(tool).__name__}, want a mapping")
    checked: list[Any] = from_python(tools, "tools", _refuse)
    return checked or None


def _forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The same conversation in the forms templates may want, the usual one first.

    They differ only beside tool calls: arguments as a mapping or as the JSON text the caller gave,
    no content as None or as "".
    """
    tried: list[list[dict[str, Any]]] = []
    for parse in (True, False):
        for empty in (None, ""):
            form = [_in_form(m, parse, empty) for m in messages]
            if form not in tried:
                tried.append(form)
                yield form


def _in_form(message: dict[str, Any], parse: bool, empty: str | None) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = [_parsed(c) if parse else c for c in message["tool_calls"]]
    content = empty if message["content"] is None else message["content"]
    return message | {"content": content, "tool_calls": calls}


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments, if they are the JSON text of an object, are that object."""
    inner = call.get("function")
    if isinstance(inner, dict):
        return call | {"function": _parsed(inner)}
    try:
        value = json.loads(call.get("arguments", ""))
    except (TypeError, ValueError, RecursionError):
        return call  # not JSON: the model wrote it so, and the template shows it so
    if not isinstance(value, dict):
        return call
    return call | {"arguments": from_python(value, "tool_calls.arguments", _refuse)}


# ---- ids ----


class _Controls:
    """The control tokens of a vocabulary: ids, and an expression that finds their spellings."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.ids: set[int] = set()
        spellings = set()
        for i in range(tokenizer.n_vocab):
            if not tokenizer.piece(i) and (spelling := tokenizer.piece(i, True)):
                self.ids.add(i)
                spellings.add(spelling.decode("utf-8", "replace"))
        longest_first = sorted(spellings, key=lambda s: (-len(s), s))
        self.spelt = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


_lock = threading.Lock()
_controls: weakref.WeakKeyDictionary[Any, _Controls] = weakref.WeakKeyDictionary()


def encode(segments: Sequence[tuple[str, bool]], tokenizer: ChatTokenizer) -> list[int]:
    """Ids of rendered segments, without an added begin token.

    Control tokens are found where their whole spelling is trusted; the text between two of them is
    tokenised as one, across segments, with special tokens off.  So the ids are those of the plain
    rendering unless an untrusted part spells a control token, which then stays text.
    Raises InternalError if the tokenizer makes a control token of plain text all the same.
    """
    with _lock:
        controls = _controls.get(tokenizer)
        if controls is None:
            _controls[tokenizer] = controls = _Controls(tokenizer)
    ids: list[int] = []
    pending: list[str] = []  # text since the last control token

    def flush() -> None:
        text = "".join(pending)
        pending.clear()
        if text:
            found = tokenizer.tokenize(text, bos=False, special=False)
            if not controls.ids.isdisjoint(found):
                raise InternalError("tokenizer: made a control token of plain text")
            ids.extend(found)

    whole = T.concat([T.trusted(text) if trusted else text for text, trusted in segments])
    for text, trusted in T.segments(whole):
        at = 0
        for m in controls.spelt.finditer(text) if trusted else ():
            pending.append(text[at : m.start()])
            flush()
            ids += tokenizer.tokenize(m[0], bos=False, special=True)
            at = m.end()
        pending.append(text[at:])
    flush()
    return ids
