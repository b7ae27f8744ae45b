"""The worker that runs ruvllm; see peer_pipe.py.  peer_llama.py has the same commands."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from peer_pipe import serve

import ruvllm
from ruvllm import _core
from ruvllm.engine._params import SamplingParams


class Engine:
    """One open model and sequence."""

    def about(self) -> dict[str, str]:
        return {"version": ruvllm.__version__, "system": _core.cpu()["features"]}

    def limit(self, mask: int) -> str:
        """Instruction sets to use, see rvk.h."""
        _core.cpu_limit(mask)
        return _core.cpu()["features"]

    def open(self, path: str, n_threads: int, kv: str, n_ctx: int) -> int:
        """Open and warm up; gives the size of the vocabulary."""
        self.start(path, n_threads, kv, n_ctx)
        self.pp(32)
        self.tg(2)
        return self.n_vocab

    def start(self, path: str, n_threads: int, kv: str, n_ctx: int) -> None:
        kind: Any = kv
        self.model = ruvllm.Model(path, n_threads=n_threads, kv_type=kind, witness=False)
        self.core = self.model._open()
        self.n_vocab = self.model.info.n_vocab
        self.session = _core.session_new(self.core, n_ctx)

    def first(self, path: str, n_threads: int) -> float:
        """Seconds from opening to the logits after a prompt of 8; wants a new process."""
        ids = np.arange(8, dtype=np.int32)
        t = time.perf_counter()
        self.start(path, n_threads, "f16", 512)
        self.session.eval(ids, False, None)
        return time.perf_counter() - t

    def pp(self, n: int) -> float:
        """Seconds for a prompt of n tokens."""
        ids = (np.arange(n, dtype=np.int32) * 31) % self.n_vocab
        self.session.truncate(0)
        t = time.perf_counter()
        self.session.eval(ids, False, None)
        return time.perf_counter() - t

    def tg(self, n: int) -> float:
        """Seconds for n single tokens after a prompt of 8."""
        self.pp(8)
        return self.more(n)

    def more(self, n: int) -> float:
        """Seconds for n single tokens where the sequence stands."""
        t = time.perf_counter()
        for i in range(n):
            self.session.eval([(i * 37) % self.n_vocab], False, None)
        return time.perf_counter() - t

    def pace(self, seconds: float) -> float:
        """Seconds per token, of tokens that take that long together."""
        self.pp(8)
        n, spent = 0, 0.0
        while spent < seconds:
            if n % 256 == 255:  # before the context is full
                self.pp(8)
            spent += self.more(1)
            n += 1
        return spent / n

    def open_batch(self, path: str, n_threads: int, most: int, room: int) -> None:
        """For most sequences of room tokens."""
        self.model = ruvllm.Model(path, n_threads=n_threads, witness=False)
        self.n_vocab = self.model.info.n_vocab
        core = self.model._open()
        self.engine = _core.engine_new(core, 0, room, 0, 0, most, most, 0, 0, 0)
        self.sequences(2, 2)

    def sequences(self, n: int, steps: int) -> float:
        """Seconds for one more token of each of n sequences, steps times, after 8 tokens each.

        Each token is chosen, greedily, which llama.cpp's is not.
        """
        greedy = SamplingParams(temperature=0.0).core()
        asked = set()
        for i in range(n):
            ids = [(i * 8 + k) * 31 % self.n_vocab for k in range(8)]
            asked.add(self.engine.submit(ids, 2 * steps, greedy, None, [], True, 1, 0, 0, b""))
        begun: set[int] = set()
        while begun != asked:
            begun.update(event[0] for event in self.engine.step()[0])
        t = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
        t = time.perf_counter() - t
        for request in asked:
            self.engine.cancel(request, 3)
        while not self.engine.step()[1]:
            pass
        return t

    def embed(self, n_texts: int, n_tokens: int) -> float:
        """Seconds to embed texts of n_tokens each."""
        ids = 1000 + np.arange(n_texts * n_tokens, dtype=np.int32) * 31 % 20000
        t = time.perf_counter()
        self.core.embed(ids, [n_tokens] * n_texts, None)
        return time.perf_counter() - t

    def open_encoder(self, path: str, n_threads: int) -> None:
        self.core = ruvllm.Model(path, n_threads=n_threads, witness=False)._open()
        self.embed(2, 16)

    def open_texts(self, path: str, n_threads: int, texts: list[str]) -> None:
        """Open and warm up; the commands below are about these texts."""
        self.model = ruvllm.Model(path, n_threads=n_threads, witness=False)
        self.texts = texts
        self.embed_texts(len(texts))

    def embed_texts(self, n: int) -> float:
        """Seconds to embed the first n texts."""
        t = time.perf_counter()
        self.model.embed(self.texts[:n])
        return time.perf_counter() - t

    def vectors(self) -> list[list[float]]:
        """Of all texts."""
        rows: list[list[float]] = self.model.embed(self.texts).tolist()
        return rows

    def bandwidth(self, n_threads: int, n_bytes: int) -> float:
        return _core.read_bandwidth(n_threads, n_bytes)


if __name__ == "__main__":
    e = Engine()
    names = (
        "about",
        "limit",
        "open",
        "first",
        "pp",
        "tg",
        "more",
        "pace",
        "embed",
        "open_encoder",
        "open_batch",
        "sequences",
        "open_texts",
        "embed_texts",
        "vectors",
        "bandwidth",
    )
    serve({name: getattr(e, name) for name in names})
