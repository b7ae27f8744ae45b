"""One engine in a process of its own, driven over pipes.

Threads and memory of two engines must not mix, and each may need its own Python environment, so a
benchmark starts a worker per engine and asks it things: a JSON array [command, argument, ...] per
line, answered by a line {"ok": value} or {"error": text}.  The worker takes the time, so the pipe
costs nothing.  Standard library only: a worker's environment need not have ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar


class WorkerError(Exception):
    """The worker could not do what it was asked, or has ended."""


class Worker:
    """A running worker; ``with`` ends it."""

    running: ClassVar[list[Worker]] = []

    def __init__(
        self,
        script: str,
        python: str | None = sys.executable,
        cpus: Iterable[int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """script: beside this file, or without a Python a program.  env: more variables.

        cpus: those it may use; None: those of this process.
        Raises WorkerError when it does not start.
        """
        self.name = Path(script).name
        command = [script] if python is None else [python, str(Path(__file__).with_name(script))]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"WORKER_CPUS": ",".join(map(str, cpus or ()))} | dict(env or {}),
            )
        except OSError as e:
            raise WorkerError(f"{self.name}: {e}") from e
        self.running.append(self)
        try:
            self.about = self.ask("about")
        except BaseException:
            self.close()
            raise

    def ask(self, *words: Any) -> Any:
        """Ask and wait; raises WorkerError."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerError(f"{self.name}: ended with {self._process.wait()} at {words[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {words[0]}: {answer['error']}")
        return answer["ok"]

    def cpu_seconds(self) -> float:
        """CPU time the running worker has had; 0 where the system does not say."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        if self in self.running:
            self.running.remove(self)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """The worker's side: answer until stdin ends.  What the engine prints goes to stderr."""
    if cpus := os.environ.get("WORKER_CPUS"):
        os.sched_setaffinity(0, map(int, cpus.split(",")))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *words = json.loads(line)
        try:
            out: dict[str, Any] = {"ok": commands[name](*words)}
        except Exception as e:
            out = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(out) + "\n")
        answers.flush()
