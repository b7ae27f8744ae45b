"""What does the witness log cost a request, and how fast does it write?

Prints one object per figure: {figure, value, unit, peer, ratio, goal, holds}.  The peer is what a
program would do without the queue: an INSERT and COMMIT of the same row through Python's sqlite3,
WAL and synchronous=NORMAL, in the calling thread.

    python benchmarks/bench_witness.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruvllm.memory import WitnessEntry, WitnessLog

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


def measure(quick: bool) -> list[dict[str, Any]]:
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
        assert stats["written"] == 200 + n + 1000 + n_critical and not stats["dropped"]
        bytes_per_row = (folder / "log" / "memory.db").stat().st_size / stats["written"]
        peer, peer_rate = direct(folder / "direct", n)
    ms = 1000.0
    rows = [
        ("record_p50", statistics.median(record), "us", statistics.median(peer), None),
        ("record_p99", p99(record), "us", p99(peer), 10.0),
        ("put_p50", statistics.median(put), "us", None, None),
        ("put_p99", p99(put), "us", None, 10.0),
        ("rows_per_s", rate, "1/s", peer_rate, None),
        ("record_critical_p50", statistics.median(critical) / ms, "ms", None, None),
        ("bytes_per_entry", bytes_per_row, "B", None, None),
        ("get_p50", statistics.median(get), "us", None, None),
    ]
    out = []
    for figure, value, unit, other, goal in rows:
        ratio = None if other is None else value / other
        holds = None if goal is None else value <= goal
        peer_value = None if other is None else round(other, 3)
        out.append(
            {
                "figure": f"witness_{figure}",
                "value": round(value, 3),
                "unit": unit,
                "peer": peer_value,
                "ratio": None if ratio is None else round(ratio, 3),
                "goal": goal,
                "holds": holds,
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    args = parser.parse_args()
    figures = measure(args.quick)
    if args.json:
        print(json.dumps(figures, indent=1))
        return
    for f in figures:
        peer = "" if f["peer"] is None else f"  peer {f['peer']} ({f['ratio']} of it)"
        goal = "" if f["goal"] is None else f"  goal {f['goal']}: {'yes' if f['holds'] else 'NO'}"
        print(f"{f['figure']:28} {f['value']:>12} {f['unit']:4}{peer}{goal}")


if __name__ == "__main__":
    main()
