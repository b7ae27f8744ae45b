"""``ruvllm chat``: line by line through a pipe, and at a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_run import MODEL, PROMPT, REPLY, SLOW, Ran, Terminal, entries, here

ALL = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}<ans>"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "home"))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A template that shows the model the whole conversation, as the bundled one's does not."""
    path = tmp_path / "all.jinja"
    path.write_text(ALL)
    return path


def prompts() -> list[str | None]:
    return [e.prompt_text for e in reversed(entries())]


def test_each_line_gets_a_reply() -> None:
    ran = here("chat", stdin=f"{PROMPT}\n\n  \nreverse cloud zebra\n".encode())
    assert (ran.code, ran.out, ran.err) == (0, f"{REPLY}\nzebra cloud\n", "")
    assert here("chat", MODEL, stdin=PROMPT.encode()).out == REPLY + "\n"  # no line end
    assert here("chat", stdin=b"") == Ran(0, "", "")
    first, second, third = entries()[::-1]
    assert first.session_id == second.session_id != third.session_id


def test_the_conversation_is_kept_until_reset(template: Path) -> None:
    here("chat", "--chat-template", template, "-n", "0", "--system", "S",
         stdin=b"one\ntwo\n/reset\nthree\n/system T U\nfour\n/system\nfive\n")  # fmt: skip
    assert prompts() == [
        "s S u one <ans>",
        "s S u one a  u two <ans>",
        "s S u three <ans>",
        "s T U u four <ans>",
        "u five <ans>",
    ]


def test_a_backslash_continues_the_message(template: Path) -> None:
    ran = here("chat", "--chat-template", template, "-n", "0", stdin=b"one\\\ntwo\\\n\\\nx\nlast\\")
    assert ran.code == 0
    assert prompts() == ["u one\ntwo\n\nx <ans>", "u one\ntwo\n\nx a  u last\n <ans>"]


def test_exit_leaves_at_once() -> None:
    for word in ("/exit", "/quit"):
        ran = here("chat", stdin=f"{PROMPT}\n{word}\nreverse cloud zebra\n".encode())
        assert (ran.code, ran.out) == (0, REPLY + "\n")


def test_help_and_unknown_commands() -> None:
    ran = here("chat", stdin=b"/help\n")
    assert ran.code == 0 and ran.out == "" and "/reset" in ran.err and "/system" in ran.err
    ran = here("chat", stdin=f"/what\n{PROMPT}\n".encode())
    assert ran.out == REPLY + "\n" and ran.error.startswith("/what: no such command")
    assert ran.code == 1  # through a pipe nobody sees the message


def test_a_message_that_does_not_fit_is_said_and_the_talk_goes_on(template: Path) -> None:
    long = "apple " * 300
    ran = here("chat", stdin=f"{PROMPT}\n{long}\n{PROMPT}\n".encode())
    assert ran.out == f"{REPLY}\n{REPLY}\n" and ran.code == 1
    assert "want at most the context of 256" in ran.error and "/reset starts over" in ran.error
    # so does one that grew too long: the turn is dropped, the conversation is what it was
    half = "apple " * 40
    ran = here("chat", "--chat-template", template, "-n", "0", "-c", "100",
               stdin=f"{half}\n{half}\n{half}\n/reset\nend\n".encode())  # fmt: skip
    assert ran.err.count("the conversation no longer fits") == 1
    assert prompts()[-1] == "u end <ans>" and len(prompts()) == 5


def test_a_reply_that_was_cut_says_so() -> None:
    ran = here("chat", "--ignore-eos", "-n", "5", stdin=PROMPT.encode())
    assert "[cut after 5 tokens]" in ran.err
    ran = here("chat", "--ignore-eos", "-n", "none", "-c", "20", stdin=PROMPT.encode())
    assert "[cut: the context of 20 tokens is full, /reset starts over]" in ran.err


def test_a_line_that_is_not_utf8_is_said_and_the_talk_goes_on() -> None:
    ran = here("chat", stdin=b"ab\xff\n" + PROMPT.encode() + b"\n")
    assert ran.out == REPLY + "\n" and ran.code == 1
    assert ran.error == "message: stdin: byte 2 is 0xff, want UTF-8 text"


def test_a_wrong_option_is_said_for_each_message() -> None:
    ran = here("chat", "--top-p", "7", stdin=b"a\nb\n")
    assert ran.code == 1 and ran.out == "" and ran.err.count("ruvllm: top_p: is 7") == 2


# ---- at a terminal ----


def test_terminal(tmp_path: Path) -> None:
    with Terminal(tmp_path, ["chat"]) as t:
        t.read("> ")
        t.type(PROMPT + "\r")
        t.read(REPLY)
        t.read("> ")
        t.type("reverse cloud \\\r")
        t.read("… ")
        t.press("\x03", "> ")  # gives the message up
        t.type("half a line")
        t.read("half a line")
        t.press("\x03", "> ")  # gives the line up
        t.type("/exit\r")
        t.read()
        assert t.process.wait() == 0


def test_terminal_ends() -> None:
    for key, code in (("\x04", 0), ("\x03", 130)):
        with Terminal(Path("/nonexistent"), ["chat", "--no-witness"]) as t:
            t.read("> ")
            t.press(key)
            assert t.process.wait() == code and "Traceback" not in t.text


def test_ctrl_c_stops_the_reply_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal(tmp_path, ["chat", "--ignore-eos", "-n", "200"], SLOW) as t:
        t.read("> ")
        t.type(PROMPT + "\r")
        t.read("started")
        t.type("\x03")
        t.read("[stopped]")
        t.read("> ")
        t.press("\x04")
        assert t.process.wait() == 0
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path))
    (entry,) = entries()
    assert entry.finish_reason == "cancelled" and (entry.output_text or "").startswith(REPLY)
