"""Does decoding keep up with memory?  A token reads every weight once, so tokens/s times the bytes
read per token is compared with what the machine reads, measured between the same runs.  Loading
and prefill are reported too."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
from _common import Figure, median_of, options, report
from random_model import SHAPES, make, write

import ruvllm
from ruvllm import _core

VOCAB = Path(__file__).parents[1] / "tests/golden/vocab/ggml-vocab-llama-bpe.gguf"


def bytes_per_token(path: Path) -> int:
    """Bytes of weights a decoder reads for one token (a tied embedding is the head)."""
    tensors = _core.gguf_open(str(path)).tensors()
    names = {t[0] for t in tensors}
    untied = {"token_embd.weight"} if "output.weight" in names else set()
    return sum(t[5] for t in tensors if t[0] not in untied)


class Decoder:
    def __init__(
        self,
        path: Path,
        n_threads: int,
        repack: bool | None = None,
        numerics: Literal["exact", "fast"] = "exact",
    ) -> None:
        model = ruvllm.Model(
            path, n_threads=n_threads, repack=repack, numerics=numerics, witness=False
        )
        self.core = model._open()
        self.vocab = self.core.info()["n_vocab"]

    def decode(self, n: int) -> float:
        """Tokens per second of n greedy steps after a prompt of 8."""
        s = _core.session_new(self.core, n + 16)
        s.eval(list(range(1, 9)), False, None)
        t = time.perf_counter()
        for i in range(n):
            s.eval([(i * 37) % self.vocab], False, None)
        return n / (time.perf_counter() - t)

    def prefill(self, n: int) -> float:
        """Prompt tokens per second."""
        s = _core.session_new(self.core, n)
        ids = (np.arange(n, dtype=np.int32) * 31) % self.vocab
        t = time.perf_counter()
        s.eval(ids, False, None)
        return n / (time.perf_counter() - t)


def load_ms(path: Path) -> float:
    t = time.perf_counter()
    model = ruvllm.Model(path, n_threads=1, witness=False)
    ms = 1e3 * (time.perf_counter() - t)
    model.close()
    return ms


def main() -> None:
    p = options(__doc__)
    p.add_argument("--shape", default="lfm2-350m")
    p.add_argument("--types", help="default: q4_0,q8_0,f16, with --quick q4_0,f16")
    p.add_argument("--models", type=Path, help="keep the generated files here")
    args = p.parse_args()
    types = args.types or ("q4_0,f16" if args.quick else "q4_0,q8_0,f16")
    rounds, steps = (3, 8) if args.quick else (7, 32)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.models or Path(tmp)
        make(args.shape, folder / f"{args.shape}-f16.gguf", "f16", args.seed)  # the others' source
        for type in types.split(","):
            path = make(args.shape, folder / f"{args.shape}-{type}.gguf", type, args.seed)
            size = bytes_per_token(path)
            for n_threads in (1, 2):
                d = Decoder(path, n_threads)
                d.decode(2)
                band, tg, pp = median_of(
                    rounds,
                    lambda t=n_threads: _core.read_bandwidth(t, 1 << 29),
                    lambda d=d: d.decode(steps),
                    lambda d=d: d.prefill(64 if args.quick else 256),
                )
                name = f"{args.shape} {type} {n_threads} thread{'s' * (n_threads > 1)}"
                share = tg * size / band
                judged = type == "q4_0" and n_threads == 1
                figures += [
                    Figure(f"{name}: decode", tg, "tok/s"),
                    Figure(f"{name}: prefill", pp, "tok/s"),
                    Figure(f"{name}: read bandwidth", band / 1e9, "GB/s"),
                    Figure(
                        f"{name}: weights read / bandwidth", share, "",
                        goal=">= 0.5" if judged else None,
                        holds=share >= 0.5 if judged else None,
                    ),
                ]  # fmt: skip
        big = folder / "llama-1gb-f16.gguf"
        if not big.exists():
            write(big, SHAPES["llama-1gb"], args.seed, VOCAB)
        load_ms(big)
        (ms,) = median_of(rounds, lambda: load_ms(big))
        gb = big.stat().st_size / 1e9
        name = f"open a {gb:.2f} GB file with 128 k tokens, warm"
        figures.append(Figure(name, ms, "ms", goal="< 300", holds=ms < 300))
    report(args, figures)


if __name__ == "__main__":
    main()
