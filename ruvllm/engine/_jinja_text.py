"""Strings that know which of their characters the template wrote.

``Text`` is a string with *trusted* spans: characters that come from the template's own literals.
An ordinary ``str`` has none.  So what is tracked is trust and not taint: an operation that nobody
thought of gives an ordinary string, which is untrusted, and a mistake here can cost a control token
that was meant, but cannot make one out of what a user wrote.

The functions below are the operations that keep trust.  None checks sizes; that is the caller's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

#: Most trusted spans of one string; one with more loses its trust.
MAX_SPANS = 50_000

Spans = tuple[tuple[int, int], ...]


class Text(str):
    """A string and its trusted spans [start, end): rising, not empty, not touching."""

    __slots__ = ("spans",)
    spans: Spans


def text(s: str, spans: Iterable[tuple[int, int]]) -> str:
    """``s`` with these trusted spans, in rising order; touching ones are joined."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if start >= end:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if not joined or len(joined) > MAX_SPANS:
        return plain(s)
    made = Text(s)
    made.spans = tuple(joined)
    return made


def plain(s: str) -> str:
    """The characters alone."""
    return s if type(s) is str else str.__str__(s)


def trusted(s: str) -> str:
    """``s`` as the template's own."""
    return text(s, [(0, len(s))])


def spans_of(s: str) -> Spans:
    """The trusted spans of any string."""
    return s.spans if isinstance(s, Text) else ()


def is_trusted(s: str) -> bool:
    """Whether every character is."""
    return not s or spans_of(s) == ((0, len(s)),)


def concat(parts: Iterable[str]) -> str:
    """The parts one after another."""
    parts = list(parts)
    spans: list[tuple[int, int]] = []
    at = 0
    for p in parts:
        if isinstance(p, Text):
            spans.extend((at + a, at + b) for a, b in p.spans)
        at += len(p)
    return text("".join(parts), spans)


def cut(s: str, start: int, end: int) -> str:
    """s[start:end] for 0 <= start <= end <= len(s)."""
    if start == 0 and end == len(s):
        return s
    if not isinstance(s, Text):
        return s[start:end]
    spans = s.spans
    first = max(bisect_right(spans, (start, len(s) + 1)) - 1, 0)
    found = []
    for a, b in spans[first:]:
        if a >= end:
            break
        found.append((max(a, start) - start, min(b, end) - start))
    return text(plain(s)[start:end], found)


def segments(s: str) -> list[tuple[str, bool]]:
    """(part, trusted) in order; empty parts are left out."""
    raw, out, at = plain(s), [], 0
    for a, b in spans_of(s):
        out += [(raw[at:a], False), (raw[a:b], True)]
        at = b
    out.append((raw[at:], False))
    return [part for part in out if part[0]]


def mapped(s: str, change: Callable[[str], str]) -> str:
    """change(s), a mapping of each character such as upper(); keeps trust when lengths agree."""
    changed = change(plain(s))
    if is_trusted(s):
        return trusted(changed)
    return text(changed, spans_of(s)) if len(changed) == len(s) else changed


def strip(s: str, chars: str | None = None, left: bool = True, right: bool = True) -> str:
    """str.strip, lstrip and rstrip."""
    raw = plain(s)
    start = len(raw) - len(raw.lstrip(chars)) if left else 0
    end = len(raw.rstrip(chars)) if right else len(raw)
    return cut(s, start, max(start, end))


def replaced(s: str, old: str, new: str, count: int = -1) -> str:
    """str.replace."""
    raw, parts, at = plain(s), [], 0
    if not old:  # between all characters
        n = len(raw) + 1 if count < 0 else min(count, len(raw) + 1)
        for i in range(n):
            parts += [new, cut(s, i, i + 1)] if i < len(raw) else [new]
        return concat([*parts, cut(s, min(n, len(raw)), len(raw))])
    while count != 0 and (i := raw.find(old, at)) >= 0:
        parts += [cut(s, at, i), new]
        at = i + len(old)
        count -= 1
    return concat([*parts, cut(s, at, len(raw))])


def split(s: str, sep: str, most: int = -1) -> list[str]:
    """str.split at a separator."""
    raw, parts, at = plain(s), [], 0
    while most != 0 and (i := raw.find(sep, at)) >= 0:
        parts.append(cut(s, at, i))
        at = i + len(sep)
        most -= 1
    return [*parts, cut(s, at, len(raw))]


def rsplit(s: str, sep: str, most: int = -1) -> list[str]:
    """str.rsplit at a separator."""
    raw, parts, end = plain(s), [], len(s)
    while most != 0 and (i := raw.rfind(sep, 0, end)) >= 0:
        parts.append(cut(s, i + len(sep), end))
        end = i
        most -= 1
    return [*parts, cut(s, 0, end)][::-1]


def lines(s: str, keep_ends: bool = False) -> list[str]:
    """str.splitlines."""
    out, at = [], 0
    for with_end in plain(s).splitlines(keepends=True):
        shown = with_end if keep_ends else with_end.splitlines()[0]
        out.append(cut(s, at, at + len(shown)))
        at += len(with_end)
    return out


def joined(sep: str, parts: list[str]) -> str:
    """str.join."""
    if not sep:
        return concat(parts)
    out: list[str] = []
    for i, p in enumerate(parts):
        out += [sep, p] if i else [p]
    return concat(out)
