"""``ruvllm bench``: how fast a model runs here, and with how many threads it is fastest."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import (
    NUMERICS_HELP,
    JsonFlag,
    Memory,
    ModelOption,
    ModelWord,
    Numerics,
    chosen_model,
    flags,
    option,
    usage,
)

if TYPE_CHECKING:
    from ruvllm import Model
    from ruvllm.engine._bench import Plan, Report, Result

MOST_THREADS = 256
MOST_SEQUENCES = 1024


@flags
def bench(
    *,
    context: typer.Context,
    word: ModelWord = None,
    model: ModelOption = None,
    pp: Annotated[
        int | None,
        option("--pp -p", "Prompt tokens. Default: 512, or what fits.", env=False, metavar="N"),
    ] = None,
    tg: Annotated[
        int | None,
        option(
            "--tg -n", "Tokens to generate. Default: 128, or what fits.", env=False, metavar="N"
        ),
    ] = None,
    depth: Annotated[
        int | None,
        option(
            "--depth -d", "Tokens before the generated ones. Default: 0.", env=False, metavar="N"
        ),
    ] = None,
    batch: Annotated[
        str | None,
        option(
            "--batch -b",
            "Sequences at once, one or several, such as 4,16.",
            env=False,
            metavar="N,...",
        ),
    ] = None,
    threads: Annotated[
        str | None,
        option(
            "--threads -j",
            "One or several, such as 1,2,4. Default: as a Model has.",
            metavar="N,...",
        ),
    ] = None,
    repeat: Annotated[int, option("--repeat -r", "Repetitions.", env=False, metavar="N")] = 5,
    numerics: Annotated[Numerics, option("--numerics", NUMERICS_HELP)] = Numerics.exact,
    memory: Memory = Memory(),  # noqa: B008 - read by flags() only
    tune: Annotated[
        bool,
        option("--tune", "Try thread counts and remember the best one for this model.", env=False),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Measure a model: prompt, generation, batches, loading; of an encoder texts per second.

    ruvllm bench model.gguf --threads 1,2
    """
    from ruvllm import ArgumentError, Cancel, CancelledError
    from ruvllm.engine._bench import measure

    path = chosen_model(context, word, model)
    if repeat < 1:
        raise ArgumentError(f"--repeat: is {repeat}, want at least 1")
    counts = _numbers("--threads", threads, MOST_THREADS)
    together = tuple(_numbers("--batch", batch, MOST_SEQUENCES))
    options: dict[str, Any] = {
        **memory.arguments(),
        "numerics": numerics.value,
        "witness": False,
    }

    with terminal.open_model(path, options) as first:
        plan = _plan(first, pp=pp, tg=tg, depth=depth, repeat=repeat, batch=together)
        if not counts:
            counts = _candidates() if tune else [first.info.n_threads]
        if tune and not first.info.causal:
            raise usage("--tune", f"{first.path} is an encoder, want a model that generates")

    def opened(n: int) -> Model:
        from ruvllm import Model

        return Model(first.path, n_threads=n, **options)

    cancel = Cancel()
    with terminal.progress("measuring") as moved:
        try:
            report = terminal.in_thread(
                lambda give: measure(opened, counts, plan, cancel, give),
                cancel,
                moved or (lambda done: None),
            )
        except CancelledError:
            raise typer.Exit(terminal.INTERRUPTED) from None
    out = _summary(first, plan, report)
    out["tuned"] = _remember(first, report) if tune else None
    if json:
        terminal.print_json(out)
    else:
        _show(out)


# ---- what is asked for ----


def _numbers(flag: str, text: str | None, most: int) -> list[int]:
    """What a flag lists, each once."""
    from ruvllm import ArgumentError

    counts: list[int] = []
    for word in [] if text is None else text.split(","):
        try:
            n = int(word)
        except ValueError:
            raise usage(flag, f"is {text!r}, want numbers such as 1,2,4") from None
        if not 1 <= n <= most:
            raise ArgumentError(f"{flag}: is {n}, want 1 .. {most}")
        if n not in counts:
            counts.append(n)
    return counts


def _candidates() -> list[int]:
    """Powers of two up to the CPUs there are, and all of them."""
    from ruvllm.engine._tune import n_cpus

    most = min(n_cpus(), MOST_THREADS)
    return sorted({1 << i for i in range(most.bit_length())} | {most})


def _plan(model: Model, **asked: Any) -> Plan:
    from ruvllm.engine._bench import Plan, plan_for

    if model.info.causal:
        return plan_for(model, **asked)
    for name in ("pp", "tg", "depth", "batch"):
        if asked[name] not in (None, ()):
            raise usage(f"--{name}", f"{model.path} is an encoder, want a model that generates")
    return Plan(0, 0, 0, asked["repeat"])


# ---- what came out ----


def _summary(model: Model, plan: Plan, report: Report) -> dict[str, Any]:
    from ruvllm import _core
    from ruvllm.engine import _tune

    info = model.info
    return {
        "model": {
            "path": model.path,
            "name": info.name,
            "architecture": info.arch,
            "type": info.main_type,
            "n_params": info.n_params,
            "n_bytes": info.n_bytes,
            "n_ctx": info.n_ctx,
            "kv_type": info.kv_type,
            "numerics": info.numerics,
        },
        "machine": {
            "cpu": _tune.cpu_name(),
            "features": _core.cpu()["features"].split(),
            "cpus": _tune.n_cpus(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "version": _core.version,
        "repeat": plan.repeat,
        "load_ms": [round(ms, 3) for ms in report.load_ms],
        "results": [_row(r) for r in report.results],
    }


def _row(r: Result) -> dict[str, Any]:
    return {
        "test": r.test,
        "n_threads": r.n_threads,
        "unit": r.unit,
        "median": r.median,
        "min": min(r.values),
        "max": max(r.values),
        "values": r.values,
        "read_bandwidth": r.bandwidth,
        "bandwidth_share": r.share,
    }


def _remember(model: Model, report: Report) -> dict[str, Any]:
    from ruvllm.engine import _tune

    by: dict[int, dict[str, float]] = {}
    for r in report.results:
        if "x" not in r.test:  # one sequence
            by.setdefault(r.n_threads, {})["prefill" if r.test[:2] == "pp" else "decode"] = r.median
    measured = [_tune.Measured(n, **rates) for n, rates in by.items()]
    about = {"model": model.info.name or model.path, "date": time.strftime("%Y-%m-%d")}
    n, file = _tune.remember(model.path, measured, about)
    return {"n_threads": n, "path": str(file)}


def _show(out: dict[str, Any]) -> None:
    m, machine = out["model"], out["machine"]
    page = terminal.console()
    about = (
        f"{m['name'] or m['path']}: {m['architecture']}, "
        f"{terminal.count(m['n_params'])} parameters, {m['type']}, "
        f"{terminal.size(m['n_bytes'])}, keys and values {m['kv_type']}, {m['numerics']}"
    )
    ms = sorted(out["load_ms"])[len(out["load_ms"]) // 2]
    page.print(terminal.visible(about), style="bold")
    page.print(
        terminal.visible(
            f"{machine['cpu']} ({' '.join(machine['features'])}), {machine['cpus']} CPUs; "
            f"opened in {ms:.1f} ms; medians of {out['repeat']}"
        )
    )
    page.print()
    shown = terminal.table(">threads", "test", ">median", "unit", ">least", ">most", ">of reading")
    for r in out["results"]:
        share = r["bandwidth_share"]
        of = "" if share is None else f"{share:.0%} of {r['read_bandwidth'] / 1e9:.1f} GB/s"
        values = (f"{r[k]:.{_decimals(r['median'])}f}" for k in ("median", "min", "max"))
        median, least, most = values
        shown.add_row(str(r["n_threads"]), r["test"], median, r["unit"], least, most, of)
    terminal.show(shown)
    if out["tuned"]:
        n = out["tuned"]["n_threads"]
        terminal.note(
            f"{n} thread{'s' * (n > 1)} from now on for this model: {out['tuned']['path']}"
        )


def _decimals(value: float) -> int:
    return 0 if value >= 1000 else 1 if value >= 100 else 2
