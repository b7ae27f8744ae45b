"""What a template's expressions are made of, and what it costs to handle them.

A template comes from a model file, so it is hostile until proven otherwise.  Its values are None,
booleans, integers, floats, strings, lists, tuples, ranges, dicts with simple keys, and the classes
below; no other Python object ever reaches it, so there is nothing to escape to.

``Runtime`` counts.  Whatever makes a string or a list first asks for the room (``take``), whatever
repeats first asks for the steps (``tick``); comparing, printing and converting nested values is
written out here, because Python's own would walk a value that contains itself twice, forty times
over, in 2**40 steps that nothing can stop.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ruvllm.engine._jinja_text import concat, plain

MAX_TEXT = 4 << 20  # characters of one string, and of the result
MAX_TAKEN = 96 << 20  # characters made in one rendering, thrown away or not
MAX_ITEMS = 100_000  # entries of one list, and of a range
MAX_DEPTH = 64  # of nested values, macro calls, and recursive loops
MAX_INT_BITS = 4096
_ITEM_COST = 16  # an entry of a list, in characters


class TemplateFailure(Exception):
    """Ends a rendering; the message says why."""


class Undefined:
    """A name that is not there: prints as nothing, is false, has no items; using it is an error."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def fail(self) -> NoReturn:
        raise TemplateFailure(f"{self.what} is undefined")


class Namespace:
    """namespace(...): the one value whose attributes a template may set."""

    __slots__ = ("attrs",)

    def __init__(self, attrs: dict[str, Any]) -> None:
        self.attrs = attrs


class Func:
    """Something a template may call: fn(positional, by name)."""

    __slots__ = ("fn", "name")

    def __init__(self, name: str, fn: Callable[[list[Any], dict[str, Any]], Any]) -> None:
        self.name = name
        self.fn = fn


class Group(tuple[Any, ...]):
    """An entry of the groupby filter: (grouper, list)."""

    __slots__ = ()


def type_name(v: Any) -> str:
    """The name of a value's type, for messages."""
    names = {str: "string", Undefined: "undefined value", Func: "function"}
    return next((n for t, n in names.items() if isinstance(v, t)), type(v).__name__)


class Runtime:
    """The budget of one rendering, and the operations that need it."""

    def __init__(self, time_limit_s: float) -> None:
        self.time_limit_s = time_limit_s
        self._deadline = time.monotonic() + time_limit_s
        self._until_check = 1000
        self._taken = 0

    # -- counting -----------------------------------------------------------------------------

    def tick(self, steps: int = 1) -> None:
        """Account for work; a step is about a microsecond."""
        self._until_check -= steps
        if self._until_check < 0:
            self._until_check = 1000
            if time.monotonic() > self._deadline:
                raise TemplateFailure(f"takes longer than {self.time_limit_s:g} s")

    def take(self, n_chars: int) -> None:
        """Account for a string before it is made."""
        if n_chars > MAX_TEXT:
            raise TemplateFailure(
                f"makes a string of {n_chars} characters, want at most {MAX_TEXT}"
            )
        self._taken += n_chars
        if self._taken > MAX_TAKEN:
            raise TemplateFailure(f"makes more than {MAX_TAKEN} characters of strings in all")
        self.tick(1 + (n_chars >> 12))

    def take_items(self, n: int) -> None:
        """Account for a list before it is made."""
        if n > MAX_ITEMS:
            raise TemplateFailure(f"makes a list of {n} entries, want at most {MAX_ITEMS}")
        self.take(_ITEM_COST * n)
        self.tick(n)

    def bounded(self, items: Iterable[Any]) -> list[Any]:
        """A list of what may be long."""
        out: list[Any] = []
        for item in items:
            self.tick()
            if len(out) == MAX_ITEMS:
                raise TemplateFailure(f"makes a list of more than {MAX_ITEMS} entries")
            out.append(item)
        self.take_items(len(out))
        return out

    def number(self, v: Any) -> Any:
        """A number that came out of arithmetic."""
        if isinstance(v, int) and v.bit_length() > MAX_INT_BITS:
            raise TemplateFailure(f"makes an integer of {v.bit_length()} bits")
        if isinstance(v, complex):
            raise TemplateFailure("makes a complex number")
        return v

    # -- converting ---------------------------------------------------------------------------

    def truth(self, v: Any) -> bool:
        """Python's truth, without asking objects."""
        if isinstance(v, (str, list, tuple, dict, range)):
            return len(v) > 0
        if isinstance(v, (bool, int, float)):
            return bool(v)
        return v is not None and not isinstance(v, Undefined)

    def items_of(self, v: Any) -> Sequence[Any]:
        """What a loop over v visits."""
        if isinstance(v, (list, tuple, range)):
            return v
        if isinstance(v, dict):
            self.take_items(len(v))
            return list(v)
        if isinstance(v, str):
            self.take_items(len(v))
            return [v[i] for i in range(len(v))] if type(v) is str else self._characters(v)
        if isinstance(v, Undefined):
            return ()
        raise TemplateFailure(f"a {type_name(v)} is not iterable")

    def _characters(self, v: str) -> list[str]:
        from ruvllm.engine._jinja_text import cut

        return [cut(v, i, i + 1) for i in range(len(v))]

    def to_text(self, v: Any) -> str:
        """What {{ v }} prints; of strings the trust is kept, everything else has none."""
        if isinstance(v, str):
            return v
        if isinstance(v, Undefined):
            return ""
        if v is None or isinstance(v, (bool, int, float)):
            return str(v)
        parts: list[str] = []
        self._repr(v, parts, 0)
        return concat(parts)

    def _repr(self, v: Any, out: list[str], depth: int) -> None:
        """Python's notation, as Jinja prints lists and dicts."""
        self._deeper(depth)
        if isinstance(v, str):
            self.take(12 * len(v) if len(v) < 1000 else 2 * len(v))
            out.append(repr(plain(v)))
        elif isinstance(v, (list, tuple)):
            ends = "[]" if isinstance(v, list) else "()"
            out.append(ends[0])
            for i, item in enumerate(v):
                out.append(", " if i else "")
                self._repr(item, out, depth + 1)
            out.append("," + ends[1] if isinstance(v, tuple) and len(v) == 1 else ends[1])
        elif isinstance(v, dict):
            out.append("{")
            for i, (key, item) in enumerate(v.items()):
                out.append(", " if i else "")
                self._repr(key, out, depth + 1)
                out.append(": ")
                self._repr(item, out, depth + 1)
            out.append("}")
        else:
            simple = v is None or isinstance(v, (bool, int, float, range))
            out.append(repr(v) if simple else "Undefined" if isinstance(v, Undefined) else "<...>")
        self.take(8)

    def _deeper(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TemplateFailure(f"a value is nested deeper than {MAX_DEPTH} levels")
        self.tick()

    def to_json(
        self,
        v: Any,
        indent: int | str | None = None,
        ascii_only: bool = False,
        sort_keys: bool = False,
        separators: tuple[str, str] | None = None,
    ) -> str:
        """JSON as Hugging Face's tojson writes it."""
        self._check_json(v, 0, 0 if indent is None else len(indent) if isinstance(indent, str) else
                         max(indent, 0))  # fmt: skip
        made = json.dumps(
            v, ensure_ascii=ascii_only, indent=indent, separators=separators, sort_keys=sort_keys
        )
        self.take(len(made))
        return made

    def _check_json(self, v: Any, depth: int, indent: int) -> None:
        self._deeper(depth)
        self.take(2 + depth * indent)
        if isinstance(v, str):
            self.take(len(v))
        elif isinstance(v, dict):
            for key, item in v.items():
                self.take(8 + (len(key) if isinstance(key, str) else 0))
                self._check_json(item, depth + 1, indent)
        elif isinstance(v, (list, tuple)):
            for item in v:
                self._check_json(item, depth + 1, indent)
        elif isinstance(v, Undefined):
            v.fail()
        elif not (v is None or isinstance(v, (bool, int, float))):
            raise TemplateFailure(f"a {type_name(v)} cannot be written as JSON")

    # -- comparing ----------------------------------------------------------------------------

    def equal(self, a: Any, b: Any, depth: int = 0) -> bool:  # noqa: PLR0911 - one per type
        """a == b."""
        self._deeper(depth)
        if isinstance(a, str) or isinstance(b, str):
            if isinstance(a, str) and isinstance(b, str) and len(a) == len(b):
                self.tick(len(a) >> 10)
                return a == b
            return False
        if isinstance(a, dict) and isinstance(b, dict):
            return len(a) == len(b) and all(
                k in b and self.equal(x, b[k], depth + 1) for k, x in a.items()
            )
        for kind in (list, tuple):
            if isinstance(a, kind) and isinstance(b, kind):
                return len(a) == len(b) and all(
                    self.equal(x, y, depth + 1) for x, y in zip(a, b, strict=True)
                )
        if isinstance(a, Undefined) or isinstance(b, Undefined):
            return isinstance(a, Undefined) and isinstance(b, Undefined)
        if isinstance(a, (bool, int, float, range)) and isinstance(b, (bool, int, float, range)):
            return bool(a == b)
        return a is b

    def less(self, a: Any, b: Any, depth: int = 0) -> bool:
        """a < b."""
        self._deeper(depth)
        for v in (a, b):
            if isinstance(v, Undefined):
                v.fail()
        if isinstance(a, str) and isinstance(b, str):
            self.tick(min(len(a), len(b)) >> 10)
            return a < b
        if isinstance(a, (bool, int, float)) and isinstance(b, (bool, int, float)):
            return a < b
        for kind in (list, tuple):
            if isinstance(a, kind) and isinstance(b, kind):
                for x, y in zip(a, b, strict=False):
                    if not self.equal(x, y, depth + 1):
                        return self.less(x, y, depth + 1)
                return len(a) < len(b)
        raise TemplateFailure(f"a {type_name(a)} and a {type_name(b)} have no order")

    def contains(self, container: Any, item: Any) -> bool:
        """item in container."""
        if isinstance(container, str):
            if not isinstance(item, str):
                raise TemplateFailure(f"a {type_name(item)} cannot be in a string")
            self.tick(1 + (len(container) >> 8))
            return item in container
        if isinstance(container, dict):
            return is_key(item) and item in container
        if isinstance(container, range):
            return isinstance(item, (bool, int)) and item in container
        return any(self.equal(item, x) for x in self.items_of(container))


def is_key(v: Any) -> bool:
    """Whether v may be a key of a dict: what hashes at once."""
    return v is None or isinstance(v, (str, bool, int, float))


def from_python(v: Any, where: str, fail: Callable[[str], NoReturn], depth: int = 0) -> Any:
    """A caller's value as a template's, a plain deep copy. fail(message) if it is none."""
    if depth > MAX_DEPTH:
        fail(f"{where}: is nested deeper than {MAX_DEPTH} levels")
    if v is None or isinstance(v, (bool, int, float)):
        if type(v) is int and v.bit_length() > MAX_INT_BITS:
            fail(f"{where}: has {v.bit_length()} bits, want at most {MAX_INT_BITS}")
        return v
    if isinstance(v, str):
        return _checked(v, where, fail)
    if isinstance(v, Mapping):
        out = {}
        for key, item in v.items():
            if not isinstance(key, str):
                fail(f"{where}: has a key of type {type(key).__name__}, want strings")
            name = _checked(key, where, fail)
            out[name] = from_python(item, f"{where}.{name[:40]}", fail, depth + 1)
        return out
    if isinstance(v, Sequence) and not isinstance(v, (bytes, bytearray, memoryview)):
        if len(v) > MAX_ITEMS:
            fail(f"{where}: has {len(v)} entries, want at most {MAX_ITEMS}")
        return [from_python(x, f"{where}[{i}]", fail, depth + 1) for i, x in enumerate(v)]
    fail(f"{where}: is a {type(v).__name__}, want JSON values")


def _checked(s: str, where: str, fail: Callable[[str], NoReturn]) -> str:
    raw = plain(s)
    try:
        raw.encode()
    except UnicodeEncodeError as e:
        fail(f"{where}: has the lone surrogate {raw[e.start]!a} at {e.start}, want valid Unicode")
    return raw
