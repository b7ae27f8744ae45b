"""ruvllm: a local LLM runtime that remembers and learns.

    import ruvllm

    model = ruvllm.Model()                       # the bundled model; or Model("some.gguf")
    print(model.chat([{"role": "user", "content": "reverse desert chair water rabbit"}]))

Names are imported on first use (PEP 562), so that importing the package costs next to nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from ruvllm.engine._record import Replay, replay
    from ruvllm.engine.batching import Engine, EngineMetrics, Request
    from ruvllm.engine.conversation import Conversation
    from ruvllm.engine.convert import convert
    from ruvllm.engine.kv_check import KVCheck, check_kv
    from ruvllm.engine.kv_policy import KVRule
    from ruvllm.engine.memory import (
        KvCache,
        LoraAdapter,
        MemoryBlock,
        MemoryHolder,
        MemoryPool,
        MemoryReport,
        ModelMemory,
        PoolReport,
        RouterWeights,
    )
    from ruvllm.engine.memory import memory as memory
    from ruvllm.engine.minilm import minilm_path
    from ruvllm.engine.model import KVStats, Model, ModelInfo
    from ruvllm.engine.quantize import quantize
    from ruvllm.engine.results import Chunk, GenerationResult, Timings, TokenLogprob
    from ruvllm.engine.session import KVLayer, KVPage, Session
    from ruvllm.engine.tokenizer import Tokenizer
    from ruvllm.memory.witness import WitnessEntry, WitnessLog

_HOME = {
    "ruvllm._core": ("Cancel",),
    "ruvllm._errors": (
        "ArgumentError",
        "CancelledError",
        "FileError",
        "FormatError",
        "FullError",
        "InternalError",
        "NotFoundError",
        "OutOfMemoryError",
        "RuvllmError",
        "StateError",
        "UnsupportedError",
    ),
    "ruvllm.engine._generate": ("Generation",),
    "ruvllm.engine._record": ("Replay", "replay"),
    "ruvllm.engine.batching": ("Engine", "EngineMetrics", "Request"),
    "ruvllm.engine.conversation": ("Conversation",),
    "ruvllm.engine.convert": ("convert",),
    "ruvllm.engine.kv_check": ("KVCheck", "check_kv"),
    "ruvllm.engine.kv_policy": ("KVRule",),
    "ruvllm.engine.memory": (
        "KvCache",
        "LoraAdapter",
        "MemoryBlock",
        "MemoryHolder",
        "MemoryPool",
        "MemoryReport",
        "ModelMemory",
        "PoolReport",
        "RouterWeights",
    ),
    "ruvllm.engine.minilm": ("minilm_path",),
    "ruvllm.engine.model": ("KVStats", "Model", "ModelInfo"),
    "ruvllm.engine.quantize": ("quantize",),
    "ruvllm.engine.session": ("KVLayer", "KVPage", "Session"),
    "ruvllm.engine.results": ("Chunk", "GenerationResult", "Timings", "TokenLogprob"),
    "ruvllm.engine.tokenizer": ("Tokenizer",),
    "ruvllm.memory.witness": ("WitnessEntry", "WitnessLog"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ArgumentError",
    "Cancel",
    "CancelledError",
    "Chunk",
    "Conversation",
    "Engine",
    "EngineMetrics",
    "FileError",
    "FormatError",
    "FullError",
    "Generation",
    "GenerationResult",
    "InternalError",
    "KVCheck",
    "KVLayer",
    "KVPage",
    "KVRule",
    "KVStats",
    "KvCache",
    "LoraAdapter",
    "MemoryBlock",
    "MemoryHolder",
    "MemoryPool",
    "MemoryReport",
    "Model",
    "ModelInfo",
    "ModelMemory",
    "NotFoundError",
    "OutOfMemoryError",
    "PoolReport",
    "Replay",
    "Request",
    "RouterWeights",
    "RuvllmError",
    "Session",
    "StateError",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedError",
    "WitnessEntry",
    "WitnessLog",
    "__version__",
    "check_kv",
    "convert",
    "minilm_path",
    "quantize",
    "replay",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__version__":
        value = import_module("ruvllm._core").version
    elif name == "memory":  # a folder that can be called
        return import_module("ruvllm.memory")
    elif name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    else:
        raise AttributeError(f"module 'ruvllm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
