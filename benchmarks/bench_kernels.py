"""How fast does one thread read weights through mul, against plain reading?

Rows of K values in a buffer larger than the caches, in windows of a few milliseconds, of which the
median counts.  (The best one is of what the caches kept from the round before.)  One column is
decode (GB/s of weights; of quantised types repacked, as a model holds them from its second token
on, and as they lie in the file), 4 and 64 columns are batches and prefill (1e9 multiply-adds per
second).

    python benchmarks/bench_kernels.py [--types q4_0,q8_0] [--k 1024] [--mib 256] [--mask 15]
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from _common import Figure, options, report
from numpy.typing import NDArray

import ruvllm
from ruvllm import _core


def aligned(n_bytes: int) -> NDArray[np.uint8]:
    """Zeros that start on a multiple of 64 bytes."""
    raw = np.zeros(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes]


def rate(
    number: int, weights: NDArray[np.uint8], k: int, n_cols: int, window: int, panels: bool
) -> float:
    """Rows per second in the median window of that many rows, over three rounds.

    weights: uint8 (rows, row bytes), or of panels (rows / 16, panel bytes).
    """
    x = np.linspace(-1, 1, n_cols * k, dtype=np.float32)
    out = np.empty(n_cols * window, np.float32)
    seconds = []
    step = window // 16 if panels else window
    for first in 3 * list(range(0, len(weights) - step + 1, step)):
        part = weights[first : first + step]
        start = time.perf_counter()
        _core.mul(number, part, window, x, k, out, panels)
        seconds.append(time.perf_counter() - start)
    return window / statistics.median(seconds)


def measure(name: str, k: int, mib: int) -> dict[str, float]:
    """GB/s of weights with one column (of rows, and of panels where there are such), and 1e9
    multiply-adds per second with 4 and 64."""
    number, values, size = _core.dtypes()[name]
    row = k // values * size
    n_rows = (mib << 20) // row // 16 * 16
    # every byte 0x21: a legal, finite number or scale in every format
    rows = np.full(n_rows * row, 0x21, np.uint8).reshape(-1, row)
    window = (8 << 20) // row // 16 * 16

    def decode(weights: NDArray[np.uint8], panels: bool) -> float:
        return rate(number, weights, k, 1, window, panels) * row / 1e9

    found = {"rows": decode(rows, False)}
    weights, panels = rows, False
    try:
        n_bytes = _core.panel_bytes(number, n_rows, k)
    except ruvllm.ArgumentError:
        found["decode"] = found.pop("rows")
    else:
        weights, panels = aligned(n_bytes), True
        _core.panel_pack(number, rows, n_rows, k, weights)
        weights = weights.reshape(n_rows // 16, -1)
        found["decode"] = decode(weights, True)
    for n_cols in (4, 64):
        wide = (1 << 20) // row // 16 * 16
        part = weights[: window // 16] if panels else weights[:window]
        found[f"{n_cols} columns"] = rate(number, part, k, n_cols, wide, panels) * k * n_cols / 1e9
    return found


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
    read = statistics.median(_core.read_bandwidth(1, 128 << 20) for _ in range(9)) / 1e9
    figures = [Figure("read bandwidth", read, "GB/s")]
    for name in args.types.split(","):
        for what, value in measure(name, args.k, 64 if args.quick else args.mib).items():
            if "columns" in what:
                figures.append(Figure(f"{name}: {what}", value, "GMAC/s"))
            else:
                label = "decode, not repacked" if what == "rows" else "decode"
                figures.append(
                    Figure(f"{name}: {label}", value, "GB/s", "plain reading", value / read)
                )
    report(args, figures)


if __name__ == "__main__":
    main()
