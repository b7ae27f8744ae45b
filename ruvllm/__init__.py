"""ruvllm: a local LLM runtime that remembers and learns.

import ruvllm

model = ruvllm.Model()                       # the bundled model; or Model("some.gguf")
print(model.chat([{"role": "user", "content": "reverse desert chair water rabbit"}]))
"""

from ruvllm._core import Cancel
from ruvllm._core import version as __version__
from ruvllm._errors import (
    ArgumentError,
    CancelledError,
    FileError,
    FormatError,
    FullError,
    InternalError,
    NotFoundError,
    OutOfMemoryError,
    RuvllmError,
    StateError,
    UnsupportedError,
)
from ruvllm.engine._generate import Generation
from ruvllm.engine.convert import convert
from ruvllm.engine.model import Model, ModelInfo
from ruvllm.engine.quantize import quantize
from ruvllm.engine.results import Chunk, GenerationResult, Timings, TokenLogprob
from ruvllm.engine.tokenizer import Tokenizer
from ruvllm.memory.witness import WitnessEntry, WitnessLog

__all__ = [
    "ArgumentError",
    "Cancel",
    "CancelledError",
    "Chunk",
    "FileError",
    "FormatError",
    "FullError",
    "Generation",
    "GenerationResult",
    "InternalError",
    "Model",
    "ModelInfo",
    "NotFoundError",
    "OutOfMemoryError",
    "RuvllmError",
    "StateError",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedError",
    "WitnessEntry",
    "WitnessLog",
    "__version__",
    "convert",
    "quantize",
]
