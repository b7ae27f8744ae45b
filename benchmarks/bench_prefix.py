"""How much of what could be found of prompts is found, and what does looking cost when there is
nothing?

Chats of several turns behind shared system prompts go through an Engine: one request at a time, and
several; with room for everything, and in a cache of 300 pages: of 6 users, whose chats fill most of
it, and of 10, whose chats are more than it holds.  What could be found at best is
computed afterwards from the requests as they came, in whole pages: with room, the longest beginning
that any earlier request had; in a cache of so many pages, what Belady's eviction keeps, which knows
the future and evicts the page that is needed last.  Memory for the request under way counts for
both.  A model with recurrent states has to keep those in the same bytes; the best possible is that
of one without.

The cost of looking and publishing is the difference between sharing and not, per token of prompts
that nobody saw before, on a model that computes next to nothing and in a cache that is full; it is
shown as a part of what a step of a model takes."""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import random
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import Figure, median_of, options, report
from random_model import SHAPES, Shape, make, write

import ruvllm
from ruvllm import _core

PAGE = 16
SMALL_CACHE = 300  # pages
N_CTX = 2048
MODELS = {
    "llama": dataclasses.replace(SHAPES["tiny"], ctx=N_CTX),
    "lfm2": Shape("lfm2", 4, 64, 4, 2, 128, 512, N_CTX, head_dim=16, attn_layers=(1, 3)),
}


# -- the requests -----------------------------------------------------------------------------


class Trace:
    """Chats of users who come, talk for some turns and go; the same for a seed and replies."""

    def __init__(self, seed: int, n_vocab: int, n_users: int) -> None:
        self._random = random.Random(seed)
        self._n_vocab = n_vocab
        self._systems = [self._text(40, 300) for _ in range(6)]
        self._chats = [self._new_chat() for _ in range(n_users)]

    def next(self, busy: set[int]) -> tuple[int, list[int], int]:
        """Who asks (none of busy), the prompt, and how many tokens the reply has."""
        i = self._random.choice([i for i in range(len(self._chats)) if i not in busy])
        if self._random.random() < 0.25 or len(self._chats[i]) > N_CTX - 400:
            self._chats[i] = self._new_chat()
        self._chats[i] += self._text(8, 100)
        return i, list(self._chats[i]), self._random.randint(4, 60)

    def replied(self, i: int, tokens: Sequence[int]) -> None:
        """The reply is part of what user i says next."""
        self._chats[i] += tokens

    def _text(self, least: int, most: int) -> list[int]:
        n = self._random.randint(least, most)
        return [self._random.randrange(self._n_vocab) for _ in range(n)]

    def _new_chat(self) -> list[int]:
        if self._random.random() < 0.1:
            return []
        weights = [1 / (i + 1) for i in range(len(self._systems))]
        return list(self._random.choices(self._systems, weights)[0])


@dataclasses.dataclass
class Served:
    """A request: its prompt, all that was computed, and how much of the prompt was found."""

    prompt: list[int]
    text: list[int]
    found: int


def serve(model: ruvllm.Model, n: int, at_once: int, n_users: int, seed: int) -> list[Served]:
    """n requests in the order they were submitted."""
    trace = Trace(seed, model.info.n_vocab, n_users)
    out: list[Served] = []
    running: deque[tuple[int, ruvllm.Request]] = deque()

    def take() -> None:
        i, request = running.popleft()
        result = request.result()
        trace.replied(i, result.tokens)
        prompt = list(result.prompt_tokens)
        text = [*prompt, *result.tokens[:-1]]  # nobody computed what comes after the last one
        out.append(Served(prompt, text, result.cached_tokens))

    with ruvllm.Engine(model, max_running=at_once) as engine:
        for _ in range(n):
            if len(running) == at_once:
                take()
            i, prompt, n_reply = trace.next({i for i, _ in running})
            request = engine.submit(prompt, max_tokens=n_reply, ignore_eos=True)
            running.append((i, request))
        while running:
            take()
    return out


# -- what could be found ----------------------------------------------------------------------


class Node:
    """A page of a text behind its parent."""

    def __init__(self, depth: int) -> None:
        self.children: dict[tuple[int, ...], Node] = {}
        self.depth = depth
        self.uses: deque[int] = deque()  # requests whose prompts have it, those to come
        self.kept = False
        self.pinned = False


def pages_of(root: Node, tokens: Sequence[int]) -> list[Node]:
    """The nodes of the whole pages of tokens, made where there are none."""
    path, node = [], root
    for i in range(0, len(tokens) - PAGE + 1, PAGE):
        key = tuple(tokens[i : i + PAGE])
        node = node.children.setdefault(key, Node(node.depth + 1))
        path.append(node)
    return path


def best_pages(served: list[Served], n_pages: int | None) -> int:
    """Tokens of whole pages that could be found at best; n_pages: None: nothing has to go."""
    root = Node(0)
    asked = [pages_of(root, s.prompt[:-1]) for s in served]  # the last token is computed anyway
    for i, path in enumerate(asked):
        for node in path:
            node.uses.append(i)
    kept: list[tuple[int, int, int]] = []  # heap: needed last first, then deep ones; lazy
    nodes: list[Node] = []
    n_kept = found = 0

    def keep(node: Node) -> None:
        when = node.uses[0] if node.uses else len(served)
        nodes.append(node)
        heapq.heappush(kept, (-when, -node.depth, len(nodes) - 1))

    for i, (s, path) in enumerate(zip(served, asked, strict=True)):
        for node in path:
            node.uses.popleft()
        hit = 0
        while hit < len(path) and path[hit].kept:
            hit += 1
        found += hit * PAGE
        whole = pages_of(root, s.text)
        missing = sum(not node.kept for node in whole)
        partial = len(s.text) % PAGE > 0
        for node in whole:
            node.pinned = True
        while n_pages is not None and n_kept + missing + partial > n_pages:
            when, _, k = heapq.heappop(kept)
            node = nodes[k]
            now = node.uses[0] if node.uses else len(served)
            if node.pinned or not node.kept or -when != now:
                continue  # it is of this request, or stands elsewhere in the heap
            node.kept = False
            n_kept -= 1
        for node in whole:
            n_kept += not node.kept
            node.kept, node.pinned = True, False
            keep(node)
        assert n_pages is None or n_kept <= n_pages, i
    return found


def best_tokens(served: list[Served]) -> int:
    """Prompt tokens that some earlier request had, single tokens too."""
    root: dict[int, dict] = {}
    best = 0
    for s in served:
        node, n = root, 0
        for token in s.prompt[:-1]:
            if token not in node:
                break
            node, n = node[token], n + 1
        best += n
        node = root
        for token in s.text:
            node = node.setdefault(token, {})
    return best


def mean_pages(served: list[Served]) -> float:
    """Pages of a chat."""
    return sum(len(s.text) / PAGE for s in served) / len(served)


def hit_rates(args: argparse.Namespace, folder: Path) -> list[Figure]:
    """Found and findable, with room and without, alone and together."""
    figures = []
    n = 150 if args.quick else 600
    for arch, shape in MODELS.items():
        path = folder / f"{arch}.gguf"
        write(path, shape, args.seed)
        for n_pages, n_users in ((None, 10), (SMALL_CACHE, 6), (SMALL_CACHE, 10)):
            for at_once in (1, 4):
                with ruvllm.Model(path, n_threads=1, witness=False) as m:
                    per_page = m.info.kv_bytes_per_token * PAGE
                budget = per_page * n_pages if n_pages else 1 << 30
                with ruvllm.Model(path, n_threads=1, kv_budget=budget, witness=False) as m:
                    served = serve(m, n, at_once, n_users, args.seed)
                asked = sum(len(s.prompt) for s in served)
                found = sum(s.found for s in served)
                best = best_pages(served, n_pages)
                held = f"{n_pages} pages, {n_users} users" if n_pages else "room for all"
                name = f"{arch}, {held}, {at_once} at once"
                fits = n_users * mean_pages(served) < (n_pages or 1 << 30)
                figures += [
                    Figure(f"{name}: found of prompts", 100 * found / asked, "%"),
                    Figure(f"{name}: best in whole pages", 100 * best / asked, "%"),
                    Figure(
                        f"{name}: found of the best", 100 * found / best, "%",
                        goal=">= 95" if fits else None,
                        holds=found >= 0.95 * best if fits else None,
                    ),
                ]  # fmt: skip
                if n_pages is None:
                    known = best_tokens(served)
                    figures.append(
                        Figure(f"{name}: found of all tokens known", 100 * found / known, "%")
                    )
    return figures


# -- what it costs ----------------------------------------------------------------------------


class Prefill:
    """Prompts that nobody saw before, one after the other."""

    def __init__(self, path: Path, n: int, share: bool, budget: int) -> None:
        self._model = ruvllm.Model(
            path, n_threads=1, share_prefix=share, kv_budget=budget, witness=False
        )
        self._n = n
        self._random = np.random.default_rng(share)

    def ns_per_token(self, rounds: int) -> float:
        """Nanoseconds per token over so many prompts."""
        core, n_vocab = self._model._open(), self._model.info.n_vocab
        prompts = self._random.integers(0, n_vocab, (rounds, self._n)).astype(np.int32)
        started = time.thread_time_ns()  # others may use the machine too
        for ids in prompts:
            session = _core.session_new(core, self._n)
            found = session.start(ids)  # the first token or two, by chance
            session.eval(ids[found:], False, None)
            session.close()
        return (time.thread_time_ns() - started) / rounds / self._n


def step_ns(path: str | None, n_prompt: int, rounds: int) -> tuple[float, float]:
    """Nanoseconds per token of prompts, and of a step that generates one."""
    with ruvllm.Model(path, n_threads=1, share_prefix=False, witness=False) as m:
        ids = (np.arange(n_prompt) * 31 % m.info.n_vocab).astype(np.int32)
        session = _core.session_new(m._open(), n_prompt + 64)

        def prefill() -> float:
            session.truncate(0)
            started = time.perf_counter_ns()
            session.eval(ids, False, None)
            return (time.perf_counter_ns() - started) / n_prompt

        def decode() -> float:
            started = time.perf_counter_ns()
            for i in range(16):
                session.eval(ids[i : i + 1], False, None)
            return (time.perf_counter_ns() - started) / 16

        prefill()
        rows = median_of(rounds, prefill, decode)
        session.close()
    return rows[0], rows[1]


def costs(args: argparse.Namespace, folder: Path) -> list[Figure]:
    """The cost of sharing where nothing is shared, by itself and as a part of steps."""
    path = folder / "nothing.gguf"
    write(path, Shape("llama", 1, 32, 1, 1, 32, 64, 512, head_dim=16), args.seed)
    budget = 4 << 20
    off, on = Prefill(path, 512, False, budget), Prefill(path, 512, True, budget)
    for p in (off, on):
        p.ns_per_token(200)  # the cache is full from here on
    rounds = 31 if args.quick else 101
    differences = sorted(on.ns_per_token(20) - off.ns_per_token(20) for _ in range(rounds))
    ns = differences[rounds // 2]
    figures = [Figure("looking up and publishing", ns, "ns/token")]
    models: list[tuple[str, str | None]] = [("bundled", None)]
    if args.model or not args.quick:
        big = args.model or str(make("lfm2-350m", folder / "350m.gguf", "q4_0", args.seed))
        models.append((Path(big).stem, big))
    for name, file in models:
        for what, t in zip(("prompts", "decode"), step_ns(file, 128, 5), strict=True):
            share = 100 * ns / t
            figures += [
                Figure(f"{name}, {what}: a token", t / 1000, "us"),
                Figure(
                    f"{name}, {what}: overhead of sharing",
                    share,
                    "%",
                    goal="<= 1",
                    holds=share <= 1,
                ),
            ]
    return figures


def main() -> None:
    p = options(__doc__)
    p.add_argument("--model", help="a GGUF whose steps to compare with, instead of a random 350M")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(args, [*hit_rates(args, Path(folder)), *costs(args, Path(folder))])


if __name__ == "__main__":
    main()
