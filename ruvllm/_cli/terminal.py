"""What commands share about the outside: streams, errors, Ctrl-C, progress, tables, JSON.

The idea to hold: stdout carries the answer and nothing else; whatever is for the person at the
terminal (errors, timings, progress) goes to stderr.  Text from models and files is not trusted: on
a terminal its control characters are shown, not sent."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ruvllm import Cancel, Chunk, Generation, GenerationResult, Model

_T = TypeVar("_T")
LONG_LOAD = 256 << 20  # bytes from which opening a model shows a progress bar
INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports any program whose reader has gone

# ---- errors ----


def complain(message: str) -> None:
    """One line on stderr."""
    line = " ".join(message.split())
    with contextlib.suppress(OSError, ValueError):
        print(f"ruvllm: {visible(line)}", file=sys.stderr, flush=True)


def describe(error: BaseException) -> str:
    """An error in one line."""
    from ruvllm._errors import InternalError, RuvllmError

    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, RuvllmError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, RuvllmError | OSError) and not isinstance(error, InternalError):
        return text
    if isinstance(error, MemoryError):
        return "out of memory"
    name = type(error).__name__
    return f"internal error: {name}: {text} (RUVLLM_DEBUG=1 shows where; please report it)"


def debug(error: BaseException) -> None:
    """The traceback, when RUVLLM_DEBUG asks for it."""
    if os.environ.get("RUVLLM_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)


def silence(stream: Any) -> None:
    """Send what is left for a stream whose reader has gone to nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


# ---- text ----

_CONTROL = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def visible(text: str) -> str:
    """Text whose control characters cannot act on a terminal."""
    return text.translate(_CONTROL)


def short(text: str, n: int) -> str:
    """One line of at most n characters, control characters spelt out."""
    line = visible(text[: 2 * n].replace("\n", "\\n").replace("\t", "\\t"))
    return line if len(line) <= n else line[: n - 1] + "…"


def watched() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


def write(text: str) -> None:
    """Text of a model to stdout, at once."""
    sys.stdout.write(visible(text) if watched() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A dim line on stderr."""
    console(stderr=True).print(visible(text), style="dim", markup=False, highlight=False)


def decoded(data: bytes, what: str) -> str:
    """UTF-8 from outside; an ArgumentError that says where it is not."""
    from ruvllm import ArgumentError

    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise ArgumentError(
            f"{what}: byte {e.start} is 0x{data[e.start]:02x}, want UTF-8 text"
        ) from None


def argument(text: str, what: str) -> str:
    """A word of the command line, ``-`` standing for all of stdin without its last line end."""
    if text != "-":
        return decoded(os.fsencode(text), what)
    data = sys.stdin.buffer.read()
    return decoded(data.removesuffix(b"\n").removesuffix(b"\r"), "stdin")


def arguments(words: list[str], what: str) -> list[str]:
    """Words of the command line, a lone ``-`` standing for the lines of stdin."""
    if words != ["-"]:
        return [decoded(os.fsencode(w), f"{what} {i}") for i, w in enumerate(words, 1)]
    lines = sys.stdin.buffer.read().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [decoded(x.removesuffix(b"\r"), f"stdin: line {i}") for i, x in enumerate(lines, 1)]


def count(n: int) -> str:
    """A number for people: 1,234 or 1.23M or 7.24B."""
    for factor, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if n >= factor:
            return f"{n / factor:.3g}{letter}"
    return f"{n:,}"


def size(n: int) -> str:
    """Bytes for people: 1.5 GiB."""
    value, units = float(n), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{n} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


# ---- JSON and tables ----


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def print_json(value: Any) -> None:
    """One JSON value; indented on a terminal, in one line elsewhere."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    indent = 2 if watched() else None
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=not utf8, allow_nan=False)
    sys.stdout.write(text + "\n")


def console(stderr: bool = False) -> Console:
    """A rich console; where there is no terminal, lines are as long as they need to be."""
    from rich.console import Console

    out = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    return (
        out
        if out.is_terminal
        else Console(
            stderr=stderr, highlight=False, emoji=False, markup=False, width=1 << 16, no_color=True
        )
    )


def width() -> int:
    """Characters of a line of stdout; more than enough where nobody looks."""
    return console().width


def table(*columns: str, fold: bool = True) -> Table:
    """An empty table; a column whose name starts with ">" is aligned to the right.

    fold: long cells go on in the next line, instead of being cut."""
    from rich.table import Table

    out = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        right = name.startswith(">")
        out.add_column(
            name.removeprefix(">"),
            justify="right" if right else "left",
            overflow="fold" if fold else "ellipsis",
            no_wrap=right or not fold,
        )
    return out


def show(what: Table, stderr: bool = False) -> None:
    """Print a table; where there is no terminal, without spaces at the ends of its lines."""
    out = console(stderr)
    if out.is_terminal:
        out.print(what)
        return
    with out.capture() as text:
        out.print(what)
    lines = [line.rstrip() for line in text.get().splitlines()]
    print("\n".join(lines), file=sys.stderr if stderr else sys.stdout)


# ---- progress ----


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[float], None] | None]:
    """A bar on stderr and what moves it (0 .. 1); None where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(visible(text), total=1.0)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(visible(text)):
        yield


def open_model(path: Path | None, options: Mapping[str, Any]) -> Model:
    """A Model; with a progress bar when it is large and someone watches."""
    from ruvllm import Model

    name = None if path is None else os.fspath(path)
    try:
        large = name is not None and os.path.getsize(name) > LONG_LOAD
    except OSError:
        large = False  # Model says what is wrong
    if not (large and path is not None and sys.stderr.isatty()):
        return Model(name, **options)
    with progress(f"loading {path.name}") as moved:
        return Model(name, prefault=True, progress=moved, **options)


def settle() -> None:
    """Wait for the witness log, telling whoever watches why: a large file is digested once."""
    from ruvllm import RuvllmError
    from ruvllm.memory.witness import default_log

    if not sys.stderr.isatty():
        return  # the end of the process waits for it
    with contextlib.suppress(RuvllmError, OSError):
        log = default_log()
        until = time.monotonic() + 0.3  # nothing is said about what is over at once
        while log.stats()["pending"] and time.monotonic() < until:
            time.sleep(0.005)
        if log.stats()["pending"]:
            with waiting("witness log: computing the digest of the model (once per file)"):
                log.flush()


# ---- Ctrl-C ----


@contextlib.contextmanager
def cancelled_by_ctrl_c(cancel: Cancel) -> Iterator[None]:
    """Ctrl-C sets ``cancel`` instead of raising; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if cancel.get():
            raise KeyboardInterrupt
        cancel.set(True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def in_thread(
    work: Callable[[Callable[[Any], None]], _T], cancel: Cancel, seen: Callable[[Any], None]
) -> _T:
    """Run ``work`` in a thread, so that this one hears Ctrl-C while the core computes.

    work: gets a function to give things out through; ``seen`` is called with each, in this thread.
    Whatever ends this thread's part sets ``cancel`` and waits for the other."""
    box: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put(("end", work(lambda thing: box.put(("thing", thing)))))
        except BaseException as e:
            box.put(("error", e))

    thread = threading.Thread(target=run, name="ruvllm-work", daemon=True)
    with cancelled_by_ctrl_c(cancel):
        thread.start()
        try:
            while True:
                kind, value = box.get()
                if kind == "error":
                    raise value
                if kind == "end":
                    result: _T = value
                    return result
                seen(value)
        except Exception:  # the reader of our output has gone: stop, so that the log says so
            cancel.set(True)
            thread.join()
            raise


def generate(
    start: Callable[[], Generation], cancel: Cancel, show: Callable[[str], None]
) -> GenerationResult:
    """Run a generation to its end or to Ctrl-C, showing its text as it comes."""

    def work(give: Callable[[Chunk], None]) -> GenerationResult:
        with start() as generation:
            for chunk in generation:
                give(chunk)
            return generation.result

    def seen(chunk: Chunk) -> None:
        if chunk.text:
            show(chunk.text)

    return in_thread(work, cancel, seen)
