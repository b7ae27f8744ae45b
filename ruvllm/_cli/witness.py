"""``ruvllm witness``: what was asked and answered, and whether it comes out the same again."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import JsonFlag, flags, option, usage

if TYPE_CHECKING:
    from ruvllm import Model, WitnessEntry

app = typer.Typer(
    help="The log of what was asked and answered.", no_args_is_help=True, add_completion=False
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The entry's id, or how it begins.")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: Options of a model that an entry keeps and its replies depend on.
_CHANGE_REPLIES = ("n_ctx", "numerics", "kv_type", "kv_store", "kv_rotate", "kv_tail", "kv_batch")


@app.command("list")
@flags
def list_entries(
    *,
    limit: Annotated[int, option("--limit -n", "Most entries; 0: all.", env=False)] = 20,
    since: Annotated[
        str | None,
        option(
            "--since",
            "Not older than this: 90s 15m 1h 2d 1w or 2026-01-31[T12:00].",
            env=False,
            metavar="TIME",
        ),
    ] = None,
    session: Annotated[
        str | None, option("--session", "Of this session.", env=False, metavar="ID")
    ] = None,
    model: Annotated[
        str | None, option("--model", "Of the model of this name.", env=False, metavar="NAME")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Entries, newest first."""
    from ruvllm.memory.witness import default_log

    start = None if since is None else _since(since)
    if limit < 0:
        raise usage("--limit", f"is {limit}, want at least 0")
    entries = default_log().list(limit or None, since=start, session_id=session, model=model)
    if json:
        terminal.print_json([entry.to_dict() for entry in entries])
        return
    if not entries:
        terminal.note("no entries")
        return
    _show_list(entries)


def _show_list(entries: list[WitnessEntry]) -> None:
    width = terminal.width()
    narrow = width < 130  # the beginning of an id is enough to name it, and the year goes
    columns = ["id", "time", ">tokens", ">ms", "end", "model", "prompt → reply"]
    if narrow:
        columns.remove("model")
    shown = terminal.table(*columns, fold=False)
    half = max(20, min(width, 220) - (64 if narrow else 108)) // 2
    for e in entries:
        prompt = terminal.short(e.prompt_text or "", half)
        reply = terminal.short(e.output_text or "", half)
        cells = [
            e.id or "",
            _time(e),
            _number(e.n_output),
            _number(e.total_ms),
            e.finish_reason or "",
        ]
        if narrow:
            cells[:2] = [cells[0][:18], cells[1][5:16]]
        else:
            cells.append(terminal.short(e.model_name or "", 24))
        shown.add_row(*cells, f"{prompt} → {reply}")
    terminal.show(shown)


def _since(text: str) -> datetime:
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text):
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: float(match[1])})
        except OverflowError:
            return datetime.fromtimestamp(0, UTC)
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise usage("--since", f"is {text!r}, want 90s, 15m, 1h, 2d, 1w or 2026-01-31") from None


def _time(entry: WitnessEntry) -> str:
    if entry.ts_ms is None:
        return ""
    try:
        when = datetime.fromtimestamp(entry.ts_ms / 1000).astimezone()
    except (OverflowError, OSError, ValueError):
        return str(entry.ts_ms)
    return when.isoformat(" ", "seconds")[:19]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


@app.command()
@flags
def show(id: Id, json: JsonFlag = False) -> None:
    """One entry: prompt, reply, timings and parameters."""
    from ruvllm.memory.witness import default_log

    entry = default_log().get(id)
    if json:
        terminal.print_json(entry.to_dict())
        return
    out = terminal.console()
    for title, text in (("prompt", entry.prompt_text), ("reply", entry.output_text)):
        out.print(title, style="bold")
        out.print(_indented(text))
    facts = terminal.table("what", "value")
    facts.show_header = False
    for name, value in _facts(entry):
        facts.add_row(name, terminal.visible(value))
    out.print()
    terminal.show(facts)


def _indented(text: str | None) -> str:
    if text is None:
        return "  (not known)"
    return "\n".join("  " + line for line in terminal.visible(text).split("\n"))


def _facts(e: WitnessEntry) -> list[tuple[str, str]]:
    times = (
        ("prefill", e.prefill_ms), ("generation", e.generation_ms), ("total", e.total_ms),
        ("queue", e.queue_ms), ("routing", e.routing_ms), ("retrieval", e.retrieval_ms),
        ("embedding", e.embedding_ms),
    )  # fmt: skip
    out = [
        ("id", e.id),
        ("time", _time(e)),
        ("kind", e.kind),
        ("model", e.model_name),
        ("file", e.model_path),
        ("digest", e.model_digest),
        ("session", e.session_id),
        ("user", e.user_id),
        ("tags", ", ".join(e.tags) if e.tags else None),
        ("end", e.finish_reason),
        ("tokens", None if e.n_output is None else f"{e.n_prompt} prompt, {e.n_output} reply"),
        ("times", ", ".join(f"{name} {ms:.1f} ms" for name, ms in times if ms is not None)),
        ("seed", None if e.seed is None else str(e.seed)),
        ("parameters", _pairs(e.params)),
        ("engine", _pairs(e.engine)),
        ("error", _pairs(e.error)),
    ]
    return [(name, value) for name, value in out if value]


def _pairs(values: Any) -> str | None:
    if not values:
        return None
    shown = {k: v for k, v in dict(values).items() if k != "seed" and v not in (None, [], {}, "")}
    return ", ".join(
        f"{k} {str(v).lower() if isinstance(v, bool) else v}" for k, v in shown.items()
    )


@app.command()
@flags
def replay(
    *,
    id: Id,
    model: Annotated[
        Path | None,
        option(
            "--model -m", "Run it on this file. Default: the entry's.", env=False, metavar="PATH"
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run the request again: exit code 0 when the tokens are the same, 1 when not."""
    from ruvllm import UnsupportedError
    from ruvllm.engine._record import replay as run_again
    from ruvllm.memory.witness import default_log

    entry = default_log().get(id)
    if model is None and entry.model_path is None:
        raise UnsupportedError(f"witness entry {entry.id}: names no model file, want --model PATH")
    path = Path(entry.model_path) if model is None and entry.model_path else model
    kept = entry.engine or {}
    options = {name: kept[name] for name in _CHANGE_REPLIES if kept.get(name) is not None}
    with terminal.open_model(path, {**options, "witness": False}) as opened:
        found = run_again(entry, opened)
        if json:
            terminal.print_json(
                {
                    "id": entry.id,
                    "same": found.same,
                    "first_difference": found.first_difference,
                    "same_model": found.same_model,
                    "same_numerics": found.same_numerics,
                    "expected": list(found.expected),
                    "found": list(found.found),
                }
            )
        else:
            _say(entry, found, opened)
    if not found.same:
        raise typer.Exit(1)


def _say(entry: WitnessEntry, found: Any, model: Model) -> None:
    if not found.same_model:
        terminal.note(f"{model.path}: is not the file the entry was made with")
    if not found.same_numerics:
        made = (entry.engine or {}).get("numerics", "exact")
        terminal.note(f"the entry was made with {made} arithmetic, not {model.info.numerics}")
    i = found.first_difference
    if i is None:
        print(f"same: all {len(found.expected)} tokens")
        return

    def at(ids: tuple[int, ...]) -> str:
        if i >= len(ids):
            return "the end"
        piece = b"" if model.tokenizer is None else model.tokenizer.piece(ids[i], True)
        return f"{ids[i]} {terminal.visible(repr(piece.decode('utf-8', 'replace')))}"

    print(f"different: token {i} was {at(found.expected)}, is now {at(found.found)}")
