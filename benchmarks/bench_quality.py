"""What does each quantised type cost in quality?

A random model that every type fits (llama, 256 wide, golden), and models trained on small tasks,
whose rows of 64 to 304 values are not whole blocks of most types: how many matrices fell back to
another type is part of the table.

    bits per weight        of all tensors
    RMSE of weights        of all matrices together, as a part of their size
    KL                     mean over positions of KL(full || quantised), in thousandths of a nat
    same first             positions whose most likely token is the same
    perplexity             of answers the trained models know, after their prompts

Peer: the golden file of the same model that llama.cpp quantised; ours then has the same types
tensor by tensor. (Theirs was made from F16 and ours from BF16: the same q8_0 method reads 0.96.)
Last, what weights (an importance matrix) are good for: the error of W x over a random matrix and
inputs whose columns differ in size, with the columns' mean squares as weights, against without.

    python benchmarks/bench_quality.py [--types q4_k_m,q2_k] [--quick]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _common import Figure, options, report
from numpy.typing import NDArray

import ruvllm
from ruvllm import _core
from ruvllm.engine._recipes import RECIPES
from ruvllm.engine.quantize import quantize

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
BUNDLED = Path(ruvllm.__file__).parent / "data" / "tiny-C.gguf"
WIDE = GOLDEN / "models" / "llama-d256-bf16.gguf"
QUICK = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k")
WEIGHTED = (
    "q2_k",
    "q3_k",
    "q4_0",
    "q4_1",
    "q4_k",
    "iq4_nl",
    "iq4_xs",
    "q5_0",
    "q5_1",
    "q5_k",
    "q6_k",
)

Text = tuple[list[int], list[int]]  # prompt, answer


class Reading(NamedTuple):
    """What a model says about some texts: log probabilities, and those of the answers."""

    logprobs: NDArray[np.float64]
    answers: NDArray[np.float64]


def read(path: Path, texts: list[Text]) -> Reading:
    rows, answers = [], []
    with ruvllm.Model(path, n_threads=1, witness=False) as model:
        for prompt, answer in texts:
            x = model.logits([*prompt, *answer]).astype(np.float64)
            x -= x.max(-1, keepdims=True)
            x -= np.log(np.exp(x).sum(-1, keepdims=True))
            rows.append(x)
            at = np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
            answers.append(x[at, answer])
    return Reading(np.concatenate(rows), np.concatenate(answers))


def divergence(full: Reading, other: Reading) -> float:
    p, q = full.logprobs, other.logprobs
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def same_first(full: Reading, other: Reading) -> float:
    return float((full.logprobs.argmax(-1) == other.logprobs.argmax(-1)).mean())


def matrices(path: Path) -> dict[str, NDArray[np.float32]]:
    g, out = _core.gguf_open(str(path)), {}
    for i, (name, number, kind, dims, _, _, _) in enumerate(g.tensors()):
        if len(dims) == 2:
            x = np.empty(dims[0] * dims[1], np.float32)
            if kind == "f32":
                x[:] = np.frombuffer(g.tensor_data(i), np.float32)
            else:
                _core.dequantize(number, g.tensor_data(i), x.size, x)
            out[name] = x.reshape(dims[1], dims[0])
    return out


def rounding(full: dict[str, NDArray[np.float32]], path: Path) -> float:
    """RMSE of all matrices together, as a part of their deviation."""
    ours = matrices(path)
    wrong = sum(float(((ours[n] - x).astype("f8") ** 2).sum()) for n, x in full.items())
    return float(np.sqrt(wrong / sum(float((x.astype("f8") ** 2).sum()) for x in full.values())))


def task_texts(model: str) -> list[Text]:
    """Prompts with answers that the model gets right."""
    tasks = json.loads((GOLDEN / "tiny-tasks.json").read_text())
    right = [t for t in tasks if t["greedy_text"][model] == t["answer"]]
    return [(t["prompt_ids"], t["greedy_ids"][model]) for t in right]


def random_texts(n: int, length: int, seed: int, n_vocab: int) -> list[Text]:
    rng = np.random.default_rng(seed)
    return [(ids[:1].tolist(), ids[1:].tolist()) for ids in rng.integers(3, n_vocab, (n, length))]


def kinds_of(path: Path) -> dict[str, str]:
    return {t[0]: t[2] for t in _core.gguf_open(str(path)).tensors()}


def compare(src: Path, texts: list[Text], kinds: list[str], *, trained: bool) -> list[Figure]:
    name = src.stem.removesuffix("-bf16")
    full, weights = read(src, texts), matrices(src)
    out = [Figure(f"{name}: perplexity", perplexity(full), "")] if trained else []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = Path(folder) / "q.gguf"
            result = quantize(src, path, kind)
            other, label = read(path, texts), f"{name} {kind}"
            n = sum(t.tensors for k, t in result.after.items() if k != "f32")
            out += [
                Figure(f"{label}: fell back, of {n}", len(result.fallbacks), "matrices"),
                Figure(f"{label}: bits per weight", result.bits_per_value, "bit"),
                Figure(f"{label}: RMSE of weights", 100 * rounding(weights, path), "%"),
                Figure(f"{label}: KL", 1e3 * divergence(full, other), "mnat"),
                Figure(f"{label}: same first", 100 * same_first(full, other), "%"),
            ]
            if trained:
                out.append(Figure(f"{label}: perplexity", perplexity(other), ""))
            theirs = GOLDEN / "models" / f"{name}-{kind}.gguf"
            if theirs.exists() and theirs != src:
                out += against(src, theirs, kind, (full, texts))
    return out


def against(src: Path, theirs: Path, kind: str, known: tuple[Reading, list[Text]]) -> list[Figure]:
    """RMSE and KL against llama.cpp's file, where ours can have the same types."""
    full, texts = known
    weights = matrices(src)
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "q.gguf"
        for pure in (False, True):
            quantize(src, ours, kind, pure=pure)
            if kinds_of(ours) != kinds_of(theirs):
                continue
            label = f"{src.stem.removesuffix('-bf16')} {kind}{' pure' if pure else ''}"
            (ours_rmse, ours_kl), (their_rmse, their_kl) = (
                (100 * rounding(weights, p), 1e3 * divergence(full, read(p, texts)))
                for p in (ours, theirs)
            )
            peer = "llama.cpp's file"
            return [
                Figure(f"{label}: RMSE of weights", ours_rmse, "%", peer, ours_rmse / their_rmse,
                       "<= 1.02", ours_rmse <= 1.02 * their_rmse),
                Figure(f"{label}: KL", ours_kl, "mnat", peer, ours_kl / their_kl),
            ]  # fmt: skip
    return []


def weighted(kind: str, seed: int) -> Figure:
    """Relative error of W x with weights, and what part of the error without that is."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.standard_normal(1024)).astype("f4")
    w = rng.standard_normal((256, 1024), np.float32)
    x = rng.standard_normal((1024, 256)) * size[:, None]
    number, values, n_bytes = _core.dtypes()[kind]
    errors = []
    for weights in (size**2, None):
        out = np.empty(w.size // values * n_bytes, np.uint8)
        back = np.empty_like(w)
        _core.quantize(number, w, 1024, out, weights)
        _core.dequantize(number, out, w.size, back)
        errors.append(float(np.linalg.norm((back - w) @ x) / np.linalg.norm(w @ x)))
    return Figure(f"{kind}: error of W x, weighted", 100 * errors[0], "%", "without weights",
                  errors[0] / errors[1], "< 1", errors[0] < errors[1])  # fmt: skip


def perplexity(r: Reading) -> float:
    return float(np.exp(-r.answers.mean()))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--types", help="default: all, with --quick some")
    args = parser.parse_args()
    kinds = args.types.split(",") if args.types else list(QUICK if args.quick else RECIPES[1:])
    n_vocab = len(matrices(WIDE)["token_embd.weight"])
    wide = random_texts(8 if args.quick else 32, 64, args.seed, n_vocab)
    figures = compare(WIDE, wide, kinds, trained=False)
    for name, path in (("tiny-B", GOLDEN / "models" / "tiny-B.gguf"), ("tiny-C", BUNDLED)):
        texts = task_texts(name)
        some = kinds if name == "tiny-B" else kinds[:2]  # every matrix of tiny-C stays F16
        figures += compare(path, texts[:32] if args.quick else texts, some, trained=True)
    figures += [weighted(kind, args.seed) for kind in WEIGHTED]
    report(args, figures)


if __name__ == "__main__":
    main()
