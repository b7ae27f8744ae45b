"""The command ``ruvllm``: puts the commands of ``ruvllm._cli`` together and ends them properly.

The exit codes: 0; 1 for an error, which is one line on stderr (RUVLLM_DEBUG=1 adds the traceback);
2 for a command line that cannot be understood; 130 after Ctrl-C; 141 when the reader of the output
has gone."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ruvllm._cli import bench, chat, doctor, files, kv, run, terminal, text, witness
from ruvllm._cli.options import ClickError


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """What a command raises becomes a line on stderr and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has written ^C
        raise typer.Exit(terminal.INTERRUPTED) from None
    except (BrokenPipeError, SystemExit) as e:
        if isinstance(e, SystemExit) and not isinstance(e.__context__, BrokenPipeError):
            raise  # rich makes the other kind of a broken pipe
        terminal.silence(sys.stdout)
        raise typer.Exit(terminal.BROKEN_PIPE) from None
    except (typer.Exit, typer.Abort, ClickError):
        raise
    except Exception as e:
        terminal.debug(e)
        terminal.complain(terminal.describe(e))
        raise typer.Exit(1) from None


class _Commands(TyperGroup):
    """The group of all commands: every way a command may end comes through here."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the words before the command; --help and --version print here."""
        with _ending():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _ending():
            return super().invoke(ctx)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but a usage error is one line like every other."""
        try:
            code = super().main(
                args, prog_name or "ruvllm", complete_var, False, windows_expand_args, **extra
            )
        except typer.Abort:
            code = terminal.INTERRUPTED
        except ClickError as e:
            code = _complain_of_usage(e)
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code


def _complain_of_usage(error: Any) -> int:
    message = " ".join(error.format_message().split())
    if not message:  # a group without a command: click has shown the help
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ruvllm"
    terminal.complain(f"{message} ({path} --help)")
    return 2


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    terminal.complain(f"warning: {message}")


class _Warnings(logging.Handler):
    """What the package logs, as lines on stderr like those of its warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


app = typer.Typer(
    name="ruvllm",
    cls=_Commands,
    epilog="Flags have environment variables: --top-k is RUVLLM_TOP_K.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ruvllm import __version__

        print(f"ruvllm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """A local LLM runtime that remembers and learns."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


app.command(cls=run.RunCommand)(run.run)
for _command in (
    chat.chat,
    text.embed,
    text.tokenize,
    files.inspect,
    files.convert,
    files.quantize,
    bench.bench,
    kv.kv_check,
    doctor.doctor,
):
    app.command()(_command)
app.add_typer(witness.app, name="witness")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    argv: the words after ``ruvllm``; None: those of this process.  Returns the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ?
    log, lines = logging.getLogger("ruvllm"), _Warnings(logging.WARNING)
    log.addHandler(lines)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = app(args=None if argv is None else list(argv), standalone_mode=False)
    finally:
        log.removeHandler(lines)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        terminal.silence(sys.stdout)
        return terminal.BROKEN_PIPE
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
