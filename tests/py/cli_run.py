"""Runs the command ``ruvllm`` for the tests: in this process, in another, or behind a terminal."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from ruvllm.cli import app
from ruvllm.memory.witness import WitnessEntry, default_log

MODEL = Path(__file__).parents[2] / "ruvllm" / "data" / "tiny-C.gguf"
PROMPT, REPLY = "reverse apple island", "island apple"

# The bundled model answers faster than a signal can be sent: a token every 50 ms gives time, and a
# word on stderr says when there are some.
SLOW = """
import sys, time
from ruvllm.engine._generate import Generation
step, n = Generation.__next__, 0

def slow(self):
    global n
    n += 1
    if n == 4:
        print("started", file=sys.stderr, flush=True)
    time.sleep(0.05)
    return step(self)

Generation.__next__ = slow
from ruvllm.cli import main
sys.exit(main(sys.argv[1:]))
"""
LONG = ["run", "count", "--ignore-eos", "-n", "200", "-t", "1", "--seed", "1"]

# A process becomes the owner of the terminal it is started on, so that ^C reaches it.
OWNER = "import fcntl, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr, without the name of the program."""
        assert self.err.startswith("ruvllm: ") and self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("ruvllm: ").removesuffix("\n")


def here(*argv: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
    """In this process, whatever variables of ours the caller has."""
    unset: dict[str, str | None] = {
        k: None for k in os.environ if k.startswith("RUVLLM_") and k != "RUVLLM_HOME"
    }
    result = CliRunner().invoke(app, [str(a) for a in argv], input=stdin, env=unset | (env or {}))
    return Ran(result.exit_code, result.stdout, result.stderr)


def entries() -> list[WitnessEntry]:
    """All of the witness log, newest first."""
    default_log().flush()
    return default_log().list(None)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RUVLLM_", "NO_COLOR"))}
    return {**kept, "RUVLLM_HOME": str(home), **more}


def start(
    home: Path, *argv: str | Path, code: str | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    """In a process of its own."""
    how = ["-m", "ruvllm"] if code is None else ["-c", code]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | more
    env = pipes.pop("env", environment(home))
    return subprocess.Popen([sys.executable, *how, *map(str, argv)], env=env, **pipes)


def away(home: Path, *argv: str | Path, stdin: bytes = b"", **more: Any) -> Ran:
    """In a process of its own, to its end."""
    process = start(home, *argv, **more)
    out, err = process.communicate(stdin, timeout=60)
    return Ran(process.returncode, out.decode(), err.decode())


class Terminal:
    """A process behind a pseudo-terminal."""

    def __init__(self, home: Path, argv: Sequence[str | Path], code: str = "", **env: str) -> None:
        self.fd, theirs = pty.openpty()
        code = OWNER + (code or "from ruvllm.cli import main\nsys.exit(main(sys.argv[1:]))")
        self.process = start(
            home, *argv, code=code, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
            env=environment(home, TERM="xterm-256color", COLUMNS="100", LINES="40", **env),
        )  # fmt: skip
        os.close(theirs)
        self.text = self._ahead = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def read(self, until: str | None = None, seconds: float = 30) -> str:
        """What comes, up to and with ``until``, or to the end."""
        limit = time.monotonic() + seconds
        while until is None or until not in self._ahead:
            if not select.select([self.fd], [], [], max(0, limit - time.monotonic()))[0]:
                raise TimeoutError(f"want {until!r}, found {self._ahead!r}")
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                if until is not None:
                    raise EOFError(f"want {until!r}, found {self._ahead!r}")
                break
            self._ahead += self._decoder.decode(data)
        n = len(self._ahead) if until is None else self._ahead.index(until) + len(until)
        got, self._ahead = self._ahead[:n], self._ahead[n:]
        self.text += got
        return got

    def press(self, key: str, until: str | None = None) -> str:
        """A key that line editing may not be ready for: again until it is heard."""
        for _ in range(20):
            self.type(key)
            with contextlib.suppress(TimeoutError):
                return self.read(until, 1)
        raise TimeoutError(f"{key!r} is not heard, found {self._ahead!r}")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.fd)
