"""What does exact arithmetic cost?  The same file opened with numerics="exact" and "fast", in
rounds that take turns: decoding, a prompt of 512, 16 rows at once.

The cost is the part of fast's speed that exact does not reach, the median of the rounds.  Where
fast makes no difference to the weights both run the same code, and the cost says how much the
machine wavers."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from _common import Figure, options, report
from bench_decode import Decoder
from random_model import make

TYPES = "q4_0,q4_k,q8_0,f16,bf16,f32"


def compare(
    rounds: int, exact: Callable[[], float], fast: Callable[[], float]
) -> tuple[float, float, float]:
    """Medians of both rates, and of the cost of each round, in percent."""
    pairs = []
    for i in range(rounds):
        if i % 2:
            b, a = fast(), exact()
        else:
            a, b = exact(), fast()
        pairs.append((a, b))
    cost = statistics.median(100 * (1 - a / b) for a, b in pairs)
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, cost


def measure(path: Path, name: str, n_threads: int, rounds: int, quick: bool) -> list[Figure]:
    """The figures of one file with one number of threads."""
    exact, fast = (Decoder(path, n_threads, numerics=kind) for kind in ("exact", "fast"))
    for d in (exact, fast):
        d.decode(2)
        d.prefill(64)
    peer = "fast" if fast.core.info()["numerics"] == "fast" else "fast (the same code)"
    steps, prompt = (8, 128) if quick else (32, 512)
    figures = []
    for what, goal, call in (
        ("decode", 10, lambda d: d.decode(steps)),
        (f"prefill of {prompt}", 25, lambda d: d.prefill(prompt)),
        ("16 rows", None, lambda d: statistics.median(d.prefill(16) for _ in range(5))),
    ):
        a, b, cost = compare(rounds, lambda c=call: c(exact), lambda c=call: c(fast))
        about = f"{name} {n_threads} thread{'s' * (n_threads > 1)}: {what}"
        figures += [
            Figure(about, a, "tok/s", peer, a / b),
            Figure(
                f"{about}, cost of exact", cost, "%",
                goal=f"<= {goal} %" if goal else None,
                holds=cost <= goal if goal else None,
            ),
        ]  # fmt: skip
    return figures


def main() -> None:
    p = options(__doc__)
    p.add_argument("--shape", help="default: lfm2-350m, with --quick llama-100m")
    p.add_argument("--types", help=f"default: {TYPES}, with --quick q4_0,bf16")
    p.add_argument("--threads", help="default: 1,2, with --quick 1")
    p.add_argument("--models", type=Path, help="keep the generated files here")
    args = p.parse_args()
    shape = args.shape or ("llama-100m" if args.quick else "lfm2-350m")
    types = (args.types or ("q4_0,bf16" if args.quick else TYPES)).split(",")
    threads = [int(n) for n in (args.threads or ("1" if args.quick else "1,2")).split(",")]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.models or Path(tmp)
        make(shape, folder / f"{shape}-f16.gguf", "f16", args.seed)  # the others' source
        for type in types:
            path = make(shape, folder / f"{shape}-{type}.gguf", type, args.seed)
            for n in threads:
                rounds = 3 if args.quick else 7
                figures += measure(path, f"{shape} {type}", n, rounds, args.quick)
    report(args, figures)


if __name__ == "__main__":
    main()
