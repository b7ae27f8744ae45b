"""``ruvllm chat``: a conversation at the terminal, or line by line through a pipe.

Every turn gives the model the whole conversation.  A turn that fails leaves the conversation as it
was before; a reply that Ctrl-C cut short stays in it as far as it went."""

from __future__ import annotations

import contextlib
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import (
    Constrain,
    Engine,
    Memory,
    ModelOption,
    Sampling,
    VerboseFlag,
    chosen_model,
    flags,
    option,
)
from ruvllm._cli.run import show_timings

if TYPE_CHECKING:
    from ruvllm import GenerationResult, Model

HELP = """\
/system TEXT   set the system message (without TEXT: remove it) and start over
/reset         forget the conversation
/exit          leave (so does Ctrl-D)
/help          this
A backslash at the end of a line continues the message on the next one.
Ctrl-C stops the reply; at an empty prompt it leaves."""


@flags
def chat(
    *,
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]", help="A GGUF file. Default: the bundled model.", show_default=False
        ),
    ] = None,
    model: ModelOption = None,
    system: Annotated[str | None, option("--system -s", "System message.", metavar="TEXT")] = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - read by flags() only
    constrain: Constrain = Constrain(),  # noqa: B008
    engine: Engine = Engine(),  # noqa: B008
    memory: Memory = Memory(),  # noqa: B008
    verbose: VerboseFlag = False,
) -> None:
    """Talk with a model that has a chat template; /help tells the commands.

    Reads lines from a pipe as well: one message per line, one reply per message.
    """
    options = {**sampling.arguments(), **constrain.arguments()}
    options["session_id"] = engine.session or str(uuid.uuid4())
    how = engine.arguments() | memory.arguments()
    with terminal.open_model(chosen_model(context, path, model), how) as opened:
        _check(opened)
        talk = _Conversation(opened, options, system, verbose)
        ok = talk.run()
    if engine.witness:
        terminal.settle()
    if not ok:
        raise typer.Exit(1)


def _check(model: Model) -> None:
    """Say now, not at the first message, that this model cannot chat."""
    from ruvllm import UnsupportedError

    if not model.info.causal:
        raise UnsupportedError(
            f"{model.path}: {model.info.arch} is an encoder, want `ruvllm embed`"
        )
    if model.chat_template is None:
        raise UnsupportedError(
            f"{model.path}: has no chat template, want --chat-template FILE or `ruvllm run`"
        )
    model.render_chat([{"role": "user", "content": "?"}])


class _Leave(Exception):
    """The user wants out."""


class _Conversation:
    def __init__(
        self, model: Model, options: dict[str, Any], system: str | None, verbose: bool
    ) -> None:
        self._model = model
        self._options = options
        self._verbose = verbose
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._interactive = sys.stdin.isatty()
        self._failed = False
        self._reset()

    def run(self) -> bool:
        """Talk until the input ends.  Returns whether all went well (always, at a terminal)."""
        if self._interactive:
            name = self._model.info.name or self._model.path
            terminal.note(
                f"{name}, context of {self._model.n_ctx} tokens; /help tells the commands"
            )
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() its line editing
        from ruvllm import ArgumentError

        with contextlib.suppress(_Leave, EOFError):
            while True:
                try:
                    message = self._read()
                except (ArgumentError, UnicodeDecodeError) as e:  # a line that is not UTF-8
                    self._fail(f"message: {e}")
                    continue
                if message.startswith("/"):
                    self._command(message)
                elif message.strip():
                    self._turn(message)
        return self._interactive or not self._failed

    # ---- input ----

    def _read(self) -> str:
        lines: list[str] = []
        while True:
            try:
                line = self._line("… " if lines else "> ")
            except EOFError:
                if not lines:
                    raise
                line = ""
            except KeyboardInterrupt:
                print(file=sys.stderr)
                if not lines and not _typed():
                    raise typer.Exit(terminal.INTERRUPTED) from None
                lines = []
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _line(self, prompt: str) -> str:
        if self._interactive and sys.stdout.isatty():
            return input(prompt)
        if self._interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return terminal.decoded(line.removesuffix(b"\n").removesuffix(b"\r"), "stdin")

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit"):
            raise _Leave
        if name == "/reset":
            self._reset()
        elif name == "/system":
            self._system = rest.strip() or None
            self._reset()
        elif name == "/help":
            terminal.note(HELP)
        else:
            self._fail(f"{name}: no such command, want /system, /reset, /exit or /help")

    def _reset(self) -> None:
        self._messages = []
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})

    # ---- a turn ----

    def _turn(self, text: str) -> None:
        from ruvllm import Cancel, FullError, RuvllmError

        messages = [*self._messages, {"role": "user", "content": text}]
        cancel = Cancel()
        options = {**self._options, "cancel": cancel}
        try:
            result = terminal.generate(
                lambda: self._model.chat(messages, stream=True, **options), cancel, terminal.write
            )
        except FullError as e:
            self._fail(f"{e}; the conversation no longer fits, /reset starts over")
            return
        except RuvllmError as e:
            self._fail(terminal.describe(e))
            return
        terminal.write("\n")
        self._messages = [*messages, {"role": "assistant", "content": result.text}]
        self._after(result)

    def _after(self, result: GenerationResult) -> None:
        if result.finish_reason == "length":
            used = len(result.prompt_tokens) + len(result.tokens)
            full = used >= self._model.n_ctx
            why = f"the context of {self._model.n_ctx} tokens is full, /reset starts over"
            terminal.note(f"[cut: {why}]" if full else f"[cut after {len(result.tokens)} tokens]")
        elif result.finish_reason == "cancelled":
            terminal.note("[stopped]")
        if self._verbose:
            show_timings(result)

    def _fail(self, message: str) -> None:
        self._failed = True
        terminal.complain(message)


def _typed() -> bool:
    """Whether something stood on the line that Ctrl-C interrupted."""
    try:
        import readline
    except ImportError:
        return False
    return bool(readline.get_line_buffer())
