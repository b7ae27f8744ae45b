"""What does the witness log cost a request, and how fast does it write?

The peer is what a program would do without the queue: an INSERT and COMMIT of the same row through
Python's sqlite3, WAL and synchronous=NORMAL, in the calling thread.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _common import Figure, options, report

from ruvllm.memory import WitnessEntry, WitnessLog

PEER = "sqlite3, a commit per row"

ENTRY = WitnessEntry(
    kind="chat",
    request_id="0123456789abcdef",
    session_id="session",
    model_name="tiny",
    model_digest="sha256:" + "0" * 64,
    prompt_text="word " * 100,
    prompt_ids=tuple(range(130)),
    output_text="word " * 100,
    output_ids=tuple(range(130)),
    seed=7,
    params={"temperature": 0.7, "top_k": 40, "top_p": 0.9, "stop": ["\n"], "max_tokens": 128},
    finish_reason="stop",
    n_prompt=130,
    n_output=130,
    total_ms=1234.5,
    prefill_ms=100.0,
    generation_ms=1100.0,
    engine={"version": "0.1.0", "kernels": ["avx2"], "n_threads": 2, "kv_type": "f16"},
)


def each_us(f: Callable[[], object], n: int) -> list[float]:
    out = []
    for _ in range(n):
        t = time.perf_counter_ns()
        f()
        out.append((time.perf_counter_ns() - t) / 1000)
    return sorted(out)


def p99(sorted_values: list[float]) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(0.99 * len(sorted_values)))]


def direct(folder: Path, n: int) -> tuple[list[float], float]:
    """The peer: the same row, inserted and committed where it arises."""
    with WitnessLog(folder):
        pass
    db = sqlite3.connect(folder / "memory.db", isolation_level=None)
    db.execute("PRAGMA synchronous = NORMAL")
    row = {"id": "", "ts_ms": 0, **ENTRY.to_row()}
    names = ", ".join(row)
    marks = ", ".join(":" + name for name in row)
    sql = f"INSERT INTO witness ({names}) VALUES ({marks})"
    numbers = iter(range(n))

    def put() -> None:
        db.execute(sql, {**row, **ENTRY.to_row(), "id": f"{next(numbers):036}"})

    t = time.perf_counter()
    times = each_us(put, n)
    rate = n / (time.perf_counter() - t)
    db.close()
    return times, rate


def measure(quick: bool) -> list[Figure]:
    n = 2000 if quick else 9000
    n_critical = 30 if quick else 300
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with WitnessLog(folder / "log") as log:
            each_us(lambda: log.record(ENTRY), 200)
            log.flush()
            start = time.perf_counter()
            record = each_us(lambda: log.record(ENTRY), n)
            log.flush()
            rate = n / (time.perf_counter() - start)
            row = ENTRY.to_row()
            put = each_us(lambda: log._current().witness_put(row), 1000)
            log.flush()
            critical = each_us(lambda: log.record(ENTRY, critical=True), n_critical)
            id = log.list(1)[0].id or ""
            get = each_us(lambda: log.get(id), 200)
            stats = log.stats()
        n_rows = 200 + n + 1000 + n_critical
        if stats["written"] != n_rows or stats["dropped"]:
            raise SystemExit(f"wrote {stats['written']} of {n_rows} rows")
        bytes_per_row = (folder / "log" / "memory.db").stat().st_size / n_rows
        peer, peer_rate = direct(folder / "direct", n)
    fast, put_fast = p99(record) < 10, p99(put) < 10
    middle = statistics.median
    return [
        Figure("record(): p50", middle(record), "us", PEER, middle(record) / middle(peer)),
        Figure("record(): p99", p99(record), "us", PEER, p99(record) / p99(peer), "< 10", fast),
        Figure("of that the core's put: p50", middle(put), "us"),
        Figure("of that the core's put: p99", p99(put), "us", goal="< 10", holds=put_fast),
        Figure("entries written per second", rate, "1/s", PEER, rate / peer_rate),
        Figure("record(critical=True), to the disk: p50", middle(critical) / 1000, "ms"),
        Figure("get() by id: p50", middle(get), "us"),
        Figure("file per entry without embeddings", bytes_per_row, "bytes"),
    ]


def main() -> None:
    args = options(__doc__).parse_args()
    report(args, measure(args.quick))


if __name__ == "__main__":
    main()
