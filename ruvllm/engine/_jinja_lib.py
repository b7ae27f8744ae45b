"""The filters, tests, methods and functions a template may use: this list and nothing else.

Each takes the Runtime first and asks it for room before it makes anything large.  Strings keep the
trust of their characters where the operation is one of ``_jinja_text``; results of any other
operation are untrusted.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from ruvllm.engine import _jinja_text as T
from ruvllm.engine._jinja_values import (
    MAX_ITEMS,
    MAX_TEXT,
    Func,
    Group,
    Namespace,
    Runtime,
    TemplateFailure,
    Undefined,
    is_key,
    type_name,
)

Filter = Callable[..., Any]

# ---- arguments ----


def _str(v: Any, what: str) -> str:
    if isinstance(v, Undefined):
        v.fail()
    if not isinstance(v, str):
        raise TemplateFailure(f"{what}: found a {type_name(v)}, want a string")
    return v


def _int(v: Any, what: str, low: int, high: int) -> int:
    if isinstance(v, Undefined):
        v.fail()
    if not isinstance(v, int):
        raise TemplateFailure(f"{what}: found a {type_name(v)}, want an integer")
    if not low <= v <= high:
        raise TemplateFailure(f"{what}: found {str(v)[:20]}, want {low} to {high}")
    return int(v)


def _optional_str(v: Any, what: str) -> str | None:
    return None if v is None else T.plain(_str(v, what))


# ---- methods of strings ----


def _white_parts(rt: Runtime, s: str, most: int, from_right: bool) -> list[str]:
    found = rt.bounded(m.span() for m in re.finditer(r"\S+", T.plain(s)))
    if 0 <= most < len(found):
        if from_right:
            k = len(found) - most
            found = [(0, found[k - 1][1]), *found[k:]] if k > 0 else found
        else:
            found = [*found[:most], (found[most][0], len(s))]
    return [T.cut(s, a, b) for a, b in found]


def s_split(
    rt: Runtime, s: str, sep: Any = None, maxsplit: Any = -1, *, from_right: bool = False
) -> list[str]:
    most = _int(maxsplit, "split", -1, MAX_ITEMS)
    if sep is None:
        return _white_parts(rt, s, most, from_right)
    sep = T.plain(_str(sep, "split"))
    if not sep:
        raise TemplateFailure("split: the separator is empty")
    n = T.plain(s).count(sep)
    rt.take_items(1 + (n if most < 0 else min(n, most)))
    rt.take(len(s))
    return T.rsplit(s, sep, most) if from_right else T.split(s, sep, most)


_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def s_lines(rt: Runtime, s: str, keepends: Any = False) -> list[str]:
    rt.take_items(1 + sum(T.plain(s).count(c) for c in _LINE_ENDS))
    rt.take(len(s))
    return T.lines(s, rt.truth(keepends))


def s_replace(rt: Runtime, s: str, old: Any, new: Any, count: Any = -1) -> str:
    old, new = _str(old, "replace"), _str(new, "replace")
    most = -1 if count is None else _int(count, "replace", -1, MAX_TEXT)
    n = T.plain(s).count(old)
    n = n if most < 0 else min(n, most)
    rt.take(len(s) + n * max(len(new) - len(old), 0))
    rt.take(4 * n)
    return T.replaced(s, T.plain(old), new, most)


def s_join(rt: Runtime, sep: str, items: Any) -> str:
    parts = [_str(x, "join") for x in rt.items_of(items)]
    rt.take(sum(map(len, parts)) + len(sep) * max(len(parts) - 1, 0))
    return T.joined(sep, parts)


def _strip(left: bool, right: bool) -> Filter:
    def strip(rt: Runtime, s: str, chars: Any = None) -> str:
        rt.take(len(s))
        return T.strip(s, _optional_str(chars, "strip"), left, right)

    return strip


def _mapped(change: Callable[[str], str]) -> Filter:
    def method(rt: Runtime, s: str) -> str:
        rt.take(len(s))
        return T.mapped(s, change)

    return method


def _is(test: Callable[[str], bool]) -> Filter:
    def method(rt: Runtime, s: str) -> bool:
        rt.tick(1 + (len(s) >> 8))
        return test(T.plain(s))

    return method


def _affix(at_end: bool) -> Filter:
    def method(rt: Runtime, s: str, affix: Any, start: Any = 0) -> bool:
        rest = T.plain(s)[_int(start, "startswith", 0, MAX_TEXT) :]
        options = affix if isinstance(affix, tuple) else (affix,)
        plain = tuple(T.plain(_str(a, "endswith" if at_end else "startswith")) for a in options)
        return rest.endswith(plain) if at_end else rest.startswith(plain)

    return method


def _remove_affix(at_end: bool) -> Filter:
    def method(rt: Runtime, s: str, affix: Any) -> str:
        rt.take(len(s))
        a = _str(affix, "removeprefix")
        if at_end and a and s.endswith(a):
            return T.cut(s, 0, len(s) - len(a))
        return T.cut(s, len(a), len(s)) if not at_end and s.startswith(a) else s

    return method


def _find(name: str) -> Filter:
    find = {"find": str.find, "rfind": str.rfind, "index": str.index, "rindex": str.rindex}.get(
        name, str.count
    )

    def method(rt: Runtime, s: str, sub: Any, start: Any = 0, end: Any = None) -> int:
        rt.tick(1 + (len(s) >> 8))
        a = _int(start, name, -MAX_TEXT, MAX_TEXT)
        b = len(s) if end is None else _int(end, name, -MAX_TEXT, MAX_TEXT)
        return find(T.plain(s), T.plain(_str(sub, name)), a, b)

    return method


def _partition(from_right: bool) -> Filter:
    def method(rt: Runtime, s: str, sep: Any) -> tuple[str, str, str]:
        rt.take(len(s))
        sep = T.plain(_str(sep, "partition"))
        i = T.plain(s).rfind(sep) if from_right else T.plain(s).find(sep)
        if not sep:
            raise TemplateFailure("partition: the separator is empty")
        if i < 0:
            return ("", "", s) if from_right else (s, "", "")
        j = i + len(sep)
        return T.cut(s, 0, i), T.cut(s, i, j), T.cut(s, j, len(s))

    return method


def _pad(side: str) -> Filter:
    def method(rt: Runtime, s: str, width: Any, fill: Any = " ") -> str:
        n = max(_int(width, side, -MAX_TEXT, MAX_TEXT) - len(s), 0)
        fill = T.plain(_str(fill, side))
        if len(fill) != 1:
            raise TemplateFailure(f"{side}: found {len(fill)} fill characters, want 1")
        rt.take(len(s) + n)
        left = {"ljust": 0, "rjust": n, "center": n // 2 + (n & len(s) + n & 1)}[side]
        return T.concat([fill * left, s, fill * (n - left)])

    return method


_PERCENT = re.compile(r"%(?:\((\w{1,64})\))?([-+ 0#]{0,5})(\d{0,4})(?:\.(\d{1,4}))?(.)", re.S)


def percent(rt: Runtime, s: str, args: Any) -> str:
    """s % args: %s keeps the trust of strings, numbers by Python, widths of at most 4 digits."""
    rt.take(len(s))
    values = list(args) if isinstance(args, tuple) else [args]
    parts, at, used = [], 0, 0
    for m in re.finditer("%", T.plain(s)):
        if m.start() < at:
            continue
        spec = _PERCENT.match(T.plain(s), m.start())
        if not spec or spec[5] not in "sdifeEgGxXoc%r":
            raise TemplateFailure(f"format: found {T.plain(s)[m.start() : m.start() + 12]!r}")
        parts.append(T.cut(s, at, m.start()))
        at = spec.end()
        if spec[5] == "%":
            parts.append("%")
            continue
        if spec[1] is not None:
            if not isinstance(args, dict) or spec[1] not in args:
                raise TemplateFailure(f"format: found no argument {spec[1]!r}")
            value = args[spec[1]]
        elif used < len(values):
            value = values[used]
            used += 1
        else:
            raise TemplateFailure("format: found too few arguments")
        parts.append(_percent_one(rt, spec, value))
        rt.take(len(parts[-1]))
    if used < len(values) and not isinstance(args, dict):
        raise TemplateFailure("format: found too many arguments")
    return T.concat([*parts, T.cut(s, at, len(s))])


def _percent_one(rt: Runtime, spec: re.Match[str], value: Any) -> str:
    kind = spec[5]
    precision = "" if spec[4] is None else "." + spec[4]
    if kind in "sr":
        shown = rt.to_text(value) if kind == "s" else rt.to_text([value])[1:-1]
        if not (spec[2] or spec[3] or precision):
            return shown
        value = T.plain(shown)
    elif not isinstance(value, (bool, int, float)) and not (kind == "c" and isinstance(value, str)):
        raise TemplateFailure(f"format: %{kind} of a {type_name(value)}")
    rt.take(10_000)
    return f"%{spec[2]}{spec[3]}{precision}{'s' if kind == 'r' else kind}" % (value,)


_BRACES = re.compile(r"\{\{|\}\}|\{(\w{0,64})(?::([^{}]{0,20}))?\}|[{}]")
_FORMAT_SPEC = re.compile(
    r"(?:.?[<>=^])?[-+ ]?#?0?\d{0,4}[,_]?(?:\.\d{1,4})?[bcdeEfFgGnosxX%]?", re.S
)


def s_format(rt: Runtime, s: str, *args: Any, **kwargs: Any) -> str:
    """str.format with names and numbers only: no attributes, no items, no nested fields."""
    rt.take(len(s))
    parts, at, auto = [], 0, 0
    for m in _BRACES.finditer(T.plain(s)):
        rt.tick()
        parts.append(T.cut(s, at, m.start()))
        at = m.end()
        if m[0] in ("{{", "}}"):
            parts.append(T.cut(s, m.start(), m.start() + 1))
            continue
        if m[1] is None:
            raise TemplateFailure("format: found a field that is not a name or a number")
        name = m[1] or str(auto)
        auto += not m[1]
        if name.isdecimal() and int(name) < len(args):
            value = args[int(name)]
        elif name in kwargs:
            value = kwargs[name]
        else:
            raise TemplateFailure(f"format: found no argument {name!r}")
        parts.append(_format_one(rt, value, m[2] or ""))
        rt.take(len(parts[-1]))
    return T.concat([*parts, T.cut(s, at, len(s))])


def _format_one(rt: Runtime, value: Any, spec: str) -> str:
    if not spec:
        return rt.to_text(value)
    if not _FORMAT_SPEC.fullmatch(spec):
        raise TemplateFailure(f"format: found the specification {spec!r}")
    if not isinstance(value, (bool, int, float)):
        value = T.plain(rt.to_text(value))
    rt.take(10_000)
    return format(value, spec)


_PREDICATES = [
    str.isalnum,
    str.isalpha,
    str.isascii,
    str.isdecimal,
    str.isdigit,
    str.isidentifier,
    str.islower,
    str.isnumeric,
    str.isspace,
    str.istitle,
    str.isupper,
]
STR_METHODS: dict[str, Filter] = {
    "strip": _strip(True, True),
    "lstrip": _strip(True, False),
    "rstrip": _strip(False, True),
    "split": s_split,
    "rsplit": functools.partial(s_split, from_right=True),
    "splitlines": s_lines,
    "replace": s_replace,
    "join": s_join,
    "format": s_format,
    "startswith": _affix(False),
    "endswith": _affix(True),
    "removeprefix": _remove_affix(False),
    "removesuffix": _remove_affix(True),
    "partition": _partition(False),
    "rpartition": _partition(True),
    **{n: _find(n) for n in ("find", "rfind", "index", "rindex", "count")},
    **{n: _pad(n) for n in ("ljust", "rjust", "center")},
    **{
        f.__name__: _mapped(f)
        for f in (str.upper, str.lower, str.title, str.capitalize, str.swapcase, str.casefold)
    },
    **{
        f.__name__: _is(f)
        for f in _PREDICATES
    },
}  # fmt: skip

# ---- methods of dicts and lists ----


def d_get(rt: Runtime, d: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return d.get(key, default) if is_key(key) else default


def d_items(rt: Runtime, d: dict[Any, Any]) -> list[tuple[Any, Any]]:
    rt.take_items(2 * len(d))
    return list(d.items())


def d_keys(rt: Runtime, d: dict[Any, Any]) -> list[Any]:
    rt.take_items(len(d))
    return list(d)


def d_values(rt: Runtime, d: dict[Any, Any]) -> list[Any]:
    rt.take_items(len(d))
    return list(d.values())


def d_copy(rt: Runtime, d: dict[Any, Any]) -> dict[Any, Any]:
    rt.take_items(len(d))
    return dict(d)


DICT_METHODS: dict[str, Filter] = {
    "get": d_get,
    "items": d_items,
    "keys": d_keys,
    "values": d_values,
    "copy": d_copy,
}


def l_index(rt: Runtime, items: Sequence[Any], item: Any) -> int:
    for i, x in enumerate(items):
        if rt.equal(x, item):
            return i
    raise TemplateFailure("index: the value is not in the list")


def l_count(rt: Runtime, items: Sequence[Any], item: Any) -> int:
    return sum(rt.equal(x, item) for x in items)


LIST_METHODS: dict[str, Filter] = {
    "index": l_index,
    "count": l_count,
    "copy": lambda rt, items: rt.bounded(items),
}
#: Names of Python's that would change a list or a dict: refused by name, for a clear message.
MUTATING = frozenset(
    {"append", "clear", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault"}
    | {"sort", "update"}
)


def method(rt: Runtime, v: Any, name: str) -> Func | None:
    """v.name as something to call, if v's type has such a method here."""
    table: dict[str, Filter] = {}
    if isinstance(v, str):
        table = STR_METHODS
    elif isinstance(v, dict):
        table = DICT_METHODS
    elif isinstance(v, (list, tuple, range)):
        table = LIST_METHODS
    if name in MUTATING and isinstance(v, (list, dict)):
        raise TemplateFailure(f"the method {name!r} would change a {type_name(v)}")
    fn = table.get(name)
    return fn and Func(name, lambda args, kwargs: fn(rt, v, *args, **kwargs))


# ---- attributes by path, as map, sort and others take them ----


def item_of(rt: Runtime, v: Any, key: Any) -> Any:
    """v[key], or an Undefined."""
    if isinstance(v, dict):
        if is_key(key) and key in v:
            return v[key]
    elif isinstance(v, (str, list, tuple, range)) and isinstance(key, int):
        if -len(v) <= key < len(v):
            i = key % len(v)
            return T.cut(v, i, i + 1) if isinstance(v, str) else v[i]
    elif isinstance(v, Undefined):
        v.fail()
    elif isinstance(v, Namespace) and isinstance(key, str) and key in v.attrs:
        return v.attrs[key]
    return Undefined(f"{type_name(v)} entry {str(rt.to_text(key))[:60]!r}")


def _path(rt: Runtime, attribute: Any) -> Callable[[Any], Any]:
    if attribute is None:
        return lambda v: v
    steps: list[Any] = [attribute]
    if isinstance(attribute, str):
        steps = [int(p) if p.isdecimal() else p for p in T.plain(attribute).split(".")]

    def get(v: Any) -> Any:
        for step in steps:
            if isinstance(step, str) and step.startswith("_") and not isinstance(v, dict):
                raise TemplateFailure(f"access to the attribute {step!r} is not allowed")
            v = item_of(rt, v, step)
        return v

    return get


def _folded(rt: Runtime, case_sensitive: Any) -> Callable[[Any], Any]:
    def fold(v: Any) -> Any:
        if isinstance(v, str) and not rt.truth(case_sensitive):
            rt.take(len(v))
            return T.plain(v).lower()
        return v

    return fold


# ---- filters ----


def _sorted(rt: Runtime, items: list[Any], key: Callable[[Any], Any], reverse: Any) -> list[Any]:
    keyed = [(key(x), x) for x in rt.bounded(items)]

    def compare(a: tuple[Any, Any], b: tuple[Any, Any]) -> int:
        return -1 if rt.less(a[0], b[0]) else int(rt.less(b[0], a[0]))

    keyed.sort(key=functools.cmp_to_key(compare), reverse=rt.truth(reverse))
    return [x for _, x in keyed]


def f_sort(
    rt: Runtime, v: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None
) -> list[Any]:
    get, fold = _path(rt, attribute), _folded(rt, case_sensitive)
    return _sorted(rt, list(rt.items_of(v)), lambda x: fold(get(x)), reverse)


def f_dictsort(
    rt: Runtime, v: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False
) -> list[Any]:
    if not isinstance(v, dict) or by not in ("key", "value"):
        raise TemplateFailure(f"dictsort: found a {type_name(v)} by {by!r}, want a dict by key")
    i, fold = (0 if by == "key" else 1), _folded(rt, case_sensitive)
    return _sorted(rt, d_items(rt, v), lambda pair: fold(pair[i]), reverse)


def f_unique(rt: Runtime, v: Any, case_sensitive: Any = False, attribute: Any = None) -> list[Any]:
    get, fold = _path(rt, attribute), _folded(rt, case_sensitive)
    seen: list[Any] = []
    seen_keys: set[Any] = set()
    out = []
    for x in rt.items_of(v):
        key = fold(get(x))
        if (key in seen_keys) if is_key(key) else any(rt.equal(key, k) for k in seen):
            continue
        if is_key(key):
            seen_keys.add(key)
        else:
            seen.append(key)
        out.append(x)
    return rt.bounded(out)


def f_groupby(rt: Runtime, v: Any, attribute: Any, default: Any = None) -> list[Any]:
    get = _path(rt, attribute)
    groups: list[tuple[Any, list[Any]]] = []
    for x in _sorted(rt, list(rt.items_of(v)), lambda x: _folded(rt, False)(get(x)), False):
        key = get(x)
        if not groups or not rt.equal(groups[-1][0], key):
            groups.append((key, []))
        groups[-1][1].append(x)
    return [Group(g) for g in groups]


def _extreme(greatest: bool) -> Filter:
    def f(rt: Runtime, v: Any, case_sensitive: Any = False, attribute: Any = None) -> Any:
        get, fold = _path(rt, attribute), _folded(rt, case_sensitive)
        best: Any = Undefined("the extreme of an empty list")
        for x in rt.items_of(v):
            a, b = (best, x) if greatest else (x, best)
            if isinstance(best, Undefined) or rt.less(fold(get(a)), fold(get(b))):
                best = x
        return best

    return f


def f_sum(rt: Runtime, v: Any, attribute: Any = None, start: Any = 0) -> Any:
    get, total = _path(rt, attribute), start
    for x in rt.items_of(v):
        term = get(x)
        if not isinstance(term, (int, float)) or not isinstance(total, (int, float)):
            raise TemplateFailure(f"sum: found a {type_name(term)}, want numbers")
        rt.tick()
        total = rt.number(total + term)
    return total


def f_join(rt: Runtime, v: Any, d: Any = "", attribute: Any = None) -> str:
    get = _path(rt, attribute)
    return s_join(rt, rt.to_text(d), [rt.to_text(get(x)) for x in rt.items_of(v)])


def f_default(rt: Runtime, v: Any, default_value: Any = "", boolean: Any = False) -> Any:
    missing = isinstance(v, Undefined) or (rt.truth(boolean) and not rt.truth(v))
    return default_value if missing else v


def f_length(rt: Runtime, v: Any) -> int:
    if isinstance(v, Undefined):
        return 0
    if not isinstance(v, (str, list, tuple, dict, range)):
        raise TemplateFailure(f"length: found a {type_name(v)}")
    return len(v)


def _end(last: bool) -> Filter:
    def f(rt: Runtime, v: Any) -> Any:
        items = rt.items_of(v)
        return items[-1 if last else 0] if len(items) else Undefined("the entry of an empty list")

    return f


def f_reverse(rt: Runtime, v: Any) -> Any:
    if isinstance(v, str):
        return T.concat(rt.items_of(v)[::-1])
    return rt.bounded(rt.items_of(v)[::-1])


def f_trim(rt: Runtime, v: Any, chars: Any = None) -> str:
    s = rt.to_text(v)
    rt.take(len(s))
    return T.strip(s, _optional_str(chars, "trim"))


def f_indent(rt: Runtime, v: Any, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    s = T.concat([rt.to_text(v), "\n"])
    by = width if isinstance(width, str) else " " * _int(width, "indent", 0, 10_000)
    lines = s_lines(rt, s)
    rt.take(len(s) + len(by) * len(lines))
    out = []
    for i, line in enumerate(lines):
        wanted = rt.truth(first) if i == 0 else line or rt.truth(blank)
        out.append(T.concat([by, line]) if wanted else line)
    return T.joined("\n", out)


def f_truncate(  # noqa: PLR0917 - as in Jinja
    rt: Runtime, v: Any, length: Any = 255, killwords: Any = False, end: Any = "...",
    leeway: Any = 5,
) -> str:  # fmt: skip
    s, end = rt.to_text(v), _str(end, "truncate")
    n = _int(length, "truncate", len(end), MAX_TEXT)
    if len(s) <= n + _int(leeway, "truncate", 0, MAX_TEXT):
        return s
    head = T.cut(s, 0, n - len(end))
    if not rt.truth(killwords):
        head = T.cut(head, 0, max(T.plain(head).rfind(" "), 0) or len(head))
    return T.concat([head, end])


def f_batch(rt: Runtime, v: Any, linecount: Any, fill_with: Any = None) -> list[Any]:
    n, items = _int(linecount, "batch", 1, MAX_ITEMS), rt.bounded(rt.items_of(v))
    out = [items[i : i + n] for i in range(0, len(items), n)]
    if out and fill_with is not None:
        rt.take_items(n)
        out[-1] = out[-1] + [fill_with] * (n - len(out[-1]))
    return out


def f_slice(rt: Runtime, v: Any, slices: Any, fill_with: Any = None) -> list[Any]:
    n, items = _int(slices, "slice", 1, MAX_ITEMS), rt.bounded(rt.items_of(v))
    rt.take_items(n)
    each, more = divmod(len(items), n)
    out, at = [], 0
    for i in range(n):
        size = each + (i < more)
        part = items[at : at + size]
        at += size
        out.append([*part, fill_with] if fill_with is not None and i >= more else part)
    return out


def f_round(rt: Runtime, v: Any, precision: Any = 0, method: Any = "common") -> Any:
    if not isinstance(v, (int, float)):
        raise TemplateFailure(f"round: found a {type_name(v)}, want a number")
    digits = _int(precision, "round", -30, 30)
    if method == "common":
        return round(float(v), digits)
    if method not in ("ceil", "floor"):
        raise TemplateFailure(f"round: found the method {rt.to_text(method)[:20]!r}")
    import math

    scale = 10.0**digits
    return (math.ceil if method == "ceil" else math.floor)(v * scale) / scale


def f_int(rt: Runtime, v: Any, default: Any = 0, base: Any = 10) -> Any:
    try:
        if isinstance(v, str):
            return rt.number(int(T.plain(v), _int(base, "int", 0, 36)))
        return int(v)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return rt.number(int(float(v)))
    except (TypeError, ValueError, OverflowError):
        return default


def f_float(rt: Runtime, v: Any, default: Any = 0.0) -> Any:
    try:
        return float(v)
    except (TypeError, ValueError, OverflowError):
        return default


def f_abs(rt: Runtime, v: Any) -> Any:
    if not isinstance(v, (int, float)):
        raise TemplateFailure(f"abs: found a {type_name(v)}, want a number")
    return abs(v)


def f_items(rt: Runtime, v: Any) -> list[Any]:
    if isinstance(v, Undefined):
        return []
    if not isinstance(v, dict):
        raise TemplateFailure(f"items: found a {type_name(v)}, want a dict")
    return d_items(rt, v)


def f_tojson(  # noqa: PLR0917 - as in Hugging Face
    rt: Runtime, v: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None,
    sort_keys: Any = False,
) -> str:  # fmt: skip
    if indent is not None and not (isinstance(indent, str) and len(indent) <= 16):
        indent = _int(indent, "tojson indent", 0, 16)
    pair = None
    if separators is not None:
        found = [T.plain(_str(s, "tojson separators")) for s in rt.items_of(separators)]
        if len(found) != 2 or max(map(len, found)) > 16:
            raise TemplateFailure("tojson: want two separators of at most 16 characters")
        pair = (found[0], found[1])
    return rt.to_json(v, indent, rt.truth(ensure_ascii), rt.truth(sort_keys), pair)


def f_escape(rt: Runtime, v: Any) -> str:
    s = rt.to_text(v)
    for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        s = s_replace(rt, s, old, new)
    return s


def f_map(rt: Runtime, v: Any, *args: Any, **kwargs: Any) -> list[Any]:
    items = rt.items_of(v) if rt.truth(v) else ()  # None too, as in Jinja
    if "attribute" in kwargs and not args:
        get, default = _path(rt, kwargs["attribute"]), kwargs.get("default")
        found = (get(x) for x in items)
        return rt.bounded(default if isinstance(x, Undefined) and default is not None else x
                          for x in found)  # fmt: skip
    name, *rest = args or (None,)
    fn = filter_named(name)
    return rt.bounded(fn(rt, x, *rest, **kwargs) for x in items)


def _select(wanted: bool, by_attribute: bool) -> Filter:
    def f(rt: Runtime, v: Any, *args: Any, **kwargs: Any) -> list[Any]:
        items = rt.items_of(v) if rt.truth(v) else ()  # None too, as in Jinja
        rest = list(args)
        get = _path(rt, rest.pop(0)) if by_attribute and rest else _path(rt, None)
        name = rest.pop(0) if rest else None
        test: Filter = (lambda _, x: x) if name is None else test_named(name)
        return rt.bounded(x for x in items if rt.truth(test(rt, get(x), *rest, **kwargs)) == wanted)

    return f


def f_attr(rt: Runtime, v: Any, name: Any) -> Any:
    key = T.plain(_str(name, "attr"))
    if key.startswith("_"):
        raise TemplateFailure(f"access to the attribute {key!r} is not allowed")
    return method(rt, v, key) or Undefined(f"{type_name(v)} attribute {key[:60]!r}")


_WORD_STARTS = re.compile(r"([-\s({\[<]+)")


def f_title(rt: Runtime, v: Any) -> str:
    """Unlike str.title it leaves "o'neil" one word."""
    s = rt.to_text(v)
    rt.take(len(s))
    return T.mapped(
        s, lambda raw: "".join(w[:1].upper() + w[1:].lower() for w in _WORD_STARTS.split(raw))
    )


def _text_method(name: str) -> Filter:
    return lambda rt, v, *args, **kwargs: STR_METHODS[name](rt, rt.to_text(v), *args, **kwargs)


FILTERS: dict[str, Filter] = {
    "abs": f_abs,
    "attr": f_attr,
    "batch": f_batch,
    "capitalize": _text_method("capitalize"),
    "center": lambda rt, v, width=80: STR_METHODS["center"](rt, rt.to_text(v), width),
    "count": f_length,
    "d": f_default,
    "default": f_default,
    "dictsort": f_dictsort,
    "e": f_escape,
    "escape": f_escape,
    "first": _end(False),
    "float": f_float,
    "format": lambda rt, v, *a, **kw: percent(rt, rt.to_text(v), kw or a),
    "groupby": f_groupby,
    "indent": f_indent,
    "int": f_int,
    "items": f_items,
    "join": f_join,
    "last": _end(True),
    "length": f_length,
    "list": lambda rt, v: rt.bounded(rt.items_of(v)),
    "lower": _text_method("lower"),
    "map": f_map,
    "max": _extreme(True),
    "min": _extreme(False),
    "reject": _select(False, False),
    "rejectattr": _select(False, True),
    "replace": lambda rt, v, old, new, count=None: s_replace(
        rt, rt.to_text(v), rt.to_text(old), rt.to_text(new), count
    ),
    "reverse": f_reverse,
    "round": f_round,
    "safe": lambda rt, v: v,
    "select": _select(True, False),
    "selectattr": _select(True, True),
    "slice": f_slice,
    "sort": f_sort,
    "string": lambda rt, v: rt.to_text(v),
    "sum": f_sum,
    "title": f_title,
    "tojson": f_tojson,
    "trim": f_trim,
    "truncate": f_truncate,
    "unique": f_unique,
    "upper": _text_method("upper"),
    "wordcount": lambda rt, v: len(_white_parts(rt, rt.to_text(v), -1, False)),
}


def filter_named(name: Any) -> Filter:
    """The filter, or a failure that names it."""
    if not isinstance(name, str) or name not in FILTERS:
        raise TemplateFailure(f"the filter {str(name)[:60]!r} is not offered")
    return FILTERS[name]


# ---- tests ----


def _comparison(name: str) -> Filter:
    return {
        "eq": lambda rt, a, b: rt.equal(a, b),
        "ne": lambda rt, a, b: not rt.equal(a, b),
        "lt": lambda rt, a, b: rt.less(a, b),
        "gt": lambda rt, a, b: rt.less(b, a),
        "le": not_greater,
        "ge": lambda rt, a, b: not_greater(rt, b, a),
    }[name]


def not_greater(rt: Runtime, a: Any, b: Any) -> bool:
    """a <= b."""
    return rt.less(a, b) or (not rt.less(b, a) and rt.equal(a, b))


def _remainder(v: Any, by: Any) -> Any:
    if not isinstance(v, int) or not isinstance(by, int) or by == 0:
        raise TemplateFailure(f"found a {type_name(v)} and a {type_name(by)}, want integers")
    return v % by


_NUMBER = (int, float)
_SEQUENCE = (str, list, tuple, dict, range, Undefined)
TESTS: dict[str, Filter] = {
    "boolean": lambda rt, v: isinstance(v, bool),
    "callable": lambda rt, v: isinstance(v, Func),
    "defined": lambda rt, v: not isinstance(v, Undefined),
    "divisibleby": lambda rt, v, n: _remainder(v, n) == 0,
    "escaped": lambda rt, v: False,
    "even": lambda rt, v: _remainder(v, 2) == 0,
    "false": lambda rt, v: v is False,
    "filter": lambda rt, v: isinstance(v, str) and v in FILTERS,
    "float": lambda rt, v: isinstance(v, float),
    "in": lambda rt, v, container: rt.contains(container, v),
    "integer": lambda rt, v: isinstance(v, int) and not isinstance(v, bool),
    "iterable": lambda rt, v: isinstance(v, _SEQUENCE),
    "lower": lambda rt, v: rt.to_text(v).islower(),
    "mapping": lambda rt, v: isinstance(v, dict),
    "none": lambda rt, v: v is None,
    "number": lambda rt, v: isinstance(v, _NUMBER),
    "odd": lambda rt, v: _remainder(v, 2) == 1,
    "sameas": lambda rt, a, b: a is b,
    "sequence": lambda rt, v: isinstance(v, _SEQUENCE),
    "string": lambda rt, v: isinstance(v, str),
    "test": lambda rt, v: isinstance(v, str) and v in TESTS,
    "true": lambda rt, v: v is True,
    "undefined": lambda rt, v: isinstance(v, Undefined),
    "upper": lambda rt, v: rt.to_text(v).isupper(),
    **{
        alias: _comparison(name)
        for name, aliases in {
            "eq": "eq == equalto",
            "ne": "ne !=",
            "lt": "lt < lessthan",
            "gt": "gt > greaterthan",
            "le": "le <=",
            "ge": "ge >=",
        }.items()
        for alias in aliases.split()
    },
}


def test_named(name: Any) -> Filter:
    """The test, or a failure that names it."""
    if not isinstance(name, str) or name not in TESTS:
        raise TemplateFailure(f"the test {str(name)[:60]!r} is not offered")
    return TESTS[name]


# ---- functions ----


def _range(rt: Runtime, args: list[Any]) -> range:
    if not 1 <= len(args) <= 3:
        raise TemplateFailure(f"range: found {len(args)} arguments, want 1 to 3")
    made = range(*(_int(a, "range", -(2**62), 2**62) for a in args))
    if len(made) > MAX_ITEMS:
        raise TemplateFailure(f"range: has {len(made)} entries, want at most {MAX_ITEMS}")
    return made


def _raise(rt: Runtime, args: list[Any]) -> Any:
    raise TemplateFailure(f"raised: {' '.join(rt.to_text(a) for a in args)[:300]}")


def _joiner(rt: Runtime, args: list[Any]) -> Func:
    seen: list[int] = []

    def join(_args: list[Any], _kwargs: dict[str, Any]) -> Any:
        first = not seen
        seen[:] = [1]
        return "" if first else (args[0] if args else T.trusted(", "))

    return Func("joiner", join)


def _merged(rt: Runtime, args: list[Any], kwargs: dict[str, Any]) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for a in args:
        if not isinstance(a, dict):
            raise TemplateFailure(f"dict: found a {type_name(a)}, want a dict")
        out |= a
    out |= kwargs
    rt.take_items(len(out))
    return out


def _strftime(args: list[Any], now: datetime.datetime) -> str:
    form = T.plain(_str(args[0] if args else None, "strftime_now"))
    if len(form) > 200 or re.sub(r"%-?[A-Za-z%]", "", form).count("%"):
        raise TemplateFailure(f"strftime_now: found {form[:60]!r}, want plain directives")
    return now.strftime(form)


def functions(rt: Runtime, now: datetime.datetime) -> dict[str, Any]:
    """The global names of a template."""
    made = {
        "range": lambda a, kw: _range(rt, a),
        "dict": lambda a, kw: _merged(rt, a, kw),
        "namespace": lambda a, kw: Namespace(_merged(rt, a, kw)),
        "joiner": lambda a, kw: _joiner(rt, a),
        "raise_exception": lambda a, kw: _raise(rt, a),
        "strftime_now": lambda a, kw: _strftime(a, now),
    }
    return {name: Func(name, fn) for name, fn in made.items()}
