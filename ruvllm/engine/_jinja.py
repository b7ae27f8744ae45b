"""Runs a chat template: Jinja2's own parser, and an evaluator of ours over its syntax tree.

Why not Jinja2's compiled code in its sandbox: the sandbox stops access to Python's internals (and
has been escaped more than once), but it bounds neither time nor memory, and text it concatenates
forgets where it came from.  Hooking both into generated code means overriding private parts of the
compiler and still trusting every filter.  Over the tree, each operation is written here once, so it
can count its cost, keep the origin of characters, and refuse what is not on a list.  The parsing
environment is Jinja2's ImmutableSandboxedEnvironment with the options Hugging Face uses, and the
tests render the same templates in it as the reference.

Bounds, all ending in TemplateFailure: source of 1 MiB, wall time (checked every thousand steps, and
no single operation is long because its operands are bounded), characters of a string, of the result
and of all strings made, entries of a list, nesting, bits of an integer (_jinja_values.py).

Not offered: include, import, extends, autoescape, and the filters absent from _jinja_lib.FILTERS.
"""

from __future__ import annotations

import datetime
import operator
import time
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ruvllm.engine import _jinja_lib as lib
from ruvllm.engine import _jinja_text as T
from ruvllm.engine._jinja_values import (
    MAX_DEPTH,
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

MAX_SOURCE = 1 << 20


class TemplateError(Exception):
    """What is wrong, with the line."""


class _Guard(Extension):
    """Ends parsing at the deadline, and parses {% generation %} (a marker of Hugging Face's)."""

    tags = {"generation"}  # noqa: RUF012 - the base class says so

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        deadline = time.monotonic() + getattr(self.environment, "time_limit_s", 2.0)
        for i, token in enumerate(stream):
            if i % 256 == 0 and time.monotonic() > deadline:
                raise TemplateSyntaxError("takes too long to parse", token.lineno)
            yield token

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def parse(source: str, time_limit_s: float) -> nodes.Template:
    """The syntax tree, its literals marked as the template's own.  Raises TemplateError."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"has {len(source)} characters, want at most {MAX_SOURCE}")
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _Guard],
    )
    env.time_limit_s = time_limit_s  # type: ignore[attr-defined]
    try:
        tree = env.parse(source)
        for literal in tree.find_all((nodes.Const, nodes.TemplateData)):
            if isinstance(literal, nodes.TemplateData):
                literal.data = T.trusted(literal.data)
            elif isinstance(literal, nodes.Const) and isinstance(literal.value, str):
                literal.value = T.trusted(literal.value)
    except TemplateSyntaxError as e:
        raise TemplateError(f"line {e.lineno}: {e.message}") from None
    except RecursionError:
        raise TemplateError("is nested too deeply to parse") from None
    except Exception as e:  # an over-long number, a bad escape: whatever Jinja2 lets through
        raise TemplateError(f"does not parse: {type(e).__name__}: {str(e)[:200]}") from None
    return tree


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Scope:
    """Names of one block and those around it."""

    __slots__ = ("names", "outer")

    def __init__(self, outer: Scope | None, names: dict[str, Any]) -> None:
        self.outer = outer
        self.names = names

    def get(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return Undefined(f"{name!r}")


class Loop:
    """The variable ``loop``."""

    __slots__ = ("changed", "depth", "i", "items", "recurse")

    def __init__(self, items: Any, depth: int, recurse: Func | None) -> None:
        self.items = items
        self.i = 0
        self.depth = depth
        self.recurse = recurse
        self.changed: list[Any] | None = None

    def attr(self, rt: Runtime, name: str) -> Any:
        i, n = self.i, len(self.items)
        if name == "previtem":
            return self.items[i - 1] if i else Undefined("'loop.previtem'")
        if name == "nextitem":
            return self.items[i + 1] if i + 1 < n else Undefined("'loop.nextitem'")
        if name == "cycle":
            return Func("cycle", lambda args, _: args[i % len(args)])
        if name == "changed":
            return Func("changed", lambda args, _: self._is_changed(rt, args))
        return {
            "index": i + 1,
            "index0": i,
            "revindex": n - i,
            "revindex0": n - i - 1,
            "first": i == 0,
            "last": i == n - 1,
            "length": n,
            "depth": self.depth + 1,
            "depth0": self.depth,
        }.get(name, Undefined(f"'loop.{name[:60]}'"))

    def _is_changed(self, rt: Runtime, args: list[Any]) -> bool:
        same = self.changed is not None and rt.equal(self.changed, args)
        self.changed = args
        return not same


class Evaluator:
    """One rendering."""

    def __init__(self, values: dict[str, Any], now: datetime.datetime, time_limit_s: float) -> None:
        self.rt = Runtime(time_limit_s)
        self._globals = Scope(None, lib.functions(self.rt, now))
        self._root = Scope(self._globals, values)
        self._line = 1
        self._depth = 0
        self._n_out = 0
        self._out: list[str] = []

    def render(self, tree: nodes.Template) -> list[tuple[str, bool]]:
        """(text, trusted) in order.  Raises TemplateError naming the line."""
        try:
            self._body(tree.body, self._root)
            return T.segments(T.concat(self._out))
        except TemplateFailure as e:
            message = str(e)
        except RecursionError:
            message = "is nested too deeply"
        except (_Break, _Continue):
            message = "break or continue outside a loop"
        except Exception as e:  # a wrong operand of Python's: its message tells
            message = f"{type(e).__name__}: {str(e)[:200]}"
        raise TemplateError(f"line {self._line}: {message}")

    # -- statements ---------------------------------------------------------------------------

    def _body(self, body: Iterable[nodes.Node], scope: Scope) -> None:
        for node in body:
            self._line = node.lineno or self._line
            self.rt.tick()
            run = _STATEMENTS.get(type(node))
            if run is None:
                raise TemplateFailure(f"{{% {type(node).__name__.lower()} %}} is not offered")
            run(self, node, scope)

    def _emit(self, s: str) -> None:
        self._n_out += len(s)
        if self._n_out > MAX_TEXT:
            raise TemplateFailure(f"writes more than {MAX_TEXT} characters")
        if s:
            self._out.append(s)
            self.rt.take(16)

    def _captured(self, body: Iterable[nodes.Node], scope: Scope) -> str:
        """What a body writes, as a string."""
        outer, n_outer = self._out, self._n_out
        self._out, self._n_out = [], 0
        try:
            self._body(body, scope)
            self.rt.take(self._n_out)
            return T.concat(self._out)
        finally:
            self._out, self._n_out = outer, n_outer

    def _output(self, node: nodes.Output, scope: Scope) -> None:
        for child in node.nodes:
            if isinstance(child, nodes.TemplateData):
                self._emit(child.data)
            else:
                self._emit(self.rt.to_text(self._eval(child, scope)))

    def _if(self, node: nodes.If, scope: Scope) -> None:
        if self.rt.truth(self._eval(node.test, scope)):
            return self._body(node.body, scope)
        for branch in node.elif_:
            if self.rt.truth(self._eval(branch.test, scope)):
                return self._body(branch.body, scope)
        return self._body(node.else_, scope)

    def _for(self, node: nodes.For, scope: Scope) -> None:
        self._loop(node, scope, self.rt.items_of(self._eval(node.iter, scope)), 0)

    def _loop(self, node: nodes.For, scope: Scope, items: Any, depth: int) -> None:
        if node.test is not None:
            test = node.test
            items = self.rt.bounded(
                x
                for x in items
                if self.rt.truth(self._eval(test, self._bound(node.target, x, scope)))
            )
        recurse = Func("loop", lambda a, _: self._recurse(node, scope, a, depth))
        loop = Loop(items, depth, recurse if node.recursive else None)
        for i, item in enumerate(items):
            loop.i = i
            self.rt.tick()
            inner = self._bound(node.target, item, scope)
            inner.names.setdefault("loop", loop)
            try:
                self._body(node.body, inner)
            except _Break:
                break
            except _Continue:
                continue
        if not len(items):
            self._body(node.else_, Scope(scope, {}))

    def _recurse(self, node: nodes.For, scope: Scope, args: list[Any], depth: int) -> str:
        items = self.rt.items_of(args[0] if args else Undefined("the argument of loop()"))
        outer, n_outer = self._out, self._n_out
        self._out, self._n_out = [], 0
        self._enter()
        try:
            self._loop(node, scope, items, depth + 1)
            self.rt.take(self._n_out)
            return T.concat(self._out)
        finally:
            self._depth -= 1
            self._out, self._n_out = outer, n_outer

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateFailure(f"calls itself more than {MAX_DEPTH} levels deep")

    def _bound(self, target: nodes.Node, value: Any, outer: Scope) -> Scope:
        scope = Scope(outer, {})
        self._assign(target, value, scope)
        return scope

    def _assign(self, target: nodes.Node, value: Any, scope: Scope) -> None:
        if isinstance(target, nodes.Name):
            scope.names[target.name] = value
        elif isinstance(target, nodes.NSRef):
            ns = scope.get(target.name)
            if not isinstance(ns, Namespace):
                raise TemplateFailure(f"cannot set an attribute of a {type_name(ns)}")
            ns.attrs[target.attr] = value
        elif isinstance(target, (nodes.Tuple, nodes.List)):
            values = self.rt.items_of(value)
            if len(values) != len(target.items):
                raise TemplateFailure(
                    f"cannot unpack {len(values)} values into {len(target.items)} names"
                )
            for t, v in zip(target.items, values, strict=True):
                self._assign(t, v, scope)
        else:
            raise TemplateFailure(f"cannot assign to a {type(target).__name__.lower()}")

    def _set(self, node: nodes.Assign, scope: Scope) -> None:
        self._assign(node.target, self._eval(node.node, scope), scope)

    def _set_block(self, node: nodes.AssignBlock, scope: Scope) -> None:
        value: Any = self._captured(node.body, Scope(scope, {}))
        if node.filter is not None:
            value = self._filter(node.filter, scope, value)
        self._assign(node.target, value, scope)

    def _filter_block(self, node: nodes.FilterBlock, scope: Scope) -> None:
        value = self._captured(node.body, Scope(scope, {}))
        self._emit(self.rt.to_text(self._filter(node.filter, scope, value)))

    def _with(self, node: nodes.With, scope: Scope) -> None:
        inner = Scope(scope, {})
        for target, value in zip(node.targets, node.values, strict=True):
            self._assign(target, self._eval(value, scope), inner)
        self._body(node.body, inner)

    def _macro(self, node: nodes.Macro, scope: Scope) -> None:
        scope.names[node.name] = self._callable(node, scope, node.name)

    def _call_block(self, node: nodes.CallBlock, scope: Scope) -> None:
        caller = self._callable(node, scope, "caller")
        self._emit(self.rt.to_text(self._call(node.call, scope, {"caller": caller})))

    def _callable(self, node: nodes.Macro | nodes.CallBlock, scope: Scope, name: str) -> Func:
        used = {n.name for n in node.find_all(nodes.Name)}

        def call(args: list[Any], kwargs: dict[str, Any]) -> str:
            names: dict[str, Any] = {}
            if "caller" in kwargs and "caller" in used:
                names["caller"] = kwargs.pop("caller")
            inner = Scope(scope, names)
            params = [p.name for p in node.args]
            no_default = len(params) - len(node.defaults)
            for i, param in enumerate(params):
                if i < len(args):
                    names[param] = args[i]
                elif param in kwargs:
                    names[param] = kwargs.pop(param)
                elif i >= no_default:
                    names[param] = self._eval(node.defaults[i - no_default], inner)
                else:
                    names[param] = Undefined(f"the parameter {param!r}")
            self._extra(name, names, used, args[len(params) :], kwargs)
            self._enter()
            try:
                return self._captured(node.body, inner)
            finally:
                self._depth -= 1

        return Func(name, call)

    @staticmethod
    def _extra(
        name: str, names: dict[str, Any], used: set[str], args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        if args and "varargs" not in used:
            raise TemplateFailure(f"the macro {name!r} was given {len(args)} arguments too many")
        if kwargs and "kwargs" not in used:
            raise TemplateFailure(f"the macro {name!r} has no parameter {next(iter(kwargs))!r}")
        names |= {"varargs": tuple(args), "kwargs": kwargs}

    def _break(self, node: nodes.Break, scope: Scope) -> None:
        raise _Break

    def _continue(self, node: nodes.Continue, scope: Scope) -> None:
        raise _Continue

    def _scoped(self, node: nodes.Scope, scope: Scope) -> None:
        self._body(node.body, Scope(scope, {}))

    def _block(self, node: nodes.Block, scope: Scope) -> None:
        self._body(node.body, Scope(self._root, {}))

    def _expression(self, node: nodes.ExprStmt, scope: Scope) -> None:
        self._eval(node.node, scope)

    # -- expressions --------------------------------------------------------------------------

    def _eval(self, node: nodes.Node, scope: Scope) -> Any:
        self.rt.tick()
        self._line = node.lineno or self._line
        run = _EXPRESSIONS.get(type(node))
        if run is None:
            raise TemplateFailure(f"the expression {type(node).__name__} is not offered")
        return run(self, node, scope)

    def _const(self, node: nodes.Const, scope: Scope) -> Any:
        return self.rt.number(node.value)

    def _data(self, node: nodes.TemplateData, scope: Scope) -> Any:
        return node.data

    def _name(self, node: nodes.Name, scope: Scope) -> Any:
        return scope.get(node.name)

    def _many(self, items: list[nodes.Expr], scope: Scope) -> list[Any]:
        self.rt.take_items(len(items))
        return [self._eval(i, scope) for i in items]

    def _list(self, node: nodes.List, scope: Scope) -> list[Any]:
        return self._many(node.items, scope)

    def _tuple(self, node: nodes.Tuple, scope: Scope) -> tuple[Any, ...]:
        return tuple(self._many(node.items, scope))

    def _dict(self, node: nodes.Dict, scope: Scope) -> dict[Any, Any]:
        self.rt.take_items(2 * len(node.items))
        out: dict[Any, Any] = {}
        for pair in node.items:
            key = self._eval(pair.key, scope)
            if not is_key(key):
                raise TemplateFailure(f"a {type_name(key)} cannot be a key")
            out[key] = self._eval(pair.value, scope)
        return out

    def _conditional(self, node: nodes.CondExpr, scope: Scope) -> Any:
        if self.rt.truth(self._eval(node.test, scope)):
            return self._eval(node.expr1, scope)
        if node.expr2 is None:
            return Undefined("the value of an if without else")
        return self._eval(node.expr2, scope)

    def _and(self, node: nodes.And, scope: Scope) -> Any:
        left = self._eval(node.left, scope)
        return self._eval(node.right, scope) if self.rt.truth(left) else left

    def _or(self, node: nodes.Or, scope: Scope) -> Any:
        left = self._eval(node.left, scope)
        return left if self.rt.truth(left) else self._eval(node.right, scope)

    def _not(self, node: nodes.Not, scope: Scope) -> bool:
        return not self.rt.truth(self._eval(node.node, scope))

    def _signed(self, node: nodes.UnaryExpr, scope: Scope) -> Any:
        v = self._eval(node.node, scope)
        if not isinstance(v, (bool, int, float)):
            raise TemplateFailure(f"cannot take {node.operator} of a {type_name(v)}")
        return -v if node.operator == "-" else +v

    def _concat(self, node: nodes.Concat, scope: Scope) -> str:
        parts = [self.rt.to_text(self._eval(n, scope)) for n in node.nodes]
        self.rt.take(sum(map(len, parts)))
        return T.concat(parts)

    def _compare(self, node: nodes.Compare, scope: Scope) -> bool:
        left = self._eval(node.expr, scope)
        for operand in node.ops:
            right = self._eval(operand.expr, scope)
            if not _COMPARISONS[operand.op](self.rt, left, right):
                return False
            left = right
        return True

    def _arithmetic(self, node: nodes.BinExpr, scope: Scope) -> Any:
        a, b = self._eval(node.left, scope), self._eval(node.right, scope)
        op = node.operator
        for v in (a, b):
            if isinstance(v, Undefined):
                v.fail()
        if isinstance(a, str) and op == "%":
            return lib.percent(self.rt, a, b)
        if op == "+":
            if isinstance(a, str) and isinstance(b, str):
                self.rt.take(len(a) + len(b))
                return T.concat([a, b])
            for kind in (list, tuple):
                if isinstance(a, kind) and isinstance(b, kind):
                    self.rt.take_items(len(a) + len(b))
                    return kind([*a, *b])
        if op == "*":
            if isinstance(b, (str, list, tuple)):
                a, b = b, a
            if isinstance(a, (str, list, tuple)) and isinstance(b, int):
                return self._repeated(a, max(b, 0))
        if isinstance(a, (bool, int, float)) and isinstance(b, (bool, int, float)):
            return self._number(op, a, b)
        raise TemplateFailure(f"cannot take {op} of a {type_name(a)} and a {type_name(b)}")

    def _repeated(self, v: Any, n: int) -> Any:
        if not isinstance(v, str):
            self.rt.take_items(len(v) * n)
            return v * n
        self.rt.take(len(v) * n)
        if T.is_trusted(v):
            return T.trusted(T.plain(v) * n)
        self.rt.take(16 * len(T.spans_of(v)) * n)
        return T.concat([v] * n) if T.spans_of(v) else v * n

    def _number(self, op: str, a: Any, b: Any) -> Any:
        n_bits = a.bit_length() * max(b, 0) if isinstance(a, int) and isinstance(b, int) else 0
        if op == "**" and n_bits > 8192:
            raise TemplateFailure(f"makes an integer of {n_bits} bits")
        return self.rt.number(_ARITHMETIC[op](a, b))

    def _attribute(self, v: Any, name: str) -> Any:
        """v.name: methods first, then entries, as Jinja does."""
        if isinstance(v, Undefined):
            v.fail()
        found: Any = lib.method(self.rt, v, name)
        if found is not None:
            return found
        entries: dict[str, Any] = {}
        if isinstance(v, dict):
            entries = v
        elif isinstance(v, Namespace):
            entries = v.attrs
        elif isinstance(v, Group):
            entries = {"grouper": v[0], "list": v[1]}
        elif isinstance(v, Func):
            entries = {"name": v.name}
        if name in entries:
            return entries[name]
        if name.startswith("_"):
            raise TemplateFailure(f"access to the attribute {name[:60]!r} is not allowed")
        if isinstance(v, Loop):
            return v.attr(self.rt, name)
        return Undefined(f"{type_name(v)} attribute {name[:60]!r}")

    def _getattr(self, node: nodes.Getattr, scope: Scope) -> Any:
        return self._attribute(self._eval(node.node, scope), node.attr)

    def _getitem(self, node: nodes.Getitem, scope: Scope) -> Any:
        v = self._eval(node.node, scope)
        if isinstance(node.arg, nodes.Slice):
            return self._sliced(v, node.arg, scope)
        key = self._eval(node.arg, scope)
        if isinstance(v, dict) and is_key(key) and key in v:
            return v[key]
        if isinstance(key, str):
            return self._attribute(v, T.plain(key))
        return lib.item_of(self.rt, v, key)

    def _sliced(self, v: Any, node: nodes.Slice, scope: Scope) -> Any:
        ends = [None if n is None else self._eval(n, scope)
                for n in (node.start, node.stop, node.step)]  # fmt: skip
        for e in ends:
            if e is not None and not isinstance(e, int):
                raise TemplateFailure(f"a slice cannot end at a {type_name(e)}")
        if isinstance(v, Undefined):
            v.fail()
        if isinstance(v, str):
            self.rt.take(len(v))
            start, stop, step = slice(*ends).indices(len(v))
            if step == 1:
                return T.cut(v, start, max(start, stop))
            part = T.plain(v)[slice(*ends)]
            return T.trusted(part) if T.is_trusted(v) else part
        if isinstance(v, (list, tuple, range)):
            self.rt.take_items(len(v))
            return list(v[slice(*ends)]) if isinstance(v, range) else v[slice(*ends)]
        raise TemplateFailure(f"cannot take a slice of a {type_name(v)}")

    def _arguments(self, node: Any, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        args = [self._eval(a, scope) for a in node.args]
        kwargs = {k.key: self._eval(k.value, scope) for k in node.kwargs}
        if node.dyn_args is not None:
            args.extend(self.rt.items_of(self._eval(node.dyn_args, scope)))
        if node.dyn_kwargs is not None:
            more = self._eval(node.dyn_kwargs, scope)
            if not isinstance(more, dict) or not all(isinstance(k, str) for k in more):
                raise TemplateFailure(f"found a {type_name(more)} after **, want a dict")
            kwargs |= {T.plain(k): v for k, v in more.items()}
        return args, kwargs

    def _call(self, node: nodes.Call, scope: Scope, extra: dict[str, Any] | None = None) -> Any:
        fn = self._eval(node.node, scope)
        if isinstance(fn, Undefined):
            fn.fail()
        if isinstance(fn, Loop) and fn.recurse is not None:
            fn = fn.recurse
        if not isinstance(fn, Func):
            raise TemplateFailure(f"a {type_name(fn)} cannot be called")
        args, kwargs = self._arguments(node, scope)
        line = self._line
        result = fn.fn(args, kwargs | extra if extra else kwargs)
        self._line = line  # a macro's body lies elsewhere
        return result

    def _filter(self, node: nodes.Filter, scope: Scope, value: Any = None) -> Any:
        if node.node is not None:
            value = self._eval(node.node, scope)
        args, kwargs = self._arguments(node, scope)
        return lib.filter_named(node.name)(self.rt, value, *args, **kwargs)

    def _filter_expression(self, node: nodes.Filter, scope: Scope) -> Any:
        return self._filter(node, scope)

    def _test(self, node: nodes.Test, scope: Scope) -> bool:
        value = self._eval(node.node, scope)
        args, kwargs = self._arguments(node, scope)
        return self.rt.truth(lib.test_named(node.name)(self.rt, value, *args, **kwargs))


_COMPARISONS: dict[str, Callable[[Runtime, Any, Any], bool]] = {
    "eq": lambda rt, a, b: rt.equal(a, b),
    "ne": lambda rt, a, b: not rt.equal(a, b),
    "lt": lambda rt, a, b: rt.less(a, b),
    "gt": lambda rt, a, b: rt.less(b, a),
    "lteq": lib.not_greater,
    "gteq": lambda rt, a, b: lib.not_greater(rt, b, a),
    "in": lambda rt, a, b: rt.contains(b, a),
    "notin": lambda rt, a, b: not rt.contains(b, a),
}

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}

_Run = Callable[[Evaluator, Any, Scope], Any]
_STATEMENTS: dict[type[nodes.Node], _Run] = {
    nodes.Output: Evaluator._output,
    nodes.If: Evaluator._if,
    nodes.For: Evaluator._for,
    nodes.Assign: Evaluator._set,
    nodes.AssignBlock: Evaluator._set_block,
    nodes.FilterBlock: Evaluator._filter_block,
    nodes.With: Evaluator._with,
    nodes.Macro: Evaluator._macro,
    nodes.CallBlock: Evaluator._call_block,
    nodes.Break: Evaluator._break,
    nodes.Continue: Evaluator._continue,
    nodes.Scope: Evaluator._scoped,
    nodes.Block: Evaluator._block,
    nodes.ExprStmt: Evaluator._expression,
}
_EXPRESSIONS: dict[type[nodes.Node], _Run] = {
    nodes.Const: Evaluator._const,
    nodes.TemplateData: Evaluator._data,
    nodes.Name: Evaluator._name,
    nodes.List: Evaluator._list,
    nodes.Tuple: Evaluator._tuple,
    nodes.Dict: Evaluator._dict,
    nodes.CondExpr: Evaluator._conditional,
    nodes.And: Evaluator._and,
    nodes.Or: Evaluator._or,
    nodes.Not: Evaluator._not,
    nodes.Neg: Evaluator._signed,
    nodes.Pos: Evaluator._signed,
    nodes.Concat: Evaluator._concat,
    nodes.Compare: Evaluator._compare,
    nodes.Getattr: Evaluator._getattr,
    nodes.Getitem: Evaluator._getitem,
    nodes.Call: Evaluator._call,
    nodes.Filter: Evaluator._filter_expression,
    nodes.Test: Evaluator._test,
    nodes.Add: Evaluator._arithmetic,
    nodes.Sub: Evaluator._arithmetic,
    nodes.Mul: Evaluator._arithmetic,
    nodes.Div: Evaluator._arithmetic,
    nodes.FloorDiv: Evaluator._arithmetic,
    nodes.Mod: Evaluator._arithmetic,
    nodes.Pow: Evaluator._arithmetic,
}
