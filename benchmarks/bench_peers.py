"""Is ruvllm ahead of llama.cpp on the same file with the same threads?

Models are made in the shapes of real ones by our own writer and quantiser (random weights: the same
arithmetic and bytes).  Each engine runs in a process of its own; rounds alternate between them and
figures are medians.  A figure is ours; its ratio is ours / llama.cpp's.

    pip install --group peers          # llama-cpp-python, matplotlib; or --peer-python PYTHON
    python benchmarks/bench_peers.py --models DIR --json FILE --plot FILE.png

What --only names: cells (decode and prefill of every shape, type and thread count), rows (4, 16 and
64 tokens at once), depth (decode after 4096 tokens), embed (all-MiniLM-L6-v2; with --st-python
PYTHON, which has sentence-transformers, against that too), load (to the first token), spin (another
process spins on one core), crate (with --crate PROGRAM, built in peer_crate/: the generator of the
Rust crate ruvllm, for the shapes it knows).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
import random_model
from _common import Figure, circumstances, options, report, write_json
from bench_decode import bytes_per_token
from peer_pipe import Worker, WorkerError
from peer_plot import plot, ratios_of

import ruvllm
import ruvllm.engine.minilm
from ruvllm import _core
from ruvllm.engine.quantize import quantize

SHAPES = "lfm2-350m,lfm2-1.2b,llama-1b,qwen3-0.6b"
TYPES = "q4_0,q4_k_m,q8_0,f16"
PARTS = "cells,rows,batch,depth,embed,load,spin,crate"
VOCABS = Path(__file__).parents[1] / "tests/golden/vocab"
VOCAB_OF = {128256: "llama-bpe", 151936: "qwen2"}  # by size; GPT-2's, filled up, for the others
ROWS = (4, 16, 64)
SEQUENCES = (1, 4, 16, 64)
BAND = 512 << 20  # bytes of one measurement of the read bandwidth
TEXT = 16  # tokens of an embedded text
WORDS = (
    "the river house walks under small green trees while old people talk about music and winter "
    "food near a quiet station where young birds often sleep after long summer days"
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
QUIET = 0.1  # cores that other processes may use while we measure
TICKS = 0.04  # seconds: what the kernel's accounts of some processes are off
STEADY = 1.2  # most that the read bandwidth may change in a round, a factor


@dataclass
class Bench:
    """What all parts need."""

    args: argparse.Namespace
    folder: Path
    peer: str
    figures: list[Figure] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)  # cores others had, per measurement

    def rate(
        self,
        name: str,
        amount: float,
        times: list[list[float]],
        unit: str,
        goal: float | None,
        peer: str | None = None,
    ) -> float:
        """A figure amount / seconds with its ratio; gives the rate. times: ours, the peer's."""
        ours, theirs = (amount / median(t) for t in times)
        ratio = ours / theirs
        self.figures.append(
            Figure(
                name, ours, unit, peer or self.peer, ratio,
                None if goal is None else f">= {goal:.2f} x",
                None if goal is None else ratio >= goal,
            )
        )  # fmt: skip
        note(self.figures[-1])
        return ours

    def goal(self, name: str, value: float, unit: str, goal: str, holds: bool) -> None:
        self.figures.append(Figure(name, value, unit, goal=goal, holds=holds))
        note(self.figures[-1])

    def wanted(self, normal: float) -> float:
        """A goal; with fewer instruction sets than the machine has it is only not to lose."""
        return normal if self.args.mask == 15 else 1.0


def note(f: Figure) -> None:
    """Progress, on stderr."""
    ratio = "" if f.ratio is None else f" {f.ratio:.2f} x"
    print(f"  {f.figure}: {f.value:.4g} {f.unit}{ratio}", file=sys.stderr, flush=True)


def cpu_seconds() -> float:
    """CPU time that processes other than this one's children and itself have had, all cores."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    busy = (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")  # not idle, not waiting
    return busy - sum(w.cpu_seconds() for w in Worker.running) - sum(os.times()[:4])


# Seconds before a turn: OpenMP's threads still spin for a while after their engine has answered.
SETTLE = 0.4


def rounds_of(
    b: Bench, n: int, *calls: Callable[[], float], band: Callable[[], float] | None = None
) -> list[list[float]]:
    """The values of each call over n rounds; the calls take turns at going first.

    A round is done again, three times as many rounds at most, in which other processes had more
    than a tenth of a core, or in which the read bandwidth, measured by band before and after each
    call, changed by more than a fifth; then the n best of the rounds by these two count.  (What the
    calls gave plays no part.)  With band the medians of the rounds' bandwidths come last.
    """
    rounds: list[tuple[float, float, list[float]]] = []  # unrest, cores of others, values
    for i in range(n if b.args.quick else 3 * n):
        values = [0.0] * len(calls)
        bands = [band()] if band else [1.0]
        cpu, wall = cpu_seconds(), time.monotonic()
        for j in list(range(len(calls)))[:: -1 if i % 2 else 1]:
            time.sleep(SETTLE)
            values[j] = calls[j]()
            if band:
                time.sleep(SETTLE)
                bands.append(band())
        wall = time.monotonic() - wall
        others = max(0.0, cpu_seconds() - cpu - TICKS) / wall
        unrest = max(others / QUIET, math.log(max(bands) / min(bands)) / math.log(STEADY))
        rounds.append((unrest, others, values + [median(bands)] * (band is not None)))
        if sum(r[0] <= 1 for r in rounds) >= n:
            break
    kept = sorted(rounds, key=lambda r: r[0])[:n]
    b.disturbed.append(sum(r[1] for r in kept) / n)
    return [list(column) for column in zip(*(values for *_, values in kept), strict=True)]


@contextlib.contextmanager
def engines(b: Bench, cpus: list[int] | None = None) -> Iterator[tuple[Worker, Worker]]:
    """Ours and the peer's, each in a new process."""
    with (
        Worker("peer_ruvllm.py", cpus=cpus) as ours,
        Worker("peer_llama.py", b.args.peer_python, cpus) as theirs,
    ):
        if b.args.mask != 15:
            ours.ask("limit", b.args.mask)
        yield ours, theirs


def model_file(b: Bench, shape: str, type: str) -> Path | None:
    """The model of a shape in a type, made when it is not there; None when we cannot make it."""
    path = b.folder / f"{shape}-{type}.gguf"
    full = b.folder / f"{shape}-f16.gguf"
    if not full.exists():
        full.parent.mkdir(parents=True, exist_ok=True)
        s = random_model.SHAPES[shape]
        vocab = VOCABS / f"ggml-vocab-{VOCAB_OF.get(s.vocab, 'gpt-2')}.gguf"
        random_model.write(full, s, b.args.seed, vocab)
    if not path.exists():
        try:
            quantize(full, path, type, pure="_k_" not in type)
        except ruvllm.UnsupportedError as e:
            print(f"peers: {shape} {type} is left out: {e}", file=sys.stderr)
            return None
    return path


def every_file(b: Bench, types: list[str]) -> Iterator[tuple[str, str, Path]]:
    for shape in b.args.shapes:
        for type in types:
            path = model_file(b, shape, type)
            if path is not None:
                yield shape, type, path


def multiplications(path: Path) -> int:
    """Multiply-adds of the matrices for one prompt token, the head left out: it runs once."""
    skip = ("token_embd.weight", "output.weight")
    tensors = _core.gguf_open(str(path)).tensors()
    return sum(
        math.prod(t[3]) for t in tensors if len(t[3]) == 2 and min(t[3]) > 4 and t[0] not in skip
    )


# ---- parts ----


def cells(b: Bench) -> None:
    """Decode and prefill of every cell."""
    a = b.args
    for shape, type, path in every_file(b, a.types):
        for n in a.threads:
            name = f"{shape} {type} {n} thread{'s' * (n > 1)}"
            with engines(b) as (ours, theirs):
                for w in (ours, theirs):
                    w.ask("open", str(path), n, "f16", a.pp + 8)
                pp = rounds_of(
                    b, a.rounds, *(lambda w=w: w.ask("pp", a.pp) for w in (ours, theirs))
                )
                *tg, band = rounds_of(
                    b,
                    a.rounds,
                    *(lambda w=w: w.ask("tg", a.tg) for w in (ours, theirs)),
                    band=lambda ours=ours, n=n: ours.ask("bandwidth", n, BAND),
                )
            b.rate(f"{name}: decode", a.tg, tg, "tok/s", b.wanted(1.10))
            share = median(
                a.tg / t * bytes_per_token(path) / r for t, r in zip(tg[0], band, strict=True)
            )
            b.figures.append(Figure(f"{name}: read bandwidth", median(band) / 1e9, "GB/s"))
            title = f"{name}: share of the read bandwidth"
            if n == 2:
                b.goal(title, share, "", ">= 0.85", share >= 0.85)
            else:
                b.figures.append(Figure(title, share, ""))
            quick = b.wanted(1.2 if type == "f16" else 1.5)
            rate = b.rate(f"{name}: prefill", a.pp, pp, "tok/s", quick)
            flops = 2 * multiplications(path) * rate
            b.figures.append(Figure(f"{name}: prefill, matrices", flops / 1e9, "GFLOP/s"))


def rows(b: Bench) -> None:
    """A few tokens at once, in the first type asked for."""
    a = b.args
    for shape, type, path in every_file(b, a.types[:1]):
        for n in a.threads:
            with engines(b) as (ours, theirs):
                for w in (ours, theirs):
                    w.ask("open", str(path), n, "f16", 256)
                for k in ROWS:
                    times = rounds_of(
                        b, 4 * a.rounds, *(lambda w=w, k=k: w.ask("pp", k) for w in (ours, theirs))
                    )
                    name = f"{shape} {type} {n} thread{'s' * (n > 1)}: {k} rows at once"
                    b.rate(name, k, times, "tok/s", b.wanted(1.5))


def batch(b: Bench) -> None:
    """Many sequences at once, in the first type asked for; ours also chooses their tokens."""
    a = b.args
    steps = 8 if a.quick else 32
    for shape, type, path in every_file(b, a.types[:1]):
        for n in a.threads:
            rates = {}
            with engines(b) as (ours, theirs):
                for w in (ours, theirs):
                    w.ask("open_batch", str(path), n, max(SEQUENCES), 64)
                name = f"{shape} {type} {n} thread{'s' * (n > 1)}"
                for k in SEQUENCES:
                    calls = (lambda w=w, k=k: w.ask("sequences", k, steps) for w in (ours, theirs))
                    times = rounds_of(b, a.rounds, *calls)
                    what = f"{name}: {k} sequence{'s' * (k > 1)}"
                    goal = b.wanted(1.5) if k > 1 else None
                    rates[k] = b.rate(what, k * steps, times, "tok/s", goal)
            if n == 2:
                gain = rates[16] / rates[1]
                b.goal(f"{name}: 16 sequences / one", gain, "x", ">= 2.00 x", gain >= 2)


def depth(b: Bench) -> None:
    """Decode after many tokens.  The sequence goes on from round to round, in both engines."""
    a = b.args
    room = a.depth + 8 * (3 * a.rounds + 1)  # rounds may be done again
    for shape, type, path in every_file(b, a.types[:1]):
        for kv in a.kv:
            for n in a.threads:
                with engines(b) as (ours, theirs):
                    try:
                        for w in (ours, theirs):
                            w.ask("open", str(path), n, kv, room)
                    except WorkerError as e:
                        print(f"peers: depth with {kv} is left out: {e}", file=sys.stderr)
                        break
                    for w in (ours, theirs):
                        w.ask("pp", a.depth)
                        w.ask("more", 2)
                    times = rounds_of(
                        b, a.rounds, *(lambda w=w: w.ask("more", 8) for w in (ours, theirs))
                    )
                name = f"{shape} {type} {n} thread{'s' * (n > 1)}: decode at {a.depth}, {kv} KV"
                b.rate(name, 8, times, "tok/s", b.wanted(1.2))


def awake(w: Worker, texts: int) -> float:
    """Seconds for the texts, by an engine that has just done another one."""
    w.ask("embed", 1, TEXT)
    return float(w.ask("embed", texts, TEXT))


def embed(b: Bench) -> None:
    """One short text, and many."""
    try:
        path = ruvllm.minilm_path("q8_0")
    except ruvllm.RuvllmError as e:
        print(f"peers: embed is left out: {e}", file=sys.stderr)
        return
    texts = 128 if b.args.quick else 512
    for n in b.args.threads:
        with engines(b) as (ours, theirs):
            for w in (ours, theirs):
                w.ask("open_encoder", str(path), n)
            one, many = (
                rounds_of(b, times, *(lambda w=w, k=k: awake(w, k) for w in (ours, theirs)))
                for k, times in ((1, 31 if b.args.quick else 101), (texts, b.args.rounds))
            )
        name = f"MiniLM q8_0 {n} thread{'s' * (n > 1)}"
        ms = 1e3 * median(one[0])
        b.figures.append(
            Figure(
                f"{name}: one text of {TEXT} tokens, p50", ms, "ms", b.peer,
                median(one[0]) / median(one[1]),
                "<= 1 ms" if n == 1 else None, ms <= 1 if n == 1 else None,
            )
        )  # fmt: skip
        note(b.figures[-1])
        b.rate(f"{name}: {texts} texts", texts, many, "texts/s", b.wanted(2.0))
    embed_st(b, texts)


def short_texts(n: int, seed: int) -> list[str]:
    """Texts of TEXT tokens, end marks included: words that MiniLM's vocabulary has whole."""
    words = WORDS.split()
    pick = random.Random(seed)
    return [" ".join(pick.choices(words, k=TEXT - 2)) for _ in range(n)]


def embed_st(b: Bench, texts: int) -> None:
    """Texts through sentence-transformers: the same weights, tokenising included."""
    a = b.args
    if a.st_python is None:
        print(
            "peers: sentence-transformers is left out: give --st-python, a Python that has it",
            file=sys.stderr,
        )
        return
    folder, _ = ruvllm.engine.minilm.minilm_source()
    said = short_texts(texts, a.seed)
    for n in a.threads:
        try:
            theirs = Worker("peer_st.py", a.st_python, env=OFFLINE)
        except WorkerError as e:
            print(f"peers: sentence-transformers is left out: {e}", file=sys.stderr)
            return
        with theirs:
            peer = f"sentence-transformers {theirs.about['version']} f32"
            at_once = theirs.ask("open_texts", str(folder), n, said)
            print(f"{peer}, {theirs.about['system']}, {at_once} at once", file=sys.stderr)
            want = np.array(theirs.ask("vectors"))
            for kind in ("q8_0",) if a.quick else ("q8_0", "f16", "f32"):
                with Worker("peer_ruvllm.py") as ours:
                    if a.mask != 15:
                        ours.ask("limit", a.mask)
                    ours.ask("open_texts", str(ruvllm.minilm_path(kind)), n, said)
                    least = float((np.array(ours.ask("vectors")) * want).sum(-1).min())
                    one, many = (
                        rounds_of(
                            b, times,
                            *(lambda w=w, k=k: w.ask("embed_texts", k) for w in (ours, theirs)),
                        )
                        for k, times in ((1, 31), (texts, a.rounds))
                    )  # fmt: skip
                name = f"MiniLM {kind} {n} thread{'s' * (n > 1)}, tokenising included"
                goal = b.wanted(3.0) if kind == "q8_0" else None
                b.rate(f"{name}: {texts} texts", texts, many, "texts/s", goal, peer)
                b.rate(f"{name}: one text after the other", 1, one, "texts/s", None, peer)
                b.goal(
                    f"{name}: least cosine to f32 of {peer}", least, "", ">= 0.99", least >= 0.99
                )


def load(b: Bench) -> None:
    """From opening to the first token, each time in a new process."""
    shape = "llama-1b" if "llama-1b" in b.args.shapes else b.args.shapes[0]
    path = model_file(b, shape, "q4_0")

    def first(script: str, python: str, n: int, cold: bool) -> float:
        if cold:
            with open(path, "rb") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with Worker(script, python) as w:
            if script == "peer_ruvllm.py" and b.args.mask != 15:
                w.ask("limit", b.args.mask)
            return float(w.ask("first", str(path), n))

    states = (False, True) if hasattr(os, "posix_fadvise") and not b.args.quick else (False,)
    for n, cold in itertools.product(b.args.threads, states):
        times = rounds_of(
            b, b.args.rounds,
            lambda n=n, c=cold: first("peer_ruvllm.py", sys.executable, n, c),
            lambda n=n, c=cold: first("peer_llama.py", b.args.peer_python, n, c),
        )  # fmt: skip
        ratio = median(times[0]) / median(times[1])
        state = "from the disk" if cold else "from memory"
        b.figures.append(
            Figure(
                f"{shape} q4_0 {n} thread{'s' * (n > 1)}: load to first token, {state}",
                1e3 * median(times[0]), "ms", b.peer, ratio,
                None if cold else "<= 0.50 x", None if cold else ratio <= 0.5,
            )
        )  # fmt: skip
        note(b.figures[-1])


def spin(b: Bench) -> None:
    """Two threads while another process spins on one of the two cores.

    What the neighbour costs a thread on the other core says whether the machine's cores are cores.
    """
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        print("peers: spin is left out: want two CPUs and Linux", file=sys.stderr)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    shape = "llama-1b" if "llama-1b" in b.args.shapes else b.args.shapes[0]
    path = model_file(b, shape, "q4_0")
    seconds = 0.7 if b.args.quick else 3.0
    with engines(b, cores) as (ours, theirs), Worker("peer_ruvllm.py", cpus=cores) as alone:
        for w, n in ((ours, 2), (theirs, 2), (alone, 1)):
            if n == 1 and b.args.mask != 15:
                w.ask("limit", b.args.mask)
            w.ask("open", str(path), n, "f16", 512)

        def beside(w: Worker) -> float:
            with Worker("peer_spin.py", cpus=cores[1:]) as other:
                other.ask("spin")
                return float(w.ask("pace", seconds))

        t = rounds_of(
            b,
            b.args.rounds,
            lambda: beside(ours),
            lambda: beside(theirs),
            lambda: float(alone.ask("pace", seconds)),
            lambda: beside(alone),
        )
    name = f"{shape} q4_0: 2 threads beside a spinning process"
    b.rate(f"{name}, decode", 1, t[:2], "tok/s", None)
    share = median(t[2]) / median(t[0])
    b.goal(f"{name} / our 1 thread alone", share, "x", ">= 0.90 x", share >= 0.9)
    share = median(t[2]) / median(t[1])
    b.figures.append(Figure(f"{name} / our 1 thread alone: llama.cpp", share, "x"))
    share = median(t[2]) / median(t[3])
    b.figures.append(Figure(f"{shape} q4_0: our 1 thread beside it / alone", share, "x"))


def crate(b: Bench) -> None:
    """Decode and prefill against the Rust crate, which reads llama and qwen3 only."""
    a = b.args
    if a.crate is None:
        return
    for shape, type, path in every_file(b, a.types):
        if random_model.SHAPES[shape].arch not in ("llama", "qwen3"):
            continue
        for n in a.threads:
            name = f"{shape} {type} {n} thread{'s' * (n > 1)}"
            env = {"RAYON_NUM_THREADS": str(n)}
            with Worker("peer_ruvllm.py") as ours, Worker(a.crate, None, env=env) as theirs:
                try:
                    for w in (ours, theirs):
                        w.ask("open", str(path), n, "f16", a.pp + 8)
                    tg, pp = (
                        rounds_of(
                            b, a.rounds, *(lambda w=w, k=k: w.ask(*k) for w in (ours, theirs))
                        )
                        for k in (("tg", a.tg // 4), ("pp", a.pp))
                    )
                except WorkerError as e:
                    print(f"peers: {name} is left out: {e}", file=sys.stderr)
                    continue
                peer = f"crate ruvllm {theirs.about['version']}"
            b.rate(f"{name}: decode", a.tg // 4, tg, "tok/s", None, peer)
            b.rate(f"{name}: prefill", a.pp, pp, "tok/s", None, peer)


# ---- the whole ----


def arguments() -> argparse.Namespace:
    p = options(__doc__)
    listed = {"type": lambda text: text.split(","), "metavar": "A,B"}
    p.add_argument("--shapes", default=None, help=f"default: {SHAPES}", **listed)
    p.add_argument("--types", default=None, help=f"default: {TYPES}", **listed)
    p.add_argument("--only", default=PARTS.split(","), help=f"of {PARTS}", **listed)
    p.add_argument("--kv", default=None, help="of depth; default: f16,q8_0,q4_0", **listed)
    p.add_argument("--threads", default="1,2", metavar="N,N")
    p.add_argument("--rounds", type=int)
    p.add_argument("--models", type=Path, metavar="DIR", help="keep the generated files here")
    p.add_argument(
        "--update", action="store_true", help="keep what --json FILE has of other figures"
    )
    p.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of the ratios")
    p.add_argument(
        "--mask", type=int, default=15, choices=range(16), metavar="0..15",
        help="instruction sets of ours, see rvk.h",
    )  # fmt: skip
    p.add_argument("--crate", metavar="PROGRAM", help="built from peer_crate/")
    p.add_argument(
        "--st-python", metavar="PYTHON", help="Python that has sentence-transformers, for embed"
    )
    p.add_argument("--peer-python", default=sys.executable, help="Python that has llama_cpp")
    a = p.parse_args()
    a.shapes = a.shapes or (["llama-100m"] if a.quick else SHAPES.split(","))
    a.types = a.types or (["q4_0", "f16"] if a.quick else TYPES.split(","))
    a.kv = a.kv or (["f16"] if a.quick else ["f16", "q8_0", "q4_0"])
    a.threads = [int(n) for n in a.threads.split(",")]
    a.rounds = a.rounds or (3 if a.quick else 5)
    a.pp, a.tg, a.depth = (128, 16, 512) if a.quick else (512, 128, 4096)
    for what, given, known in (
        ("shapes", a.shapes, random_model.SHAPES),
        ("only", a.only, PARTS.split(",")),
    ):
        if wrong := [x for x in given if x not in known]:
            p.error(f"--{what}: found {wrong[0]}, want {', '.join(known)}")
    if a.plot and importlib.util.find_spec("matplotlib") is None:
        p.error("--plot: pip install matplotlib")
    if min(a.threads) < 1 or a.rounds < 1:
        p.error("--threads, --rounds: want at least 1")
    return a


def main() -> None:
    a = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that finish() has its turn
    try:
        with Worker("peer_llama.py", a.peer_python) as w:
            about = w.about
    except WorkerError:
        print(f"peers: {a.peer_python} cannot run llama.cpp: pip install --group peers")
        return
    print(f"llama.cpp: {about['system']}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as tmp:
        b = Bench(a, a.models or Path(tmp), f"llama-cpp-python {about['version']}")
        try:
            for part in a.only:
                print(f"{part}:", file=sys.stderr)
                globals()[part](b)
        finally:  # what there is, if it did not come to the end
            finish(b)


MEAN = "geometric mean of the prefill ratios"


def finish(b: Bench) -> None:
    """Print, write and draw."""
    worst = max(b.disturbed, default=0.0)
    name = "most that other processes had while we measured"
    b.goal(name, worst, "cores", f"<= {QUIET}", worst <= QUIET)
    about = circumstances(b.args)
    known = {f.figure: {**asdict(f), **about} for f in b.figures}
    path = Path(b.args.json) if b.args.json else None
    if path and b.args.update and path.exists():
        known = {f["figure"]: f for f in json.loads(path.read_text())} | known
    prefill = [r for (what, *_), r in ratios_of(list(known.values())).items() if what == "prefill"]
    if prefill and b.args.mask == 15:
        mean = geometric_mean(prefill)
        b.goal(MEAN, mean, f"x of {len(prefill)}", ">= 1.60 x", mean >= 1.6)
        known[MEAN] = {**asdict(b.figures[-1]), **about}
    report(argparse.Namespace(json=None), b.figures)
    if path:
        write_json(path, list(known.values()))
    if b.args.plot:
        plot(b.args.plot, list(known.values()))


if __name__ == "__main__":
    main()
