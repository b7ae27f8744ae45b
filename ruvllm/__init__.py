"""ruvllm: a local LLM runtime that remembers and learns."""
