"""The picture of bench_peers: bars of ruvllm / llama.cpp, a panel per question and thread count.

python benchmarks/peer_plot.py FILE.json FILE.png draws that of an earlier run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GOALS = {"decode": 1.1, "prefill": 1.5, "rows": 1.5, "KV": 1.2}
F16_PREFILL = 1.2
MOST = 4.0  # where bars are cut; the number above a bar is whole
COLORS = ("#2f5d8a", "#6fa3cc", "#d98841", "#8c8c8c", "#5b8f5b", "#a05c7b")
INK, GOAL = "#333333", "#b3261e"
Ratios = Mapping[tuple[str, str, str, int], float]


def _goal(what: str, type: str) -> float:
    if what == "prefill" and type == "f16":
        return F16_PREFILL
    return GOALS[what.rpartition(" ")[2]]


def ratios_of(figures: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, int], float]:
    """By (what, shape, type, threads), from the figures' names."""
    out = {}
    for f in figures:
        m = re.fullmatch(r"(\S+) (\S+) (\d+) threads?: (.+)", f["figure"])
        if m is None or f["ratio"] is None or "llama" not in f["peer"]:
            continue
        what = m[4].removesuffix(" at once").split(", ")[-1]
        if what in ("decode", "prefill") or what.endswith(("rows", "KV")):
            out[what, m[1], m[2], int(m[3])] = f["ratio"]
    return out


def plot(path: Path, figures: Sequence[Mapping[str, Any]]) -> None:
    """Write the PNG."""
    ratios = ratios_of(figures)
    peer = next((f["peer"] for f in figures if f["peer"] and "llama" in f["peer"]), "")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    threads = sorted({n for *_, n in ratios})
    panels = [p for p in ("decode", "prefill", "at once", "depth") if _of(p, ratios)]
    if not panels:
        return
    n_bars = max(len(_of(p, ratios, n)) for p in panels for n in threads)
    size = (len(threads) * max(4.6, 0.44 * n_bars + 1.6), 2.7 * len(panels) + 0.9)
    figure, axes = plt.subplots(
        len(panels), len(threads), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    for i, panel in enumerate(panels):
        for j, n in enumerate(threads):
            _panel(axes[i][j], _of(panel, ratios, n))
            suffix = f", {n} thread{'s' * (n > 1)}"
            axes[i][j].set_title(_title(panel) + suffix, fontsize=10, loc="left", color=INK)
        highest = max(max(min(ratio, MOST), goal) for *_, ratio, goal in _of(panel, ratios))
        axes[i][0].set_ylim(0, 1.15 * max(1.2, highest))  # of the row: the axis is shared
        axes[i][0].set_ylabel("times llama.cpp", fontsize=9, color=INK)
    wide = len(threads) > 1
    about = f"same file and threads, one run ({peer})"
    figure.suptitle(
        "ruvllm against llama.cpp" + (": " if wide else "\n") + about,
        fontsize=12 if wide else 10, color=INK, ha="left", x=0.01,
    )  # fmt: skip
    figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _of(panel: str, ratios: Ratios, n: int | None = None) -> list[tuple[str, str, float, float]]:
    """(shape, label, ratio, goal) of a panel's bars."""
    out = []
    for (what, shape, type, threads), ratio in ratios.items():
        mine = {"at once": what.endswith("rows"), "depth": what.endswith("KV")}
        if mine.get(panel, what == panel) and n in (None, threads):
            label = type.upper() if panel == what else what
            out.append((shape, label, ratio, _goal(what, type)))
    return out


def _title(panel: str) -> str:
    return {
        "decode": "decode",
        "prefill": "prefill",
        "at once": "rows at once",
        "depth": "decode at depth",
    }[panel]


def _panel(axes: Any, bars: list[tuple[str, str, float, float]]) -> None:
    """Bars grouped by shape, coloured by label; a red tick on each bar's place is its goal."""
    shapes = list(dict.fromkeys(b[0] for b in bars))
    labels = list(dict.fromkeys(b[1] for b in bars))
    width = min(0.84 / len(labels), 0.28)
    for shape, label, ratio, goal in bars:
        k = labels.index(label)
        x = shapes.index(shape) + (k - (len(labels) - 1) / 2) * width
        axes.bar(x, min(ratio, MOST), 0.9 * width, color=COLORS[k % len(COLORS)], zorder=2)
        axes.plot([x - width / 2, x + width / 2], [goal, goal], color=GOAL, lw=1.6, zorder=3)
        axes.annotate(
            f"{ratio:.2f}", (x, max(min(ratio, MOST), goal)), (0, 3), textcoords="offset points",
            ha="center", va="bottom", fontsize=7.5,
            color=INK if ratio >= goal else GOAL,
            fontweight="normal" if ratio >= goal else "bold",
        )  # fmt: skip
    axes.axhline(1, color="#777777", lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_xticks(range(len(shapes)), shapes, fontsize=9, color=INK)
    axes.set_xlim(-0.6, max(len(shapes), 1) - 0.4)
    axes.tick_params(axis="y", labelsize=8, colors=INK)
    axes.tick_params(axis="both", length=0)
    axes.grid(axis="y", color="#e6e6e6", lw=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [Patch(color=COLORS[i % len(COLORS)]) for i in range(len(labels))]
    keys.append(Line2D([], [], color=GOAL, lw=1.6))
    axes.legend(
        keys, [*labels, "goal"], ncols=len(keys), fontsize=7.5, frameon=False,
        loc="lower right", bbox_to_anchor=(1.01, 0.99), borderaxespad=0, handlelength=1.1,
        columnspacing=1, labelcolor=INK,
    )  # fmt: skip


if __name__ == "__main__":
    plot(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text()))
