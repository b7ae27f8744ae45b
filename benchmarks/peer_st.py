"""The worker that runs sentence-transformers, in float32 on the CPU; see peer_pipe.py.

It wants torch, some GB of it, so it has an environment of its own: --st-python of bench_peers.py.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from typing import Any

from peer_pipe import serve

BATCHES = (32, 64, 128, 512)  # texts at once: 32 is its default; the fastest is what counts


class Engine:
    """One open model and the texts it is asked about."""

    def __init__(self) -> None:
        import sentence_transformers
        import torch

        self.kind: Any = sentence_transformers.SentenceTransformer
        self.torch: Any = torch

    def about(self) -> dict[str, str]:
        isa = self.torch.backends.cpu.get_cpu_capability()
        return {
            "version": version("sentence-transformers"),
            "system": f"torch {self.torch.__version__}, {isa}",
        }

    def open_texts(self, path: str, n_threads: int, texts: list[str]) -> int:
        """Open and warm up; gives the number of texts at once that was fastest."""
        self.torch.set_num_threads(n_threads)
        self.model = self.kind(path, device="cpu", local_files_only=True)
        self.texts = texts
        self.batch = BATCHES[0]
        seconds = {}
        for self.batch in BATCHES * 2:
            seconds[self.batch] = self.embed_texts(len(texts))
        self.batch = min(seconds, key=lambda n: seconds[n])
        return self.batch

    def encode(self, n: int) -> Any:
        return self.model.encode(
            self.texts[:n],
            batch_size=self.batch,
            normalize_embeddings=True,
            show_progress_bar=False,
        )

    def embed_texts(self, n: int) -> float:
        """Seconds to embed the first n texts."""
        t = time.perf_counter()
        self.encode(n)
        return time.perf_counter() - t

    def vectors(self) -> list[list[float]]:
        """Of all texts."""
        rows: list[list[float]] = self.encode(len(self.texts)).tolist()
        return rows


if __name__ == "__main__":
    try:
        e = Engine()
    except ModuleNotFoundError as missing:
        sys.exit(f"{sys.executable}: {missing}")
    names = ("about", "open_texts", "embed_texts", "vectors")
    serve({name: getattr(e, name) for name in names})
