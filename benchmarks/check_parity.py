"""Do the tokens of a request, or their log probabilities, depend on anything but its prompt and its
options?  Nothing is measured here: everything has to be equal, bit for bit.

Every prompt is generated from plainly: alone, on one thread, with nothing shared.  Then again in
chunks of other sizes, on two threads, behind prefixes that are there already, in batches of 1 to
64, in so little memory that requests are preempted, and after its beginning has been saved and
loaded; greedy and seeded, for every kind of keys and values.  Prints how many were compared and how
many differed; exits with 1 if any did.

    check_parity.py                                  1000 prompts, the bundled model and a tiny LFM2
    check_parity.py --model M.gguf --prompts 8 --max-tokens 8"""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _common import Figure, options, report
from random_model import Shape, write

import ruvllm

PAGE = 16
TINY_LFM2 = Shape("lfm2", 4, 64, 2, 1, 128, 512, 1024, head_dim=32, attn_layers=(1, 3))
Results = list[ruvllm.GenerationResult]


@dataclasses.dataclass(frozen=True)
class Ask:
    """A prompt and how its reply is chosen."""

    prompt: list[int]
    options: dict[str, Any]


def make_asks(n: int, n_vocab: int, longest: int, max_tokens: int, seed: int) -> list[Ask]:
    """Prompts of 1 .. longest tokens, two of three with a beginning that others have too."""
    draw = random.Random(seed)
    common = [[draw.randrange(n_vocab) for _ in range(longest)] for _ in range(3)]
    out = []
    for i in range(n):
        length = draw.randint(1, longest)
        shared = draw.randint(0, length - 1) if i % 3 else 0
        own = [draw.randrange(n_vocab) for _ in range(length - shared)]
        how: dict[str, Any] = {
            "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 2, "seed": i,
        }  # fmt: skip
        if i % 2:
            how |= {"temperature": 1.1, "top_p": 0.95, "repeat_penalty": 1.1}
        out.append(Ask(draw.choice(common)[:shared] + own, how))
    return out


class Subject:
    """A model file with one kind of keys and values."""

    def __init__(self, path: str | None, kv: dict[str, Any], args: Any, n: int) -> None:
        self.path, self.kv = path, kv
        with self.open() as m:
            self.n_ctx = m.n_ctx
            self.longest = min(160, m.n_ctx - args.max_tokens - 2)
            self.asks = make_asks(n, m.info.n_vocab, self.longest, args.max_tokens, args.seed)
            self.want = [m.generate(a.prompt, **a.options) for a in self.asks]
        hot = {k: v for k, v in kv.items() if k == "kv_type"}
        with ruvllm.Model(path, n_threads=1, witness=False, **hot) as m:
            per_token = m.info.kv_bytes_per_token
        pages = 4 * ((self.longest + args.max_tokens) // PAGE + 1) + 8
        self.little = per_token * PAGE * max(pages, 64)  # bytes for a few sequences

    def open(self, **how: Any) -> ruvllm.Model:
        """The plain one, or with other options."""
        plain: dict[str, Any] = {"n_threads": 1, "share_prefix": False, "witness": False}
        return ruvllm.Model(self.path, **{**plain, **self.kv, **how})

    def alone(self, model: ruvllm.Model) -> Results:
        """One after the other."""
        return [model.generate(a.prompt, **a.options) for a in self.asks]

    def together(self, model: ruvllm.Model, **how: Any) -> Results:
        """Through an engine."""
        with ruvllm.Engine(
            model, max_queue=len(self.asks), max_queue_tokens=1 << 30, **how
        ) as engine:
            requests = [engine.submit(a.prompt, **a.options) for a in self.asks]
            return [r.result() for r in requests]


# -- one thing after the other is varied ------------------------------------------------------

Compared = tuple[str, Sequence[ruvllm.GenerationResult], Sequence[ruvllm.GenerationResult]]


def chunks_and_threads(s: Subject, _: Path) -> Iterator[Compared]:
    """Prompts in chunks, work on threads."""
    for n_batch, n_threads in ((1, 1), (7, 2), (64, 1), (4096, 2)):
        with s.open(n_batch=n_batch, n_threads=n_threads) as m:
            yield f"chunks of {n_batch}, {n_threads} threads", s.alone(m), s.want


def prefixes(s: Subject, _: Path) -> Iterator[Compared]:
    """The first time some is found, then nearly all; of a model with states the third time."""
    with s.open(share_prefix=True) as m:
        for time in ("first", "second", "third"):
            before = m.kv_stats.n_hit
            yield f"prefixes shared, the {time} time", s.alone(m), s.want
        if any(len(a.prompt) > 48 for a in s.asks) and m.kv_stats.n_hit == before:
            raise SystemExit("check_parity: no prefix was found")


def batches(s: Subject, _: Path) -> Iterator[Compared]:
    """Among others, with prefixes and without."""
    sizes: tuple[dict[str, int], ...] = (
        {"max_running": 1}, {"max_running": 2}, {"max_running": 5, "max_rows": 5},
        {"max_running": 16, "max_rows": 23, "max_chunk": 5}, {"max_running": 64},
        {"max_running": 64, "max_rows": 512, "max_chunk": 200},
    )  # fmt: skip
    for share, how in itertools.product((False, True), sizes):
        with s.open(share_prefix=share, n_threads=1 + share) as m:
            name = ", ".join(f"{k} {v}" for k, v in how.items())
            found = s.together(m, **how)
            yield f"batch: {name}{', prefixes shared' if share else ''}", found, s.want


def little_memory(s: Subject, _: Path) -> Iterator[Compared]:
    """So little that requests give theirs to others."""
    for share in (False, True):
        with s.open(share_prefix=share, kv_budget=s.little) as m:
            found = s.together(m, max_running=64)
        if (
            len(s.asks) >= 32
            and s.want[0].timings.n_generated > 32
            and not sum(r.n_preempted for r in found)
        ):
            raise SystemExit("check_parity: nobody was preempted")
        yield f"preempted{', prefixes shared' if share else ''}", found, s.want


def files(s: Subject, folder: Path) -> Iterator[Compared]:
    """A beginning saved, loaded into another model, and gone on from."""
    found: Results = []
    want: Results = []
    asks = [a for a in s.asks if len(a.prompt) > 1][:100]
    with s.open() as first, s.open() as second:
        for a in asks:
            half = len(a.prompt) // 2
            with ruvllm.Session(first) as session:
                session.generate(a.prompt[:half], max_tokens=4, ignore_eos=True)
                session.save(folder / "talk.json")
            with ruvllm.Session.load(folder / "talk.json", second) as session:
                whole = [*session.tokens, *a.prompt[half:]]
                if len(whole) + a.options["max_tokens"] > s.n_ctx:
                    continue
                found.append(session.generate(a.prompt[half:], **a.options))
            want.append(first.generate(whole, **a.options))
    yield "saved and loaded", found, want


VARIED: tuple[Callable[[Subject, Path], Iterator[Compared]], ...] = (
    chunks_and_threads, prefixes, batches, little_memory, files,
)  # fmt: skip


# -- all of them ------------------------------------------------------------------------------


def kinds_of_kv(path: str | None) -> list[dict[str, Any]]:
    """Every kind of keys and values that suits a model."""
    with ruvllm.Model(path, n_threads=1, witness=False) as m:
        blocks = m.info.head_dim % 32 == 0
    kinds: list[dict[str, Any]] = [{}, {"kv_type": "f32"}]
    if blocks:
        kinds += [{"kv_type": "q8_0"}, {"kv_type": "q4_0"}]
        kinds += [
            {"kv_type": "f16", "kv_store": store, "kv_tail": 64, "kv_batch": 64}
            for store in ("q8_0", "q4_0")
        ]
    return kinds


def n_different(name: str, found: Sequence[Any], want: Sequence[Any]) -> int:
    """How many replies differ; the first one is shown."""
    n = 0
    for i, (f, w) in enumerate(zip(found, want, strict=True)):
        if (f.tokens, f.logprobs, f.finish_reason) == (w.tokens, w.logprobs, w.finish_reason):
            continue
        n += 1
        if n == 1:
            pairs = itertools.zip_longest(f.logprobs, w.logprobs)
            at, (a, b) = next(((k, p) for k, p in enumerate(pairs) if p[0] != p[1]), (0, (f, w)))
            print(f"{name}: reply {i} differs at token {at}: {a} and plainly {b}")
    return n


def check(path: str | None, args: Any, folder: Path) -> list[Figure]:
    """All figures of a model: the first kind of keys and values on all prompts, the others on a
    tenth of them."""
    out = []
    for k, kv in enumerate(kinds_of_kv(path)):
        s = Subject(path, kv, args, args.prompts if k == 0 else max(args.prompts // 10, 1))
        for vary in VARIED:
            for what, found, want in vary(s, folder):
                about = " ".join(str(v) for v in kv.values()) or "auto"
                name = f"{Path(path).stem if path else 'bundled'}, kv {about}, {what}"
                n = n_different(name, found, want)
                out.append(Figure(name, len(found), "prompts", goal="all equal", holds=n == 0))
    return out


def main(argv: list[str] | None = None) -> int:
    """Run it; the exit code."""
    p = options(__doc__)
    p.add_argument("--model", action="append", help="a GGUF file; repeatable")
    p.add_argument("--prompts", type=int, help="of each model; default 1000, with --quick 40")
    p.add_argument("--max-tokens", type=int, default=40)
    args = p.parse_args(argv)
    args.prompts = args.prompts or (40 if args.quick else 1000)
    with tempfile.TemporaryDirectory() as folder:
        paths: list[str | None] = list(args.model or ())
        if not paths:
            write(Path(folder) / "tiny-lfm2.gguf", TINY_LFM2, args.seed)
            paths = [None, str(Path(folder) / "tiny-lfm2.gguf")]
        figures = [f for path in paths for f in check(path, args, Path(folder))]
    report(args, figures)
    n = sum(int(f.value) for f in figures)
    bad = sum(not f.holds for f in figures)
    print(f"{n} replies compared in {len(figures)} ways, {bad} of them with differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
