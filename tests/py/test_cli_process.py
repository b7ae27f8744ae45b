"""``ruvllm`` as a process: Ctrl-C, pipes that close, terminals, what is printed where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf_make as mk
import pytest
from cli_run import (
    LONG,
    MODEL,
    PROMPT,
    REPLY,
    SLOW,
    Terminal,
    away,
    entries,
    environment,
    start,
)


def test_the_three_ways_to_start(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "ruvllm"
    for argv in (["-m", "ruvllm"], ["-m", "ruvllm.cli"], [str(script)]):
        if argv[0] != "-m" and not script.exists():
            continue  # the package is not installed here, only importable
        command = argv if argv[0] != "-m" else [sys.executable, *argv]
        done = subprocess.run(
            [*command, "run", PROMPT], env=environment(tmp_path), capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, REPLY.encode() + b"\n"), done.stderr


def test_the_reply_is_on_record_when_the_process_has_ended(tmp_path: Path) -> None:
    assert away(tmp_path, "run", PROMPT).code == 0
    (entry,) = json.loads(away(tmp_path, "witness", "list", "--json").out)
    assert entry["output_text"] == REPLY and entry["model_digest"].startswith("sha256:")
    shown = away(tmp_path, "witness", "show", entry["id"])
    assert shown.code == 0 and PROMPT in shown.out and REPLY in shown.out
    again = away(tmp_path, "witness", "replay", entry["id"])
    assert (again.code, again.out) == (0, "same: all 3 tokens\n")


def test_stdout_is_the_answer_alone(tmp_path: Path) -> None:
    ran = away(tmp_path, "run", PROMPT, "-v", "--logprobs", "1")
    assert ran.out == REPLY + "\n" and "\x1b" not in ran.err


def test_a_home_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    ran = away(blocked, "run", PROMPT)
    assert (ran.code, ran.out) == (0, REPLY + "\n")
    assert ran.error.startswith("warning: the witness log takes no entries: ")
    ran = away(blocked, "witness", "list")
    assert ran.code == 1 and str(blocked) in ran.error
    ran = away(blocked, "doctor", "--json")
    got = json.loads(ran.out)
    assert ran.code == 1 and not got["ok"]
    assert got["checks"]["engine"]["ok"] and not got["checks"]["home"]["ok"]


# ---- Ctrl-C ----


def wait_started(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline() == b"started\n"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_keeps_what_came(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path, *LONG, *flags, "-v", code=SLOW, stdin=subprocess.DEVNULL)
    wait_started(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err.decode()
    assert "cancelled" in err.decode()
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path))
    (entry,) = entries()
    assert entry.finish_reason == "cancelled" and 3 <= (entry.n_output or 0) < 200
    if flags:
        got = json.loads(out)
        assert got["finish_reason"] == "cancelled" and got["text"] == entry.output_text
    else:
        assert out.decode() == f"{entry.output_text}\n"
    again = away(tmp_path, "witness", "replay", entry.id or "")  # as far as it went
    assert again.code == 0, again


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    stuck = SLOW.replace("return step(self)", "if n > 4: time.sleep(600)\n    return step(self)")
    process = start(tmp_path, *LONG, code=stuck, stdin=subprocess.DEVNULL)
    wait_started(process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err


def test_ctrl_c_while_stdin_is_read(tmp_path: Path) -> None:
    code = """
import os, signal, sys, threading
from ruvllm.cli import main
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
sys.exit(main(sys.argv[1:]))
"""
    process = start(tmp_path, "run", "-", code=code)
    assert process.wait(30) == 130
    out, err = process.communicate()
    assert (out, err) == (b"", b"")


# ---- pipes ----


def test_a_reader_that_goes_stops_the_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path, *LONG, code=SLOW, stdin=subprocess.DEVNULL)
    wait_started(process)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path))
    (entry,) = entries()
    assert entry.finish_reason == "cancelled" and (entry.n_output or 0) < 200


@pytest.mark.parametrize("argv", [["run", PROMPT, "--json"], ["inspect", str(MODEL)], ["--help"]])
def test_a_closed_stdout_is_quiet(argv: list[str], tmp_path: Path) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    process = start(tmp_path, *argv, stdin=subprocess.DEVNULL, stdout=ours)
    os.close(ours)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 141 and err == b""


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start(tmp_path, "run", PROMPT, stdin=subprocess.DEVNULL, stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and err == b"ruvllm: No space left on device\n"


# ---- terminals ----


def test_colours_only_where_they_are_wanted(tmp_path: Path) -> None:
    with Terminal(tmp_path, ["doctor"]) as t:
        assert "\x1b[32m" in t.read() and "ok" in t.text
    with Terminal(tmp_path, ["doctor"], NO_COLOR="1") as t:
        assert "\x1b[32m" not in t.read() and "ok" in t.text
    assert "\x1b" not in away(tmp_path, "doctor").out


def test_nothing_of_a_file_acts_on_the_terminal(tmp_path: Path) -> None:
    bad = "x\x1b]0;owned\x07\x9b31m[red]"
    path = tmp_path / "bad.gguf"
    path.write_bytes(
        mk.gguf(
            [mk.kv("general.name", mk.STR, bad), mk.kv(bad, mk.STR, bad),
             mk.raw_kv("list", mk.ARR, mk.array(mk.STR, [mk.string(bad)]))],
            [mk.Tensor(bad)],
        )
    )  # fmt: skip
    for flags in ([], ["--all"]):
        with Terminal(tmp_path, ["inspect", path, *flags], NO_COLOR="1") as t:
            text = t.read()
        assert "owned" in text and "[red]" in text
        assert "\x1b]" not in text and "\x07" not in text and "\x9b" not in text


def test_a_reply_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    code = """
from ruvllm.engine._stream import TextStream
push = TextStream.push
TextStream.push = lambda self, token: push(self, token) + "\\x1b[2J"
from ruvllm.cli import main
sys.exit(main(sys.argv[1:]))
"""
    with Terminal(tmp_path, ["run", PROMPT], code) as t:
        assert "\x1b" not in t.read() and "\\x1b[2J" in t.text


def test_progress_bar_on_a_long_load(tmp_path: Path) -> None:
    code = """
from ruvllm._cli import terminal
terminal.LONG_LOAD = 1
from ruvllm.cli import main
sys.exit(main(sys.argv[1:]))
"""
    with Terminal(tmp_path, ["run", MODEL, PROMPT], code) as t:
        assert "loading tiny-C.gguf" in t.read() and REPLY in t.text
    assert away(tmp_path, "run", MODEL, PROMPT, code="import sys" + code).err == ""


def test_ctrl_c_while_a_file_is_written(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from ruvllm.engine.quantize import RowPipeline
RowPipeline._tick = lambda self, n: os.kill(os.getpid(), signal.SIGINT)
from ruvllm.cli import main
sys.exit(main(sys.argv[1:]))
"""
    ran = away(tmp_path, "quantize", MODEL, tmp_path / "x.gguf", "--type", "f16", code=code)
    assert (ran.code, ran.out, ran.err) == (130, "", "")
    assert not list(tmp_path.glob("*.gguf*"))


def test_progress_bar_while_a_file_is_written(tmp_path: Path) -> None:
    with Terminal(tmp_path, ["quantize", MODEL, tmp_path / "x.gguf", "--type", "f16"]) as t:
        assert "writing x.gguf" in t.read() and "x.gguf: f16, " in t.text
