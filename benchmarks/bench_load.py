"""How long from opening a model to its first token, and do the pages its weights lie in matter?

A file whose cached pages are of 4 KiB (written in such pieces) is compared with the same file read
ahead from the disk by opening it, which asks for pages of 2 MiB."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import Figure, median_of, options, report
from bench_decode import Decoder
from random_model import make

import ruvllm
from ruvllm import _core

PIECE = 4096


def forget(path: Path) -> None:
    """Out of the page cache."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_small_pages(src: Path, out: Path) -> None:
    """A copy whose cached pages are small: the cache has them as large as they were written."""
    with open(src, "rb") as f, open(out, "wb", buffering=0) as g:
        while piece := f.read(PIECE):
            g.write(piece)
        os.fsync(g.fileno())


def first_token(path: Path, n_threads: int, cold: bool) -> float:
    """Milliseconds from opening to the logits after a prompt of 8."""
    if cold:
        forget(path)
    t = time.perf_counter()
    with ruvllm.Model(path, n_threads=n_threads, witness=False) as model:
        session = _core.session_new(model._open(), 16)
        session.eval(np.arange(8, dtype=np.int32), False, None)
        return 1e3 * (time.perf_counter() - t)


def huge(path: Path) -> float:
    """Part of a mapped file that lies in huge pages."""
    mapped = size = 0
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key.split(" ", 1)[0]:
            here = line.endswith(str(path))
        elif here and key in ("Size", "FilePmdMapped"):
            kib = int(value.split()[0])
            size, mapped = size + kib * (key == "Size"), mapped + kib * (key != "Size")
    return mapped / size if size else 0.0


def main() -> None:
    p = options(__doc__)
    p.add_argument("--shape", default="lfm2-350m")
    p.add_argument("--type", default="f16")
    args = p.parse_args()
    if not hasattr(os, "posix_fadvise"):
        print("load: left out: wants Linux")
        return
    rounds, steps = (5, 8) if args.quick else (9, 32)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / f"{args.shape}.gguf", Path(folder) / "small.gguf"
        make(args.shape, path, args.type, args.seed)
        in_small_pages(path, small)
        for n in (1, 2):
            name = f"{args.shape} {args.type} {n} thread{'s' * (n > 1)}"
            cold, warm = median_of(
                rounds,
                lambda n=n: first_token(path, n, True),
                lambda n=n: first_token(path, n, False),
            )
            figures += [
                Figure(f"{name}: first token, from the disk", cold, "ms"),
                Figure(f"{name}: first token, from memory", warm, "ms"),
            ]
            one, other = (Decoder(p, n, repack=False) for p in (path, small))  # read the file
            large, little = median_of(
                rounds, lambda d=one: d.decode(steps), lambda d=other: d.decode(steps)
            )
            parts = huge(path), huge(small)
            del one, other  # a mapped page stays in the cache
            figures.append(
                Figure(
                    f"{name}: decode from huge pages", large, "tok/s", "4 KiB pages", large / little
                )
            )
        figures += [
            Figure("part in huge pages, read ahead from the disk", 100 * parts[0], "%"),
            Figure("part in huge pages, written in 4 KiB", 100 * parts[1], "%"),
        ]
    report(args, figures)


if __name__ == "__main__":
    main()
