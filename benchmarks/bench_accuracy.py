"""How far does rounding activations to 8 bits move the logits?

Random models of three architectures and many seeds in every quantised type, 256 random tokens
each. The reference is the same file with its weights written as F32, so that activations stay
exact. Two figures per architecture and type, over all seeds:

    KL              mean over positions of KL(reference || rounded), in thousandths of a nat
    another first   positions with another most likely token although the reference's first two
                    are more than 0.3 apart

Peer: llama.cpp with the same file, one thread, keys and values in F32, no flash attention
(--peer-python: a Python that has llama_cpp). A random model has no margin between its tokens, a
trained one has: another first is rarer there.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from pathlib import Path

import numpy as np
from _common import Figure, options, report
from numpy.typing import NDArray
from peer_pipe import Worker, WorkerError
from random_model import SHAPES, write

import ruvllm
from ruvllm.engine.quantize import quantize

TYPES = "q4_0,q4_1,q5_0,q5_1,q8_0,q2_k,q3_k,q4_k,q5_k,q6_k,iq4_nl,iq4_xs"
QUICK = "q4_0,q8_0,q4_k"
NAMES = ("small-llama", "small-qwen3", "small-lfm2")
VOCAB = (
    Path(__file__).parents[1] / "tests/golden/vocab/ggml-vocab-gpt-2.gguf"
)  # llama.cpp wants one
N_TOKENS, APART = 256, 0.3

Logits = NDArray[np.float32]  # (N_TOKENS, vocabulary)


def ours(path: Path, ids: list[int]) -> Logits:
    with ruvllm.Model(path, n_threads=1, witness=False) as model:
        return np.array(model.logits(ids))


def theirs(peer: Worker, path: Path, ids: list[int]) -> Logits:
    data = base64.b64decode(peer.ask("logits", str(path), ids))
    return np.frombuffer(data, np.float32).reshape(len(ids), -1)


def log_softmax(x: Logits) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y -= y.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


def divergence(full: Logits, other: Logits) -> float:
    p, q = log_softmax(full), log_softmax(other)
    return 1e3 * float((np.exp(p) * (p - q)).sum(-1).mean())


def another_first(full: Logits, other: Logits) -> int:
    top = np.sort(full, -1)
    clear = top[:, -1] - top[:, -2] > APART
    return int((clear & (full.argmax(-1) != other.argmax(-1))).sum())


def readings(shape: str, kind: str, seed: int, folder: Path, peer: Worker | None) -> list[Logits]:
    """Logits of the reference, of ours and, with a peer, of the peer's."""
    made, path, full = (folder / f"{name}.gguf" for name in ("f16", "q", "f32"))
    if not made.exists():
        write(made, SHAPES[shape], seed, VOCAB)
    quantize(made, path, kind, pure=True)
    quantize(path, full, "f32", pure=True, allow_requantize=True)
    with ruvllm.Model(path, witness=False) as model:
        n_vocab = model.info.n_vocab
    ids = np.random.default_rng(seed).integers(0, n_vocab, N_TOKENS).tolist()
    rows = [ours(full, ids), ours(path, ids)]
    if peer:
        rows.append(theirs(peer, path, ids))
    return rows


def measure(args: argparse.Namespace, peer: Worker | None) -> list[Figure]:
    kinds = (args.types or (QUICK if args.quick else TYPES)).split(",")
    seeds = range(args.seed, args.seed + (1 if args.quick else args.seeds))
    found: dict[tuple[str, str], list[list[Logits]]] = {}
    for shape in NAMES:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                for kind in kinds:
                    rows = readings(shape, kind, seed, Path(folder), peer)
                    found.setdefault((shape, kind), []).append(rows)
    out = []
    for (shape, kind), runs in found.items():
        columns = list(zip(*runs, strict=True))
        kl = [
            float(np.mean([divergence(r[0], r[i]) for r in runs])) for i in range(1, len(columns))
        ]
        first = [sum(another_first(r[0], r[i]) for r in runs) for i in range(1, len(columns))]
        label, name = f"{shape} {kind}", f"llama.cpp {peer.about['version']}" if peer else None
        ratio = kl[0] / kl[1] if peer else None
        out += [
            Figure(f"{label}: KL", kl[0], "mnat", name, ratio, "<= 1.5 x" if ratio else None,
                   ratio <= 1.5 if ratio else None),
            Figure(f"{label}: another first, of {N_TOKENS * len(runs)}", first[0], "tokens",
                   f"{name}: {first[1]}" if peer else None, None, "0", first[0] == 0),
        ]  # fmt: skip
    return out


def main() -> None:
    p = options(__doc__)
    p.add_argument("--types", help=f"of {TYPES}")
    p.add_argument("--seeds", type=int, default=4, help="models per architecture and type")
    p.add_argument("--peer-python", default=sys.executable, help="Python that has llama_cpp")
    args = p.parse_args()
    try:
        peer = Worker("peer_llama.py", args.peer_python)
    except WorkerError as e:
        print(f"accuracy: llama.cpp is left out: {e}", file=sys.stderr)
        peer = None
    try:
        figures = measure(args, peer)
    finally:
        if peer:
            peer.close()
    report(args, figures)


if __name__ == "__main__":
    main()
