"""What every benchmark shares: options, the machine in words, figures as JSON and as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Figure:
    """One measured figure. ratio: value / peer. holds: whether the goal is met (None: no goal)."""

    figure: str
    value: float
    unit: str
    peer: str | None = None
    ratio: float | None = None
    goal: str | None = None
    holds: bool | None = None


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options every benchmark takes."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    p.add_argument("--quick", action="store_true", help="under 60 s, less certain")
    p.add_argument("--seed", type=int, default=0)
    return p


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and seed: what every figure carries."""
    import numpy

    import ruvllm
    from ruvllm import _core

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    return {
        "machine": f"{cpu} ({_core.cpu()['features']}), {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 2),
        "versions": f"ruvllm {ruvllm.__version__}, Python {platform.python_version()}, "
        f"NumPy {numpy.__version__}, {platform.system()} {platform.release()}",
        "seed": args.seed,
        "quick": args.quick,
        "date": time.strftime("%Y-%m-%d"),
    }


def report(args: argparse.Namespace, figures: list[Figure]) -> None:
    """Print the figures; with --json write them too."""
    for f in figures:
        peer = f"  {f.ratio:6.2f} x {f.peer}" if f.ratio is not None else ""
        goal = f"  goal {f.goal}: {'holds' if f.holds else 'MISSED'}" if f.goal else ""
        print(f"{f.figure:44s} {f.value:12.3f} {f.unit:8s}{peer}{goal}")
    if args.json:
        about = circumstances(args)
        write_json(Path(args.json), [{**dataclasses.asdict(f), **about} for f in figures])


def write_json(path: Path, figures: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")


def median_of(n: int, *calls: Callable[[], float]) -> list[float]:
    """Median of each call over n interleaved rounds."""
    rounds = [[call() for call in calls] for _ in range(n)]
    return [sorted(column)[n // 2] for column in zip(*rounds, strict=True)]
