"""``ruvllm kv-check``: what a store of keys and values in 8 or 4 bits costs a model."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import (
    JsonFlag,
    ModelOption,
    ModelWord,
    ThreadsOption,
    chosen_model,
    flags,
    option,
    read_text,
)

if TYPE_CHECKING:
    from ruvllm import KVCheck


class Store(enum.StrEnum):
    """How old keys and values are kept."""

    q8_0 = "q8_0"
    k8v4 = "k8v4"
    q4_0 = "q4_0"


@flags
def kv_check(
    *,
    context: typer.Context,
    word: ModelWord = None,
    model: ModelOption = None,
    store: Annotated[
        Store, option("--store -s", "8 bits, keys in 8 and values in 4, or 4 bits.", env=False)
    ] = Store.q4_0,
    text: Annotated[
        Path | None,
        option(
            "--text",
            "A text of the kind the model knows. Default: one that it writes itself.",
            env=False,
            metavar="FILE",
        ),
    ] = None,
    rotate: Annotated[
        bool, option("--rotate/--no-rotate", "Rotate keys before they are stored.", env=False)
    ] = True,
    seed: Annotated[int, option("--seed", "Of what is drawn, 0 .. 2^64 - 1.", metavar="N")] = 0,
    threads: ThreadsOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure what old keys and values in 8 or 4 bits cost a model, and remember the verdict.

    ruvllm kv-check model.gguf --store q4_0 --text book.txt
    """
    from ruvllm import check_kv

    path = chosen_model(context, word, model)
    options: dict[str, Any] = {
        "kv_store": store.value,
        "kv_rotate": rotate,
        "text": None if text is None else read_text(text, "--text"),
        "seed": seed,
        "n_threads": threads,
    }
    with terminal.waiting(f"reading with {store.value}"):
        found = check_kv(path, **options)
    if json:
        terminal.print_json(dataclasses.asdict(found))
    else:
        _show(found)
    if not found.passed:
        raise typer.Exit(1)


def _show(found: KVCheck) -> None:
    page = terminal.console()
    keys = "keys rotated" if found.kv_rotate else "keys as they are"
    about = f"{found.model or found.digest[:19]}: {found.kv_store}, {keys}, {found.text} text"
    page.print(terminal.visible(about), style="bold")
    page.print(f"{found.n_positions} positions read from the store, {found.n_scored} tokens scored")
    page.print()
    shown = terminal.table("", ">f16", f">{found.kv_store}", ">change")
    shown.add_row(
        "bytes of a position", f"{found.bytes_f16}", f"{found.bytes_store}", f"{found.ratio:.3f} x"
    )
    shown.add_row(
        "perplexity",
        f"{found.perplexity_f16:.4g}",
        f"{found.perplexity_store:.4g}",
        f"{found.perplexity_change:+.2f} %",
    )
    shown.add_row("mean KL, nats", "", f"{found.kl_mean:.2g}", "")
    shown.add_row("largest KL, nats", "", f"{found.kl_max:.2g}", "")
    shown.add_row("same first token", "", f"{found.same_first:.2%}", "")
    terminal.show(shown)
    word = "passed" if found.passed else "failed"
    kept = f"; remembered in {found.path}" if found.path else ""
    terminal.note(f"{word}: want at most {found.limit} %{kept}")
