"""Templates from hostile files: nothing to escape to, and every bomb ends in a FormatError.

The bombs run with a short time limit and a bound on memory that is checked, not timed: without the
limits in the evaluator each of them would run for hours or fill the machine.
"""

from __future__ import annotations

import tracemalloc

import pytest

from ruvllm._errors import FormatError
from ruvllm.engine._chat import ChatTemplate

USER = [{"role": "user", "content": "hi"}]


def render(source: str, time_limit_s: float = 0.25, **kwargs: object) -> str:
    t = ChatTemplate(source, bos_token="<s>", eos_token="</s>", time_limit_s=time_limit_s)
    return "".join(text for text, _ in t.render(USER, **kwargs))  # type: ignore[arg-type]


# Public server-side template injections for Jinja2, and the ways past its sandbox that were fixed
# in 2.8.1 (str.format), 2.10.1 (format_map), 3.1.5 (indirect format), 3.1.6 (|attr).
PAYLOADS = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '' | attr('_' ~ '_class_' ~ '_') }}",
    "{{ [[]] | map(attribute='__class__') | list }}",
    "{{ [''] | map('attr', '__class__') | list }}",
    "{{ [[]] | selectattr('__class__.__init__') | list }}",
    "{{ [[]] | groupby('__class__') }}",
    "{{ [1] | sort(attribute='__class__') }}",
    "{{ [1] | sum(attribute='__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0[__class__]}'.format(1) }}",
    "{{ '{a.__class__}'.format(a=messages) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "{{ ['{0.__class__}'] | map('format', 1) | list }}",
    "{{ '' | attr('format') }}{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ '%(a.__class__)s' % {'a': 1} }}",
    "{{ range.__globals__ }}",
    "{{ range.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__ }}",
    "{{ namespace.__init__.__globals__['os'].popen('id').read() }}",
    "{{ namespace().__class__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner().__call__.__func__ }}",
    "{{ lipsum.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.eval_ctx }}",
    "{{ url_for.__globals__.current_app }}",
    "{{ config.items() }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ request.application.__globals__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].__setitem__('a', 1) }}",
    "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% for m in messages %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m.__closure__ }}",
    "{{ (1).__class__ }}",
    "{{ none.__class__ }}",
    "{{ true.__class__ }}",
    "{{ 1.0.__class__ }}",
    "{{ {}.__class__ }}",
    "{{ dict.mro() }}",
    "{{ dict.__mro__ }}",
    "{{ missing.__class__ }}",
    "{{ ''.encode('rot13') }}",
    "{{ ''.translate({}) }}",
    "{{ x.gi_frame.f_globals }}",
    "{{ '' | xmlattr }}",
    "{{ ['os'] | map('import') | list }}",
    "{% from 'os' import popen %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{% set x = ''.__class__ %}",
    "{{ ''.__doc__ }}",
    "{{ ().__class__.__bases__[0].__subclasses__()[140].__init__.__globals__ }}",
    "{{ messages | tojson(default=range) }}",
    "{{ messages | map(range) | list }}",
    "{{ messages | select(range) | list }}",
]


@pytest.mark.parametrize("source", PAYLOADS)
def test_there_is_nothing_to_escape_to(source: str) -> None:
    with pytest.raises(FormatError, match=r"^chat template: line 1: "):
        render(source)


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ range }}{{ messages.index }}{{ ''.join }}", "<...><...><...>"),
        ("{{ namespace(a=1) }}{{ [namespace(a=1)] }}", "<...>[<...>]"),
        ("{% for m in messages %}{{ loop }}{% endfor %}", "<...>"),
        ("{% macro m() %}{% endmacro %}{{ m }}", "<...>"),
        ("{{ ''.nope }}{{ [].nope }}{{ {}.nope }}{{ 1.5.nope }}", ""),
        ("{{ self }}{{ config }}{{ request }}{{ __builtins__ }}{{ __import__ }}", ""),
        ("{{ [] | map(attribute='__class__') | list }}", "[]"),
        ("{{ {'__class__': 1}.__class__ }}{{ {'_x': 2}['_x'] }}", "12"),
    ],
)
def test_what_prints_tells_nothing(source: str, want: str) -> None:
    assert render(source) == want


def doubled(start: str, step: str, use: str) -> str:
    """A value that contains itself twice, sixty times over, and then something that walks it."""
    return (
        f"{{% set ns = namespace(a={start}) %}}"
        f"{{% for i in range(60) %}}{{% set ns.a = {step} %}}{{% endfor %}}{use}"
    )


BOMBS = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(10**30) %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ range(0, -10**9, -1) | length }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% if 0 %}{% endif %}{% endfor %}"
    "{% endfor %}",
    "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000) | list | length }}{% endfor %}",
    "{% for i in range(100000) %}{{ (range(100000) | list).count(1) }}{% endfor %}",
    "{% for i in range(100000) %}{{ 5 in (range(100000) | map('string')) }}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ 'a' * 10**30 }}",
    "{{ [0] * 10**9 }}",
    "{{ (1, 2) * 10**9 }}",
    "{{ ('a' * 4000000) * 4000000 }}",
    "{{ 2 ** (10 ** 9) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ (-1) ** 0.5 }}",
    "{% set ns = namespace(n=9) %}"
    "{% for i in range(100) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{{ 1.0e308 ** 2 }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.center(10**9) }}{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.rjust(10**18) }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ ('\\n' * 90000) | indent(9000, true, true) }}",
    "{{ 'a' | indent('x' * 4000000, true) | indent('x' * 4000000, true) }}",
    "{{ ('a' * 4000000) | replace('a', 'b' * 1000) }}",
    "{{ ('a' * 2000000) | replace('', 'b' * 1000000) }}",
    "{{ ('a' * 4000000).replace('a', 'bb') }}",
    "{{ ('a' * 1000000) | list | join('b' * 4000000) }}",
    "{{ range(90000) | join('b' * 1000) }}",
    "{{ ('b' * 4000000).join('ccc') }}",
    "{{ ('b' * 1000).join(range(90000) | map('string')) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{:.1000000000f}'.format(1) }}",
    "{{ ('%s' * 1000000) % ('a', ) }}",
    "{{ ('{0}' * 1000000).format('a' * 1000) }}",
    "{{ 'a b ' * 1000000 | wordcount }}{{ ('a ' * 1000000).split() }}",
    "{{ ('a,' * 1000000).split(',') }}",
    "{{ ('a,' * 1000000).rsplit(',') }}",
    "{{ ('\\n' * 1000000).splitlines() }}",
    "{{ ('a' * 4000000) | list }}",
    "{% for c in 'a' * 4000000 %}{% endfor %}",
    "{{ range(90000) | batch(1, 'x') | map('join', 'y' * 10000) | list }}",
    "{{ [1] | batch(10**9, 0) | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ 1 | round(10**9) }}",
    "{{ 5 | round(-10**9) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ ['\\u00e9' * 4000000] | tojson(ensure_ascii=true) }}",
    "{{ ('\\u0000' * 4000000) | string | list }}",
    "{{ ['\\u0000' * 3000000] }}",
    "{{ ('<' * 4000000) | escape }}",
    "{{ 'a' * 4000000 ~ 'a' * 4000000 }}",
    "{% set ns = namespace(a='x') %}"
    "{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set ns = namespace(a='x') %}"
    "{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "{% set ns = namespace(a=[1]) %}"
    "{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}"
    "{% set ns.a = ns.a + ['x' * 4000000 ~ i] %}{% endfor %}",
    "{% set ns = namespace(a=()) %}"
    "{% for i in range(99999) %}{% set ns.a = ns.a + (i,) %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ m() }}{% endcall %}",
    "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "{% for i in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}{{ 'a' * 4000000 }}{% endfor %}{% endset %}",
    "{% filter upper %}{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}{% endfilter %}",
    doubled("[1]", "[ns.a, ns.a]", "{{ ns.a }}"),
    doubled("[1]", "[ns.a, ns.a]", "{{ ns.a | tojson }}"),
    doubled("[1]", "[ns.a, ns.a]", "{{ ns.a | string | length }}"),
    doubled("(1,)", "(ns.a, ns.a)", "{{ {ns.a: 1} }}"),
    doubled("(1,)", "(ns.a, ns.a)", "{{ '%s' % (ns.a,) }}"),
    doubled("{'a': 1}", "{'a': ns.a, 'b': ns.a}", "{{ ns.a }}"),
    doubled("{'a': 1}", "{'a': ns.a, 'b': ns.a}", "{{ ns.a | tojson }}"),
    doubled("[[1], [1]]", "[[ns.a[0], ns.a[0]], [ns.a[1], ns.a[1]]]", "{{ ns.a[0] == ns.a[1] }}"),
    doubled("[[1], [1]]", "[[ns.a[0], ns.a[0]], [ns.a[1], ns.a[1]]]", "{{ ns.a[0] < ns.a[1] }}"),
    doubled("[[1], [1]]", "[[ns.a[0], ns.a[0]], [ns.a[1], ns.a[1]]]", "{{ ns.a[0] in [ns.a[1]] }}"),
    doubled("[[1], [1]]", "[[ns.a[0], ns.a[0]], [ns.a[1], ns.a[1]]]", "{{ ns.a | sort }}"),
    doubled("[[1], [1]]", "[[ns.a[0], ns.a[0]], [ns.a[1], ns.a[1]]]", "{{ ns.a | unique }}"),
    "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a | tojson }}",
    "{% set a = ('x' * 1000000 ~ 1, 'x' * 1000000 ~ 2) * 40000 %}{{ a | sort | length }}",
    "{% set a = ('x' * 1000000 ~ 1, 'x' * 1000000 ~ 2) * 40000 %}{{ a | list | max | length }}",
    "{% set a = ['x' * 1000000 ~ 1] * 90000 %}{{ ('x' * 1000000 ~ 2) in a }}",
    "{% set s = 'x' * 4000000 %}"
    "{% for i in range(100000) %}{% if 'y' in s %}{% endif %}{% endfor %}",
    "{% set s = 'x' * 4000000 %}{% for i in range(100000) %}{{ s.count('xy') }}{% endfor %}",
    "{% set s = 'x' * 4000000 %}{% for i in range(100000) %}{{ s[1:] | length }}{% endfor %}",
    "{% set s = ('x' ~ messages[0].content) * 1000000 %}{{ s.replace('i', 'j') }}",
    "{{ strftime_now('%Y' * 1000) }}",
    "{{ strftime_now('%999999999Y') }}",
    "{{ raise_exception('x' * 10**9) }}",
    "{{ '9' * 5000 | int + '9' * 1000000 | int }}{{ 1 / 0 }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_bombs_end_in_a_format_error(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"^chat template: line \d+: ") as e:
            render(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(e.value)) < 500
    assert peak < 400 << 20


DEEP = "nested too deeply|takes too long to parse"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", DEEP + "|Expected|unexpected"),
        ("{{ " + "[" * 50_000 + "]" * 50_000 + " }}", DEEP),
        ("{{ " + "1 + " * 50_000 + "1 }}", DEEP),
        ("{{ " + "- " * 50_000 + "1 }}", DEEP),
        ("{{ " + "not " * 50_000 + "1 }}", DEEP),
        ("{{ x" + ".a" * 50_000 + " }}", DEEP),
        ("{{ x" + "|e" * 50_000 + " }}", DEEP),
        ("{{ " + "1 if 1 else " * 50_000 + "1 }}", DEEP),
        ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, DEEP),
        ("{% for i in [1] %}" * 5000 + "{% endfor %}" * 5000, DEEP),
        ("{{ " + "9" * 100_000 + " }}", "line 1: |does not parse"),
        ("{{ 1" + "0" * 4000 + " }}", "makes an integer of 13288 bits"),
        ("x" * ((1 << 20) + 1), "has 1048577 characters, want at most 1048576"),
        ("{{ '" + "\\" * 99_999 + "' }}", "line 1: "),
        ("{% raw %}" + "{% " * 300_000, "line 1: "),
        ("{#" * 500_000, "line 1: "),
        ("{" * 500_000, DEEP),
        ("{% if x %}", "line 1: Unexpected end of template"),
        ("{{ '\\N{nope}' }}", "line 1: |does not parse"),
        ("{{ 1 }}" * 140_000, "takes too long to parse"),
    ],
    ids=range(20),
)  # fmt: skip
def test_sources_that_break_parsers(source: str, message: str) -> None:
    with pytest.raises(FormatError, match=f"^chat template: .*({message})") as e:
        render(source)
    assert len(str(e.value)) < 500


def test_long_honest_conversations_are_rendered() -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
    )
    t = ChatTemplate(source, bos_token="", eos_token="", time_limit_s=60)
    messages = [{"role": "user", "content": f"{i} " * 100} for i in range(5000)]
    assert len(t.render(messages)) == 10_001


def test_the_limit_is_of_each_rendering() -> None:
    t = ChatTemplate("{{ messages[0].content }}", bos_token="", eos_token="", time_limit_s=0.25)
    for _ in range(3):
        assert t.render(USER) == [("hi", False)]
