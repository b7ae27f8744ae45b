"""How fast does one thread read weights through mul, against plain reading?

Rows of K values in a buffer larger than the caches; windows of a few milliseconds, the best one
counts, since other programs only ever slow a window down. One column is decode (GB/s of weights),
64 columns are prefill (1e9 multiply-adds per second, weights in cache).

    python benchmarks/bench_kernels.py [--types q4_0,q8_0] [--k 1024] [--mib 256] [--mask 15]
"""

from __future__ import annotations

import time

import numpy as np
from _common import Figure, options, report
from numpy.typing import NDArray

from ruvllm import _core


def best_rate(number: int, weights: NDArray[np.uint8], k: int, n_cols: int, window: int) -> float:
    """Rows per second in the best window of that many rows. weights: uint8 (rows, row bytes)."""
    x = np.linspace(-1, 1, n_cols * k, dtype=np.float32)
    out = np.empty(n_cols * window, np.float32)
    best = 0.0
    for first in range(0, len(weights) - window + 1, window):
        part = weights[first : first + window]
        start = time.perf_counter()
        _core.mul(number, part, window, x, k, out)
        best = max(best, window / (time.perf_counter() - start))
    return best


def measure(name: str, k: int, mib: int) -> tuple[float, float]:
    """GB/s of weights with one column, 1e9 multiply-adds per second with 64."""
    number, values, size = _core.dtypes()[name]
    row = k // values * size
    # every byte 0x21: a legal, finite number or scale in every format
    weights = np.full((mib << 20) // row * row, 0x21, np.uint8).reshape(-1, row)
    decode = max(best_rate(number, weights, k, 1, (8 << 20) // row) for _ in range(3))
    prefill = best_rate(number, weights[: (8 << 20) // row], k, 64, (1 << 20) // row)
    return decode * row / 1e9, prefill * k * 64 / 1e9


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--types", default=",".join(_core.dtypes()))
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument(
        "--mask",
        type=int,
        default=15,
        choices=range(16),
        metavar="0..15",
        help="instruction sets, see rvk.h",
    )
    args = parser.parse_args()
    _core.cpu_limit(args.mask)
    read = max(_core.read_bandwidth(1, 128 << 20) for _ in range(3)) / 1e9
    figures = [Figure("read bandwidth", read, "GB/s")]
    for name in args.types.split(","):
        decode, prefill = measure(name, args.k, 64 if args.quick else args.mib)
        figures += [
            Figure(f"{name}: decode", decode, "GB/s", "plain reading", decode / read),
            Figure(f"{name}: prefill, 64 columns", prefill, "GMAC/s"),
        ]
    report(args, figures)


if __name__ == "__main__":
    main()
