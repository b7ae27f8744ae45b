"""``ruvllm run``: one prompt, one reply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ruvllm._cli import terminal
from ruvllm._cli.options import (
    Constrain,
    Engine,
    JsonFlag,
    Memory,
    ModelOption,
    Sampling,
    VerboseFlag,
    chosen_model,
    flags,
    option,
    usage,
)

if TYPE_CHECKING:
    from ruvllm import Generation, GenerationResult, Model

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[MODEL] PROMPT",
        help="A GGUF file, then the prompt; - reads the prompt from stdin.",
        show_default=False,
    ),
]


class RunCommand(TyperCommand):
    """Says in the help what the words are."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage after the command's name."""
        return ["[OPTIONS] [MODEL] PROMPT"]


@flags
def run(
    *,
    context: typer.Context,
    words: Words,
    model: ModelOption = None,
    raw: Annotated[
        bool, option("--raw", "Continue the prompt as it is, without the chat template.")
    ] = False,
    special: Annotated[
        bool,
        option("--special", "Text of a raw prompt may spell control tokens.", env=False),
    ] = False,
    system: Annotated[
        str | None, option("--system -s", "System message of the chat template.", metavar="TEXT")
    ] = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - read by flags() only
    constrain: Constrain = Constrain(),  # noqa: B008
    engine: Engine = Engine(),  # noqa: B008
    memory: Memory = Memory(),  # noqa: B008
    logprobs: Annotated[
        int | None,
        option("--logprobs", "Report this many likeliest tokens per position.", metavar="N"),
    ] = None,
    json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Answer a prompt; the reply is streamed.

    Uses the model's chat template if it has one. Without MODEL the bundled model answers:

        ruvllm run "reverse apple island"
    """
    from ruvllm import Cancel

    path, prompt = _model_and_prompt(context, words, model)
    options = {**sampling.arguments(), **constrain.arguments(), "logprobs": logprobs}
    text = terminal.argument(prompt, "prompt")
    cancel = Cancel()
    with terminal.open_model(path, engine.arguments() | memory.arguments()) as opened:
        options |= {"cancel": cancel, "session_id": engine.session}
        start = _request(
            model=opened, text=text, raw=raw, special=special, system=system, options=options
        )
        last = _Last()
        result = terminal.generate(start, cancel, _ignore if json else last)
    if json:
        terminal.print_json(result.to_dict())
    elif not last.text.endswith("\n"):
        terminal.write("\n")
    if logprobs is not None and not json:
        _show_logprobs(opened, result)
    if verbose:
        show_timings(result)
    if engine.witness:
        terminal.settle()
    if result.finish_reason == "cancelled":
        raise typer.Exit(terminal.INTERRUPTED)


class _Last:
    """Writes what it is given and keeps the last piece."""

    text = ""

    def __call__(self, text: str) -> None:
        terminal.write(text)
        self.text = text


def _ignore(text: str) -> None:
    pass


def _model_and_prompt(
    context: typer.Context, words: list[str], model: Path | None
) -> tuple[Path | None, str]:
    if len(words) > 2:
        raise usage(
            "prompt", f"found {len(words)} words, want [MODEL] PROMPT; put the prompt in quotes"
        )
    if len(words) == 2:
        return chosen_model(context, words[0], model), words[1]
    if words[0].lower().endswith(".gguf"):
        raise usage("prompt", f"found only the model {words[0]}, want MODEL PROMPT (- reads stdin)")
    return model, words[0]


def _request(
    *,
    model: Model,
    text: str,
    raw: bool,
    special: bool,
    system: str | None,
    options: dict[str, Any],
) -> Callable[[], Generation]:
    if raw or model.chat_template is None:
        if system is not None:
            why = "--raw is given" if raw else f"{model.path} has no chat template"
            raise usage("--system", f"{why}, want a chat template to put it in")
        return lambda: model.generate(text, stream=True, special=special, **options)
    if special:
        raise usage("--special", "found a chat template, want --raw with it")
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return lambda: model.chat(messages, stream=True, **options)


def show_timings(result: GenerationResult) -> None:
    """Where the time went, in one line on stderr."""
    t = result.timings
    parts = [
        f"prompt {t.n_prompt} tokens in {t.prefill_ms:.1f} ms",
        f"first token after {t.first_token_ms:.1f} ms",
        f"reply {t.n_generated} tokens in {t.generation_ms:.1f} ms"
        f" ({t.tokens_per_second:.0f} per second)",
        result.finish_reason,
        f"seed {result.seed}",
    ]
    if result.witness_id:
        parts.append(f"witness {result.witness_id}")
    terminal.note(" · ".join(parts))


def _show_logprobs(model: Model, result: GenerationResult) -> None:
    def piece(token: int) -> str:
        if model.tokenizer is None:
            return str(token)
        return repr(model.tokenizer.piece(token, True).decode("utf-8", "replace"))

    shown = terminal.table(">#", "token", ">logprob", "likeliest")
    for i, at in enumerate(result.logprobs):
        top = "  ".join(f"{piece(token)} {logprob:.3f}" for token, logprob in at.top)
        shown.add_row(str(i), piece(at.id), f"{at.logprob:.4f}", top)
    terminal.show(shown, stderr=True)
