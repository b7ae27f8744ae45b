"""What the public types are, seen by a user's type checker (run by mypy, never imported)."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import ruvllm

model = ruvllm.Model("x.gguf", n_threads=2, kv_type="f16", numerics="fast")
assert_type(model.tokenize("text"), list[int])
assert_type(model.generate("text"), ruvllm.GenerationResult)
assert_type(model.generate([1, 2], stream=True), ruvllm.Generation)
assert_type(model.chat([{"role": "user", "content": "x"}]), ruvllm.GenerationResult)
assert_type(model.chat([], stream=True), ruvllm.Generation)
assert_type(model.astream("text"), AsyncIterator[ruvllm.Chunk])
assert_type(model.embed(["a", "b"]), NDArray[np.float32])
assert_type(model.logits([1]), NDArray[np.float32])
assert_type(model.metadata, dict[str, Any])
assert_type(model.info.n_ctx, int)
assert_type(model.info.kv_store, str | None)
assert_type(ruvllm.check_kv("x.gguf", kv_store="k8v4", text="text"), ruvllm.KVCheck)
for chunk in model.generate("text", stream=True):
    assert_type(chunk, ruvllm.Chunk)
    assert_type(chunk.text, str)
assert_type(ruvllm.Tokenizer("x.gguf").detokenize([1]), str)

pool = ruvllm.MemoryPool(1 << 20)
with pool.allocate(ruvllm.LoraAdapter("a", 8, 4), 100, evict=lambda b: b.kind) as block:
    assert_type(block, ruvllm.MemoryBlock)
assert_type(pool.pressure, float)
assert_type(ruvllm.memory(), ruvllm.MemoryReport)
