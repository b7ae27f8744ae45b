"""The flags that several commands share, each written once.

A group is a dataclass whose fields are flags; a command takes the whole group as one parameter and
``flags`` spells it out for typer.  The fields are named as the Python API names them, so that a
group turns into keyword arguments as it is.  A flag wins over its environment variable, which is
called after it: ``--top-k`` is RUVLLM_TOP_K."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# typer carries click inside itself or depends on it, by its version; the errors have one base.
UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")
ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def flags(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose dataclass parameters are replaced by their fields."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for p in signature.parameters.values():
        if dataclasses.is_dataclass(p.annotation) and isinstance(p.annotation, type):
            groups[p.name] = p.annotation
            parameters += _fields(p.annotation)
        else:
            parameters.append(p.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        function(**values)

    del command.__wrapped__  # or typer would read the annotations of the original
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _fields(group: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
        )
        for f in dataclasses.fields(group)
    ]


def option(
    names: str, help: str, panel: str | None = None, env: bool | str = True, **more: Any
) -> Any:
    """A flag.  names: divided by spaces, the long one first.  env: a name of its own, or False."""
    if env is True:
        first = names.partition(" ")[0].partition("/")[0]
        env = "RUVLLM_" + first.lstrip("-").replace("-", "_").upper()
    return typer.Option(
        *names.split(),
        help=help,
        envvar=env or None,
        show_envvar=False,  # docs/cli.md says how they are called
        show_default=not re.search(r"is off|Default:", help),  # the text says it
        rich_help_panel=panel,
        **more,
    )


_sampling = functools.partial(option, panel="Sampling")
_constrain = functools.partial(option, panel="Constrain the reply (extra: grammar)", env=False)
_engine = functools.partial(option, panel="Engine")
_memory = functools.partial(option, panel="Keys and values")
_output = functools.partial(option, panel="Output")

NUMERICS_HELP = "fast: round the inputs of BF16 weights to BF16, where the CPU has that."


@dataclasses.dataclass
class Sampling:
    """How tokens are chosen."""

    max_tokens: Annotated[
        str,
        _sampling(
            "--max-tokens -n",
            "Most tokens to generate; none: until the context is full.",
            metavar="N|none",
        ),
    ] = "256"
    temperature: Annotated[
        float, _sampling("--temperature -t", "0 takes the likeliest token each time.")
    ] = 0.0
    top_k: Annotated[int, _sampling("--top-k", "Keep the k likeliest; 0 is off.")] = 0
    top_p: Annotated[
        float, _sampling("--top-p", "Keep the likeliest that add up to p; 1 is off.")
    ] = 1.0
    min_p: Annotated[
        float,
        _sampling("--min-p", "Keep those at least p times as likely as the likeliest; 0 is off."),
    ] = 0.0
    typical_p: Annotated[
        float, _sampling("--typical-p", "Keep the most typical that add up to p; 1 is off.")
    ] = 1.0
    repeat_penalty: Annotated[
        float, _sampling("--repeat-penalty", "Divide logits of tokens already there; 1 is off.")
    ] = 1.0
    frequency_penalty: Annotated[
        float,
        _sampling("--frequency-penalty", "Subtract for each time a token was there; 0 is off."),
    ] = 0.0
    presence_penalty: Annotated[
        float, _sampling("--presence-penalty", "Subtract once if a token was there; 0 is off.")
    ] = 0.0
    penalty_last_n: Annotated[
        int, _sampling("--penalty-last-n", "Tokens the penalties look back at; -1: all.")
    ] = 64
    logit_bias: Annotated[
        list[str] | None,
        _sampling(
            "--logit-bias",
            "Add to the logit of a token, -inf bans it. Repeatable.",
            env=False,
            metavar="ID=BIAS",
        ),
    ] = None
    seed: Annotated[
        int | None, _sampling("--seed", "0 .. 2^64 - 1. Default: a fresh one.", metavar="N")
    ] = None
    stop: Annotated[
        list[str] | None,
        _sampling(
            "--stop", "End the reply before this text. Repeatable.", env=False, metavar="TEXT"
        ),
    ] = None
    ignore_eos: Annotated[bool, _sampling("--ignore-eos", "Go on past end tokens.")] = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Model.generate``."""
        out = dict(vars(self))
        out["max_tokens"] = _max_tokens(self.max_tokens)
        out["stop"] = tuple(self.stop or ())
        out["logit_bias"] = dict(_bias(text) for text in self.logit_bias or ())
        return out


def _max_tokens(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise usage("--max-tokens", f"is {text!r}, want a number or none") from None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise usage("--logit-bias", f"is {text!r}, want ID=BIAS, such as 13=-inf") from None


@dataclasses.dataclass
class Constrain:
    """What the reply must look like; at most one of them."""

    json_schema: Annotated[
        Path | None,
        _constrain("--json-schema", "JSON that obeys the schema in this file.", metavar="FILE"),
    ] = None
    regex: Annotated[
        str | None, _constrain("--regex", "Text that matches as a whole.", metavar="EXPR")
    ] = None
    choice: Annotated[
        list[str] | None, _constrain("--choice", "One of these. Repeatable.", metavar="TEXT")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Model.generate``."""
        given = [
            n for n in ("json_schema", "regex", "choice") if getattr(self, n) not in (None, [])
        ]
        if len(given) > 1:
            found = " and ".join("--" + n.replace("_", "-") for n in given)
            raise usage("constraint", f"found {found}, want one of them")
        if self.json_schema is not None:
            return {"json_schema": read_text(self.json_schema, "--json-schema")}
        if self.regex is not None:
            return {"regex": self.regex}
        return {"choices": list(self.choice)} if self.choice else {}


class KvType(enum.StrEnum):
    """How keys and values are kept."""

    auto = "auto"
    f16 = "f16"
    f32 = "f32"
    q8_0 = "q8_0"
    q4_0 = "q4_0"


class Numerics(enum.StrEnum):
    """What products may give up to be quicker."""

    exact = "exact"
    fast = "fast"


class KvStore(enum.StrEnum):
    """What older keys and values move to."""

    q8_0 = "q8_0"
    k8v4 = "k8v4"
    q4_0 = "q4_0"


class KvFit(enum.StrEnum):
    """Which free page is taken."""

    first = "first"
    best = "best"
    round_robin = "round_robin"


@dataclasses.dataclass
class Memory:
    """What becomes of keys and values."""

    kv: Annotated[
        KvType, _memory("--kv", "Type of keys and values; auto: as precise as the weights.")
    ] = KvType.auto
    kv_budget: Annotated[
        str | None,
        _memory(
            "--kv-budget",
            "Most memory they take, such as 512M or 4G. Default: half of what is available.",
            metavar="BYTES",
        ),
    ] = None
    kv_store: Annotated[
        KvStore | None, _memory("--kv-store", "Type that older ones move to. Default: none do.")
    ] = None
    kv_tail: Annotated[
        int, _memory("--kv-tail", "Newest positions that stay as they are, of a store.")
    ] = 256
    kv_batch: Annotated[int, _memory("--kv-batch", "Positions that move to a store at once.")] = 64
    kv_rotate: Annotated[
        bool, _memory("--kv-rotate/--no-kv-rotate", "Rotate keys for a store. Default: yes.")
    ] = True
    kv_fit: Annotated[KvFit, _memory("--kv-fit", "Which free page is taken.")] = KvFit.first
    share_prefix: Annotated[
        bool,
        _memory(
            "--share-prefix/--no-share-prefix",
            "Compute beginnings that prompts have in common once. Default: yes.",
        ),
    ] = True

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Model``."""
        out = dict(vars(self))
        out["kv_type"] = out.pop("kv").value
        out["kv_budget"] = None if self.kv_budget is None else _bytes(self.kv_budget)
        out["kv_store"] = self.kv_store and self.kv_store.value
        out["kv_fit"] = self.kv_fit.value
        return out


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,18})([KMGT](iB)?)?", text, re.IGNORECASE | re.ASCII)
    if found is None:
        raise usage("--kv-budget", f"is {text!r}, want bytes, such as 1000000, 512M or 4G")
    return int(found[1]) << 10 * " KMGT".index((found[2] or " ")[0].upper())


@dataclasses.dataclass
class Engine:
    """How the model is opened and run."""

    threads: Annotated[
        int | None, _engine("--threads -j", "Default: one per core.", metavar="N")
    ] = None
    ctx: Annotated[
        int | None,
        _engine(
            "--ctx -c",
            "Most tokens of prompt and reply. Default: what the model was trained for.",
            metavar="N",
        ),
    ] = None
    batch: Annotated[
        int | None, _engine("--batch -b", "Prompt tokens per step. Default: 128.", metavar="N")
    ] = None
    repack: Annotated[
        bool | None,
        _engine(
            "--repack/--no-repack",
            "Hold quantised weights a second time, in the kernels' order: faster replies. "
            "Default: where half of the memory stays free.",
        ),
    ] = None
    numerics: Annotated[Numerics, _engine("--numerics", NUMERICS_HELP)] = Numerics.exact
    chat_template: Annotated[
        Path | None,
        _engine("--chat-template", "Jinja file to use instead of the model's own.", metavar="FILE"),
    ] = None
    witness: Annotated[
        bool,
        _engine("--witness/--no-witness", "Leave an entry in the witness log. Default: yes."),
    ] = True
    session: Annotated[
        str | None, _engine("--session", "Session id of the witness entries.", metavar="ID")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Model``."""
        path = self.chat_template
        return {
            "chat_template": None if path is None else read_text(path, "--chat-template"),
            "n_threads": self.threads,
            "n_ctx": self.ctx,
            "n_batch": self.batch,
            "repack": self.repack,
            "numerics": self.numerics.value,
            "witness": self.witness,
        }


JsonFlag = Annotated[bool, _output("--json", "Print JSON and nothing else.", env=False)]
VerboseFlag = Annotated[bool, _output("--verbose -v", "Timings and seed, on stderr.")]
ModelOption = Annotated[
    Path | None, option("--model -m", "A GGUF file. Default: the bundled model.", metavar="PATH")
]
ModelWord = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL", help="A GGUF file. Default: the bundled model.", show_default=False
    ),
]
ThreadsOption = Annotated[int | None, option("--threads -j", "Default: one per core.", metavar="N")]


def usage(what: str, message: str) -> Exception:
    """A usage error about ``what``: exit code 2."""
    error: Exception = UsageError(f"{what}: {message}")
    return error


def chosen_model(ctx: typer.Context, word: str | Path | None, model: Path | None) -> Path | None:
    """The model of a command that takes it as a word and as ``--model`` (or RUVLLM_MODEL)."""
    if word is None:
        return model
    source = ctx.get_parameter_source("model")
    if source is not None and source.name == "COMMANDLINE":
        raise usage("model", f"found {word} and --model {model}, want one of them")
    return Path(word)


def read_text(path: Path, flag: str) -> str:
    """The text of a file the user named; a usage error when it cannot be read as UTF-8."""
    try:
        return path.read_text("utf-8")
    except OSError as e:
        raise usage(flag, f"{path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise usage(flag, f"{path}: byte {e.start} is not UTF-8, want UTF-8 text") from None
