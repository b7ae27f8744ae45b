"""``ruvllm embed`` and ``ruvllm tokenize``: text to numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import JsonFlag, ModelOption, ThreadsOption, flags, option, usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ruvllm import Cancel, Model, Tokenizer


@flags
def embed(
    *,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...",
            help="Texts; a lone - reads one per line of stdin.",
            show_default=False,
        ),
    ],
    model: Annotated[
        Path | None,
        option(
            "--model -m",
            "A GGUF file. Default: all-MiniLM-L6-v2 (extra: minilm).",
            env="RUVLLM_EMBED_MODEL",
            metavar="PATH",
        ),
    ] = None,
    npy: Annotated[
        Path | None,
        option(
            "--npy", "Write a float32 NumPy file of shape (texts, dim).", env=False, metavar="FILE"
        ),
    ] = None,
    similarity: Annotated[
        bool, option("--similarity", "Print the cosines of all pairs.", env=False)
    ] = False,
    truncate: Annotated[
        bool, option("--truncate", "Cut texts that are longer than the context.")
    ] = False,
    threads: ThreadsOption = None,
    json: JsonFlag = False,
) -> None:
    """Turn texts into vectors of unit length: one JSON array per line.

    ruvllm embed --similarity "a cat" "a kitten" "a tax form"
    """
    from ruvllm import Cancel, CancelledError

    given = terminal.arguments(texts, "text")
    path = _minilm() if model is None else model
    cancel = Cancel()
    with terminal.open_model(path, {"n_threads": threads, "witness": False}) as opened:
        try:
            rows = _embed(opened, given, truncate, cancel)
        except CancelledError:
            raise typer.Exit(terminal.INTERRUPTED) from None
        name = opened.info.name or path.name
    if npy is not None:
        _write_npy(npy, rows)
    if json:
        out = {"model": name, "dim": rows.shape[1], "embeddings": [_numbers(row) for row in rows]}
        if similarity:
            out["similarity"] = [_numbers(row) for row in rows @ rows.T]
        terminal.print_json(out)
    elif similarity:
        _show_similarity(given, rows @ rows.T)
    elif npy is None:
        for row in rows:
            terminal.write(f"[{', '.join(map(repr, _numbers(row)))}]\n")


def _minilm() -> Path:
    from ruvllm.engine.minilm import minilm_path

    with terminal.waiting("all-MiniLM-L6-v2 is made ready (once)"):
        return minilm_path()


def _embed(model: Model, texts: list[str], truncate: bool, cancel: Cancel) -> NDArray[np.float32]:
    import numpy as np

    if not texts:
        return np.zeros((0, model.info.n_embd), np.float32)
    return terminal.in_thread(
        lambda give: model.embed(texts, truncate=truncate, cancel=cancel), cancel, lambda _: None
    )


def _numbers(row: NDArray[np.float32]) -> list[float]:
    """The shortest decimals that are these float32 values."""
    return [float(text) for text in row.astype(str)]


def _write_npy(path: Path, rows: NDArray[np.float32]) -> None:
    import numpy as np

    with open(path, "wb") as file:  # np.save with a name would add a suffix
        np.save(file, rows, allow_pickle=False)
    terminal.note(f"{path}: float32 {rows.shape}")


def _show_similarity(texts: list[str], cosines: NDArray[np.float32]) -> None:
    shown = terminal.table(">#", "text", *(f">{i + 1}" for i in range(len(texts))))
    for i, text in enumerate(texts):
        cells = (f"{c:.3f}" for c in cosines[i])
        shown.add_row(str(i + 1), terminal.short(text, 40), *cells)
    terminal.show(shown)


# ---- tokenize ----


@flags
def tokenize(
    *,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT|-",
            help="The text; - reads all of stdin. With --decode: ids.",
            show_default=False,
        ),
    ],
    model: ModelOption = None,
    decode: Annotated[bool, option("--decode -d", "Turn ids back into text.", env=False)] = False,
    bos: Annotated[
        bool | None, option("--bos/--no-bos", "Begin token. Default: as the file asks.", env=False)
    ] = None,
    special: Annotated[
        bool, option("--special", "Read (or show) control tokens as they are spelt.", env=False)
    ] = False,
    ids: Annotated[bool, option("--ids", "Print the ids only, in one line.", env=False)] = False,
    json: JsonFlag = False,
) -> None:
    """Show the tokens of a text: ids and pieces. Weights are not needed.

    ruvllm tokenize "reverse apple island"
    """
    from ruvllm import Tokenizer
    from ruvllm.engine.model import bundled_model

    tokenizer = Tokenizer(bundled_model() if model is None else os.fspath(model))
    if decode:
        if bos is not None or ids:
            raise usage("--decode", "found --bos, --no-bos or --ids with it, want none of them")
        numbers = _ids(words)
        text = tokenizer.detokenize(numbers, special)
        if json:
            terminal.print_json({"ids": numbers, "text": text})
        else:
            terminal.write(text + "\n")
        return
    if len(words) != 1:
        raise usage("text", f"found {len(words)} words, want one text; put it in quotes")
    found = tokenizer.tokenize(terminal.argument(words[0], "text"), bos, special)
    if json:
        terminal.print_json({"n": len(found), "ids": found, "tokens": _tokens(tokenizer, found)})
    elif ids:
        terminal.write(" ".join(map(str, found)) + "\n")
    else:
        _show_tokens(tokenizer, found)


def _ids(words: list[str]) -> list[int]:
    if words == ["-"]:
        words = [terminal.argument("-", "ids")]
    text = " ".join(words).strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise usage("ids", f"found {terminal.short(text, 60)!r}, want whole numbers") from None


def _tokens(tokenizer: Tokenizer, ids: list[int]) -> list[dict[str, Any]]:
    out = []
    for token in ids:
        piece = tokenizer.piece(token, True)
        out.append({"id": token, "text": piece.decode("utf-8", "replace"), "bytes": piece.hex()})
    return out


def _show_tokens(tokenizer: Tokenizer, ids: list[int]) -> None:
    shown = terminal.table(">#", ">id", "piece")
    for i, token in enumerate(ids):
        piece = tokenizer.piece(token, True)
        try:
            text = repr(piece.decode())
        except UnicodeDecodeError:
            text = repr(piece)
        shown.add_row(str(i), str(token), terminal.visible(text))
    terminal.show(shown)
    terminal.note(f"{len(ids)} tokens")
