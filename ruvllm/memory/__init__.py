"""What ruvllm remembers.  So far: the witness log."""

from __future__ import annotations

from ruvllm.memory.witness import WitnessEntry, WitnessLog, default_log, model_digest

__all__ = ["WitnessEntry", "WitnessLog", "default_log", "model_digest"]
