"""What do keys and values in 8 and 4 bits cost a model, and what do they save?

check_kv (ruvllm/engine/kv_check.py) for every store, with rotated keys and without: bytes of a
position, mean KL divergence from F16 keys and values in thousandths of a nat, change of perplexity,
and what the gate says. Every position that counts reads from the store, whose tail is as short as
can be. Last per trained model, all keys and values in one type and none in F16 (kv_type=).

Every model reads what it wrote itself, the trained ones after tasks that they know. Models with
random weights, in the shapes of real ones, hardly attend to anything: they say what the bytes are
and that nothing is broken, not what a store costs.

    python benchmarks/bench_kv.py [--models a.gguf,b.gguf] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _common import Figure, options, report
from random_model import make

import ruvllm
from ruvllm.engine.model import bundled_model

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "models"
STORES = (("q8_0", True), ("q8_0", False), ("k8v4", True), ("q4_0", True), ("q4_0", False))
SHAPES = ("lfm2-350m", "qwen3-0.6b")
RATIOS = {"q8_0": 0.54, "q4_0": 0.30}  # goals, of heads that fill their blocks
KL = 2.0  # goal of q8_0, thousandths of a nat


def written(path: Path, seed: int) -> list[int]:
    """Ids drawn from the model's own distribution, as many as are read in one go."""
    with ruvllm.Model(path, witness=False) as m:
        n = min(m.n_ctx, 1024)
        result = m.generate([0], max_tokens=n - 1, temperature=1.0, seed=seed, ignore_eos=True)
    return [0, *result.tokens]


def checks(name: str, path: Path, tokens: list[int] | None, seed: int) -> Iterator[Figure]:
    with ruvllm.Model(path, witness=False) as m:
        whole = m.info.head_dim % 32 == 0
    for store, rotate in STORES:
        found = ruvllm.check_kv(
            path,
            kv_store=store,  # type: ignore[arg-type]
            kv_rotate=rotate,
            tokens=tokens,
            seed=seed,
            remember=False,
        )
        label = f"{name} {store}{'' if rotate else ' not rotated'}"
        if rotate:
            most = RATIOS.get(store) if whole else None
            yield Figure(f"{label}: bytes of a position", found.bytes_store, "B", "F16",
                         found.ratio, f"<= {most} x" if most else None,
                         found.ratio <= most if most else None)  # fmt: skip
        trained = tokens is None and (store, rotate) == ("q8_0", True)
        yield Figure(f"{label}: KL", 1e3 * found.kl_mean, "mnat", None, None,
                     f"<= {KL}" if trained else None,
                     1e3 * found.kl_mean <= KL if trained else None)  # fmt: skip
        yield Figure(f"{label}: largest KL", 1e3 * found.kl_max, "mnat")
        yield Figure(f"{label}: perplexity", found.perplexity_change,
                     "% passed" if found.passed else "% refused")  # fmt: skip


def everywhere(name: str, path: Path, seed: int) -> Iterator[Figure]:
    """KL where no position is in F16, the newest neither, over random ids of the vocabulary."""
    with ruvllm.Model(path, witness=False) as m:
        n = min(m.n_ctx, 256)
        ids = np.random.default_rng(seed).integers(4, m.info.n_vocab, (8, n))
    rows = {}
    for kind in ("f16", "q8_0", "q4_0"):
        with ruvllm.Model(path, kv_type=kind, witness=False) as m:  # type: ignore[arg-type]
            x = np.concatenate([m.logits(row.tolist()) for row in ids]).astype(np.float64)
        x -= x.max(-1, keepdims=True)
        rows[kind] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    p = rows.pop("f16")
    for kind, q in rows.items():
        kl = 1e3 * float((np.exp(p) * (p - q)).sum(-1).mean())
        yield Figure(f"{name} {kind} everywhere, not rotated: KL", kl, "mnat")


def trained(args: argparse.Namespace) -> list[Path]:
    given = [Path(p) for p in args.models.split(",")] if args.models else []
    return given or [Path(bundled_model()), GOLDEN / "tiny-B.gguf"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--models", help="trained files that know the tasks of the bundled model")
    args = parser.parse_args()
    figures: list[Figure] = []
    for path in trained(args):
        figures += checks(path.stem, path, None, args.seed)
        figures += everywhere(path.stem, path, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        small = GOLDEN / "llama-d256-bf16.gguf"
        paths = {small.stem: small}
        for shape in () if args.quick else SHAPES:
            paths[shape] = make(shape, Path(folder) / f"{shape}.gguf", "f16", args.seed)
        for name, path in paths.items():
            figures += checks(f"random {name}", path, written(path, args.seed), args.seed)
    report(args, figures)


if __name__ == "__main__":
    main()
