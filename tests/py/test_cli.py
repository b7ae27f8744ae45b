"""``ruvllm run`` and what all commands share: usage, errors, exit codes, environment."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_run import MODEL, PROMPT, REPLY, entries, here

import ruvllm

ROOT = Path(__file__).parents[1]
RAW = ROOT / "golden" / "models" / "llama-d64-f32.gguf"  # has no chat template


COMMANDS = [
    "run",
    "chat",
    "embed",
    "tokenize",
    "inspect",
    "convert",
    "quantize",
    "bench",
    "kv-check",
    "doctor",
    "witness",
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "home"))


# ---- the command as a whole ----


def test_version() -> None:
    ran = here("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"ruvllm {ruvllm.__version__}\n", "")


def plain(text: str) -> str:
    """Without colours, which typer always uses on some CI services."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_help_names_every_command() -> None:
    for argv in ([], ["--help"], ["-h"]):
        ran = here(*argv)
        assert ran.code == 0 and ran.err == ""
        for name in COMMANDS:
            assert f" {name} " in plain(ran.out)


@pytest.mark.parametrize("argv", [*COMMANDS, "witness list", "witness show", "witness replay"])
def test_every_command_has_help(argv: str) -> None:
    ran = here(*argv.split(), "--help")
    assert ran.code == 0 and f"Usage: ruvllm {argv} " in plain(ran.out)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--nope"], "--nope"),
        (["nope"], "nope"),
        (["runn"], "runn"),
        (["run"], "PROMPT"),
        (["run", "--nope", "x"], "--nope"),
        (["run", "x", "--top-k", "many"], "--top-k"),
        (["run", "x", "--kv", "f8"], "--kv"),
        (["run", "x", "--kv-store", "f16"], "--kv-store"),
        (["run", "x", "--kv-fit", "worst"], "--kv-fit"),
        (["run", "x", "--kv-tail", "all"], "--kv-tail"),
        (["run", "x", "--kv-budget", "1.5G"], "--kv-budget: is '1.5G', want bytes, such as"),
        (["chat", "--kv-budget", "-1"], "--kv-budget: is '-1', want bytes"),
        (["bench", "--kv-budget", "lots"], "--kv-budget: is 'lots', want bytes"),
        (["run", "x", "--max-tokens", "few"], "--max-tokens: is 'few', want a number or none"),
        (["run", "x", "--logit-bias", "7"], "--logit-bias: is '7', want ID=BIAS"),
        (["run", "a", "b", "c"], "prompt: found 3 words, want [MODEL] PROMPT"),
        (["run", "some.gguf"], "prompt: found only the model some.gguf"),
        (["run", "--model", "a.gguf", "b.gguf", "x"], "model: found b.gguf and --model a.gguf"),
        (["run", "--raw", "--system", "s", "x"], "--system: --raw is given"),
        (["run", "--special", "x"], "--special: found a chat template, want --raw"),
        (["run", "x", "--regex", "a", "--choice", "b"], "found --regex and --choice, want one"),
        (["run", "x", "--json-schema", "/no/such.json"], "--json-schema: /no/such.json: No such"),
        (["run", "x", "--chat-template", "/no/such"], "--chat-template: /no/such: No such"),
        (["witness", "list", "--since", "yesterday"], "--since: is 'yesterday', want 90s"),
        (["witness", "list", "--limit", "-1"], "--limit: is -1, want at least 0"),
        (["tokenize", "a", "b"], "text: found 2 words, want one text"),
        (["tokenize", "--decode", "a"], "ids: found 'a', want whole numbers"),
        (["tokenize", "--decode", "--bos", "1"], "--decode: found --bos"),
    ],
)
def test_usage_errors(argv: list[str], says: str) -> None:
    ran = here(*argv)
    assert ran.code == 2 and ran.out == "" and says in ran.error
    assert ran.error.endswith("--help)")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "/no/such.gguf", "x"], "/no/such.gguf: no such file"),
        (["run", "/", "x"], "/"),
        (["run", __file__, "x"], __file__),
        (["run", ""], None),
        (["run", "--raw", ""], "prompt: has no tokens"),
        (["run", "x", "--temperature", "nan"], "temperature: is nan, want >= 0"),
        (["run", "x", "--temperature", "-1"], "temperature: is -1, want >= 0"),
        (["run", "x", "--top-p", "0"], "top_p: is 0"),
        (["run", "x", "--max-tokens", "-4"], "max_tokens: is -4, want 0"),
        (["run", "x", "--seed", "-1"], "seed: is -1, want 0"),
        (["run", "x", "--logit-bias", "9999=1"], "9999"),
        (["run", "x", "--logprobs", "101"], "logprobs: is 101, want 0 .. 100"),
        (["run", "x", "--ctx", "100000"], "n_ctx: is 100000, want 1 .. 256"),
        (["run", "x", "--threads", "0"], "n_threads: is 0"),
        (["run", "x", "--kv-budget", "0"], "kv_budget: is 0, want 1"),
        (["run", "x", "--kv-budget", "1K"], "the budget of 1024 bytes does not hold"),
        (["run", "x", "--kv-budget", "99999999T"], "kv_budget: is "),
        (["run", "x", "--kv-store", "q8_0", "--kv-tail", "63"], "kv_tail: is 63, want a multiple"),
        (["chat", "--kv-store", "q8_0", "--kv-batch", "1"], "kv_batch: is 1, want a multiple"),
        (["bench", "--kv-store", "q4_0", "--kv", "q8_0"], "kv_type"),
        (["run", "a " * 400], "prompt: has"),
        (["run", RAW, "--system", "s", "x"], None),
        (["tokenize", "--decode", "99999"], "99999"),
        (["inspect", "/no/such.gguf"], "/no/such.gguf"),
        (["inspect", __file__], __file__),
        (["embed", "-m", "/no/such.gguf", "x"], "/no/such.gguf"),
        (["chat", "/no/such.gguf"], "/no/such.gguf"),
        (["chat", RAW], "has no chat template, want --chat-template FILE"),
        (["quantize", MODEL, "/no/where/x.gguf", "--type", "q8_0"], "/no/where"),
        (["quantize", MODEL, "x.gguf", "--type", "q9"], "type: found 'q9'"),
        (["convert", "/no/such", "x.gguf"], "/no/such"),
        (["witness", "show", "abc"], "abc"),
        (["witness", "replay", "abc"], "abc"),
    ],
)
def test_errors_are_one_line(
    argv: list[str], says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = here(*argv)
    if says is None:
        return _special_cases(argv, ran)
    assert ran.code == 1 and ran.out == "" and says in ran.error
    assert "internal error" not in ran.error and not list(tmp_path.glob("*.gguf*"))


def _special_cases(argv: list[str], ran: object) -> None:
    from cli_run import Ran

    assert isinstance(ran, Ran)
    if "--system" in argv:
        assert ran.code == 2 and "has no chat template" in ran.error
    else:
        assert ran.code == 0  # the template makes a prompt of an empty message


def test_a_bug_is_one_line_too_and_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("left")

    monkeypatch.setattr(ruvllm.Model, "chat", broken)
    ran = here("run", PROMPT)
    assert ran.code == 1 and ran.error.startswith("internal error: KeyError: 'left' (RUVLLM_DEBUG")
    ran = here("run", PROMPT, env={"RUVLLM_DEBUG": "1"})
    assert ran.code == 1 and "Traceback" in ran.err and "ruvllm: internal error" in ran.err


def test_control_characters_of_a_file_name_stay_off_the_terminal() -> None:
    ran = here("run", "a\x1b]0;x\x07\nb.gguf", "x")
    assert ran.code == 1 and ran.error.isprintable()


# ---- run ----


def test_run_answers_with_the_bundled_model() -> None:
    ran = here("run", PROMPT)
    assert (ran.code, ran.out, ran.err) == (0, REPLY + "\n", "")
    assert [e.output_text for e in entries()] == [REPLY]


def test_run_takes_a_model_in_three_ways() -> None:
    assert here("run", MODEL, PROMPT).out == REPLY + "\n"
    assert here("run", "--model", MODEL, PROMPT).out == REPLY + "\n"
    assert here("run", PROMPT, env={"RUVLLM_MODEL": str(MODEL)}).out == REPLY + "\n"
    assert here("run", PROMPT, env={"RUVLLM_MODEL": "/no/such"}).code == 1
    assert here("run", MODEL, PROMPT, env={"RUVLLM_MODEL": "/no/such"}).out == REPLY + "\n"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_run_reads_stdin(end: bytes) -> None:
    assert here("run", "-", stdin=PROMPT.encode() + end).out == REPLY + "\n"
    assert here("run", MODEL, "-", stdin=PROMPT.encode() + end).out == REPLY + "\n"
    assert entries()[0].prompt_text == PROMPT + "<ans>"


def test_run_refuses_stdin_that_is_not_utf8() -> None:
    ran = here("run", "-", stdin=b"ab\xffc")
    assert ran.code == 1 and ran.error == "stdin: byte 2 is 0xff, want UTF-8 text"


def test_run_json() -> None:
    ran = here("run", PROMPT, "--json", "--seed", "7", "--logprobs", "2")
    got = json.loads(ran.out)
    assert ran.code == 0 and ran.err == "" and ran.out.count("\n") == 1
    assert list(got) == [
        "text", "tokens", "finish_reason", "stop", "prompt_tokens", "seed", "timings", "logprobs",
        "witness_id", "cached_tokens", "n_preempted", "restored_tokens", "restore_error",
    ]  # fmt: skip
    assert got["text"] == REPLY and got["seed"] == 7 and got["finish_reason"] == "stop"
    assert len(got["logprobs"]) == len(got["tokens"]) == 3
    assert [len(p["top"]) for p in got["logprobs"]] == [2, 2, 2]
    assert got["witness_id"] == entries()[0].id
    want = ruvllm.Model(witness=False).chat([{"role": "user", "content": PROMPT}])
    assert got["tokens"] == list(want.tokens)


def test_run_raw_and_special() -> None:
    model = ruvllm.Model(witness=False)
    raw = here("run", "--raw", PROMPT, "-n", "5").out
    assert raw == model.generate(PROMPT, max_tokens=5).text + "\n"
    marked = json.loads(here("run", "--raw", PROMPT + "<ans>", "--json").out)
    special = json.loads(here("run", "--raw", "--special", PROMPT + "<ans>", "--json").out)
    assert special["text"] == REPLY
    assert len(special["prompt_tokens"]) < len(marked["prompt_tokens"])  # one token, not many


def test_run_continues_the_prompt_of_a_model_without_a_template() -> None:
    want = ruvllm.Model(RAW, witness=False).generate("hello", max_tokens=4)
    assert here("run", RAW, "hello", "-n", "4").out == want.text + "\n"
    assert json.loads(here("run", RAW, "hello", "-n", "4", "--json").out)["text"] == want.text


def test_run_takes_a_template_and_a_system_message(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}")
    ran = here(
        "run", RAW, "hello", "-n", "1", "--chat-template", template, "--system", "be", "--json"
    )
    ids = json.loads(ran.out)["prompt_tokens"]
    text = ruvllm.Tokenizer(RAW).detokenize(ids)
    assert text.strip() == "system be user hello"


def test_run_gives_every_sampling_flag_to_the_model(tmp_path: Path) -> None:
    flags = {
        "max_tokens": 3, "temperature": 0.75, "top_k": 5, "top_p": 0.5, "min_p": 0.125,
        "typical_p": 0.25, "repeat_penalty": 1.5, "frequency_penalty": 0.5,
        "presence_penalty": -0.5, "penalty_last_n": -1, "seed": 2**64 - 1,
    }  # fmt: skip
    argv = [x for name, value in flags.items() for x in ("--" + name.replace("_", "-"), str(value))]
    ran = here(
        "run", PROMPT, *argv, "--stop", "zz", "--stop", "yy", "--logit-bias", "5=-inf",
        "--logit-bias", "6=0.5", "--ignore-eos", "--session", "s1", "--ctx", "100", "--batch", "2",
        "--kv", "f16", "--threads", "1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    entry = entries()[0]
    assert entry.params is not None and entry.engine is not None
    kept = {name: entry.params[name] for name in flags}
    assert kept == flags and entry.params["stop"] == ["zz", "yy"] and entry.params["ignore_eos"]
    assert set(entry.params["logit_bias"]) == {"5", "6"}
    assert entry.session_id == "s1" and entry.engine["n_ctx"] == 100
    assert (entry.engine["n_batch"], entry.engine["kv_type"]) == (2, "f16")
    assert entry.engine["n_threads"] == 1
    # the same through the environment
    env = {"RUVLLM_" + name.upper(): str(value) for name, value in flags.items()}
    env |= {"RUVLLM_IGNORE_EOS": "1", "RUVLLM_SESSION": "s2", "RUVLLM_KV": "f16"}
    assert here("run", PROMPT, env=env).code == 0
    entry = entries()[0]
    assert entry.params is not None and {n: entry.params[n] for n in flags} == flags
    assert entry.session_id == "s2"
    # and the flag wins
    assert here("run", PROMPT, "--top-k", "9", env=env).code == 0
    entry = entries()[0]
    assert entry.params is not None and entry.params["top_k"] == 9


def test_run_gives_every_memory_flag_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    class Spy(ruvllm.Model):
        def __init__(self, path: Any = None, **options: Any) -> None:
            given.append(options)
            super().__init__(path, **options)

    monkeypatch.setattr(ruvllm, "Model", Spy)
    flags = ["--kv", "f32", "--kv-budget", "64M", "--kv-tail", "128", "--kv-batch", "192"]
    flags += ["--kv-fit", "round_robin", "--no-kv-rotate", "--no-share-prefix"]
    want = {
        "kv_type": "f32", "kv_budget": 64 << 20, "kv_tail": 128, "kv_batch": 192,
        "kv_fit": "round_robin", "kv_rotate": False, "share_prefix": False, "kv_store": None,
    }  # fmt: skip
    assert here("run", PROMPT, *flags).out == REPLY + "\n"
    assert here("chat", *flags, stdin=PROMPT.encode()).out == REPLY + "\n"
    assert here("bench", *flags, "--pp", "2", "--tg", "2", "-r", "1").code == 0
    env = {"RUVLLM_KV_BUDGET": "65536KiB", "RUVLLM_KV_FIT": "round_robin"}
    assert here("run", PROMPT, env=env).out == REPLY + "\n"
    seen = [{k: v for k, v in g.items() if k in want} for g in given]
    assert seen[:3] == [want] * 3
    assert seen[-1] == want | {
        "kv_type": "auto", "kv_tail": 256, "kv_batch": 64, "kv_rotate": True, "share_prefix": True,
    }  # fmt: skip


def test_run_goes_on_until_the_context_is_full() -> None:
    ran = here("run", PROMPT, "--ignore-eos", "-n", "none", "--ctx", "40", "--json")
    got = json.loads(ran.out)
    assert got["finish_reason"] == "length" and len(got["prompt_tokens"] + got["tokens"]) >= 40


def test_run_stops_before_a_stop_string() -> None:
    assert here("run", PROMPT, "--stop", " apple").out == "island\n"


def test_run_leaves_no_entry_when_told_so() -> None:
    assert here("run", PROMPT, "--no-witness").out == REPLY + "\n"
    assert here("run", PROMPT, env={"RUVLLM_WITNESS": "0"}).out == REPLY + "\n"
    assert entries() == []


def test_run_same_seed_same_text() -> None:
    argv = ["run", PROMPT, "-t", "2", "--ignore-eos", "-n", "30", "--seed"]
    first = here(*argv, "5").out
    assert here(*argv, "5", "--threads", "2", "--batch", "1").out == first
    assert here(*argv, "6").out != first


def test_run_verbose_and_logprobs_go_to_stderr() -> None:
    ran = here("run", PROMPT, "-v", "--seed", "3", "--logprobs", "1")
    assert ran.out == REPLY + "\n"
    assert "seed 3" in ran.err and "witness " in ran.err and "likeliest" in ran.err
    assert "' apple'" in ran.err


def test_run_constrained(tmp_path: Path) -> None:
    ran = here("run", PROMPT, "--choice", "kitten", "--choice", "water")
    assert ran.out in ("kitten\n", "water\n")
    assert here("run", PROMPT, "--regex", "[0-9]{3}").out.strip().isdigit()
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "boolean"}')
    assert json.loads(here("run", PROMPT, "--json-schema", schema).out) in (True, False)
    schema.write_text("{")
    assert here("run", PROMPT, "--json-schema", schema).code == 1
    schema.write_bytes(b"\xff")
    ran = here("run", PROMPT, "--json-schema", schema)
    assert ran.code == 2 and "byte 0 is not UTF-8" in ran.error


def test_user_text_makes_no_control_token() -> None:
    got = json.loads(here("run", "reverse apple<eos> island", "--json").out)
    eos = ruvllm.Tokenizer(MODEL).eos
    assert eos not in got["prompt_tokens"]


# ---- the page ----


def test_docs_name_every_flag_and_variable() -> None:
    import typer

    from ruvllm.cli import app

    page = (ROOT.parent / "docs" / "cli.md").read_text()
    without = re.search(r"have none:\n(.*?), and those of", page, re.S)
    assert without is not None
    missing, unlisted = [], set()
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    witness = commands.pop("witness").commands
    for group, of_witness in ((commands, False), (witness, True)):
        for name, command in group.items():
            for p in command.params:
                flag = max((o for o in p.opts if o.startswith("--")), key=len, default=None)
                if flag is None or flag == "--help":
                    continue
                rule = "RUVLLM_" + flag[2:].replace("-", "_").upper()
                if p.envvar is None:
                    unlisted |= set() if of_witness else {flag}
                elif p.envvar != rule:
                    assert (name, flag, p.envvar) == ("embed", "--model", "RUVLLM_EMBED_MODEL")
                if flag not in page and flag.replace("--", "--no-") not in page:
                    missing.append((name, flag))
    assert missing == []
    assert unlisted == {flag.strip("`") for flag in without[1].split()}


def test_examples_of_the_docs_are_true() -> None:
    page = (ROOT.parent / "docs" / "cli.md").read_text()
    n = 0
    for block in re.findall(r"```console\n(.*?)```", page, re.S):
        for command, output in re.findall(r"^\$ ruvllm (.*)\n((?:[^$\n].*\n)*)", block, re.M):
            argv = shlex.split(command)
            if argv[0] in ("run", "tokenize") and output:
                assert here(*argv).out == output
                n += 1
    assert n == 4
