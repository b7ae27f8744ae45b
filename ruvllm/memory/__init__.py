"""What ruvllm remembers.  So far: the witness log.

The name means two things to users: this folder, and ``ruvllm.memory()``, the report of where the
process's memory is.  So the module can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruvllm.engine.memory import MemoryReport

from ruvllm.memory.witness import WitnessEntry, WitnessLog, default_log, model_digest

__all__ = ["WitnessEntry", "WitnessLog", "default_log", "model_digest"]


class _Callable(ModuleType):
    def __call__(self) -> MemoryReport:
        """Where the memory of this process is."""
        from ruvllm.engine.memory import memory

        return memory()


sys.modules[__name__].__class__ = _Callable
