"""The worker that runs llama.cpp through llama-cpp-python's low-level API; see peer_pipe.py.

Everything is as llama.cpp has it by default (mmap, flash attention where it wants it, weights
re-packed at load) but the sizes and threads asked for.  Batches are filled before the clock starts.
"""

from __future__ import annotations

import base64
import ctypes
import sys
import time
from typing import Any

from peer_pipe import serve

UBATCH = 512  # llama.cpp's default: prompt tokens computed at once
TEXTS = 16  # embedded at once; 16 tokens each: more of them were slower when tried
KV_TYPES = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}


class Engine:
    """One open model and context."""

    model: Any = None
    context: Any = None

    def __init__(self) -> None:
        import llama_cpp
        from llama_cpp import llama_cpp as api

        self.api, self.version = api, llama_cpp.__version__
        self.silent = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.silent, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.batch = api.llama_batch_init(UBATCH, 0, 1)

    def about(self) -> dict[str, str]:
        return {"version": self.version, "system": self.api.llama_print_system_info().decode()}

    def load(self, path: str) -> None:
        if self.context:
            self.api.llama_free(self.context)
        if self.model:
            self.api.llama_model_free(self.model)
        self.context = None
        params = self.api.llama_model_default_params()
        self.model = self.api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise ValueError(f"cannot load {path}")
        self.n_vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def start(self, path: str, n_threads: int, kv: str, n_ctx: int) -> None:
        self.load(path)
        p = self.api.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = n_ctx, UBATCH, UBATCH
        p.n_threads = p.n_threads_batch = n_threads
        p.type_k = p.type_v = getattr(self.api, KV_TYPES[kv])
        self.make_context(p)

    def make_context(self, params: Any) -> None:
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError("cannot make a context")
        self.at = 0

    def open(self, path: str, n_threads: int, kv: str, n_ctx: int) -> int:
        self.start(path, n_threads, kv, n_ctx)
        self.pp(32)
        self.tg(2)
        return int(self.n_vocab)

    def first(self, path: str, n_threads: int) -> float:
        t = time.perf_counter()
        self.start(path, n_threads, "f16", 512)
        self.fill(list(range(8)))
        self.run()
        return time.perf_counter() - t

    def fill(self, ids: list[int], first: int = 0) -> None:
        """The batch of one sequence; logits of its last token."""
        b = self.batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i] = token, first + i, 1
            b.seq_id[i][0], b.logits[i] = 0, i == len(ids) - 1

    def run(self) -> None:
        if self.api.llama_decode(self.context, self.batch) != 0:
            raise ValueError("llama_decode failed")
        self.api.llama_synchronize(self.context)

    def pp(self, n: int) -> float:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        seconds = 0.0
        for first in range(0, n, UBATCH):
            self.fill([i * 31 % self.n_vocab for i in range(first, min(n, first + UBATCH))], first)
            t = time.perf_counter()
            self.run()
            seconds += time.perf_counter() - t
        self.at = n
        return seconds

    def tg(self, n: int) -> float:
        self.pp(8)
        return self.more(n)

    def more(self, n: int) -> float:
        t = time.perf_counter()
        for i in range(n):
            self.fill([i * 37 % self.n_vocab], self.at + i)
            self.run()
        t = time.perf_counter() - t
        self.at += n
        return t

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

    def open_encoder(self, path: str, n_threads: int) -> None:
        self.load(path)
        p = self.api.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = UBATCH
        p.n_threads = p.n_threads_batch = n_threads
        p.n_seq_max = TEXTS
        p.embeddings = True
        p.pooling_type = self.api.LLAMA_POOLING_TYPE_MEAN
        self.make_context(p)
        self.embed(2, 16)

    def open_batch(self, path: str, n_threads: int, most: int, room: int) -> None:
        """For most sequences of room tokens."""
        self.load(path)
        p = self.api.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = most * room, UBATCH, UBATCH, most
        p.n_threads = p.n_threads_batch = n_threads
        self.make_context(p)
        self.sequences(2, 2)

    def sequences(self, n: int, steps: int) -> float:
        """Seconds for one more token of each of n sequences, steps times, after 8 tokens each."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        for i in range(n):
            self.fill([(i * 8 + k) * 31 % self.n_vocab for k in range(8)])
            for k in range(8):
                self.batch.seq_id[k][0] = i
            self.run()
        seconds = 0.0
        for k in range(steps):
            b = self.batch
            b.n_tokens = n
            for i in range(n):
                b.token[i], b.pos[i], b.n_seq_id[i] = (k * 37 + i) % self.n_vocab, 8 + k, 1
                b.seq_id[i][0], b.logits[i] = i, True
            t = time.perf_counter()
            self.run()
            seconds += time.perf_counter() - t
        return seconds

    def logits(self, path: str, ids: list[int]) -> str:
        """Of every token: float32 in base64.  Keys and values in F32, no flash attention."""
        self.load(path)
        p = self.api.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = UBATCH, UBATCH, UBATCH
        p.n_threads = p.n_threads_batch = 1
        p.type_k = p.type_v = self.api.GGML_TYPE_F32
        p.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.make_context(p)
        self.fill(ids)
        for i in range(len(ids)):
            self.batch.logits[i] = True
        self.run()
        rows = self.api.llama_get_logits(self.context)
        return base64.b64encode(ctypes.string_at(rows, 4 * self.n_vocab * len(ids))).decode()

    def embed(self, n_texts: int, n_tokens: int) -> float:
        seconds, at_once = 0.0, min(TEXTS, UBATCH // n_tokens)
        for first in range(0, n_texts, at_once):
            n = min(at_once, n_texts - first)
            b = self.batch
            b.n_tokens = n * n_tokens
            for i in range(n * n_tokens):
                b.token[i] = 1000 + (first * n_tokens + i) * 31 % 20000
                b.pos[i], b.n_seq_id[i] = i % n_tokens, 1
                b.seq_id[i][0], b.logits[i] = i // n_tokens, 1
            t = time.perf_counter()
            if self.api.llama_encode(self.context, b) != 0:
                raise ValueError("llama_encode failed")
            for i in range(n):
                if not self.api.llama_get_embeddings_seq(self.context, i):
                    raise ValueError(f"no embedding of text {i}")
            seconds += time.perf_counter() - t
        return seconds


if __name__ == "__main__":
    try:
        e = Engine()
    except ModuleNotFoundError as missing:
        sys.exit(f"{sys.executable}: {missing}")
    names = (
        "about",
        "open",
        "first",
        "pp",
        "tg",
        "more",
        "pace",
        "logits",
        "embed",
        "open_encoder",
        "open_batch",
        "sequences",
    )
    serve({name: getattr(e, name) for name in names})
