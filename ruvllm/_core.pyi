"""Types of the extension module: the C core as Python sees it.

Methods are positional; keywords, defaults and documentation for users are in the package.  Each
part is implemented by the file of its name in ``csrc/py``.
"""

import os
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeAlias, TypedDict, final

import numpy as np
from typing_extensions import Buffer as _BufferProtocol

# NumPy, like Array, declares itself a buffer from Python 3.12 on only.
_Buffer: TypeAlias = _BufferProtocol | np.ndarray[Any, Any] | Array | Page

# ---- model ----

version: str

def live_bytes() -> int:
    """Bytes the core's allocator holds now; mappings are not counted."""

def read_bandwidth(n_threads: int, n_bytes: int, /) -> float:
    """Bytes per second that one pass over a fresh buffer of n_bytes reaches.

    n_threads: 1 .. 256.  n_bytes: at least 1 MiB.  Raises ArgumentError, OutOfMemoryError.
    """

@final
class Array:
    """float32 or int32 memory of the core, shown read-only by the buffer protocol."""

@final
class Cancel:
    """A flag that another thread sets to stop a running call."""

    def __new__(cls) -> Cancel: ...
    def set(self, on: bool, /) -> None:
        """Set or clear the flag."""

    def get(self) -> bool:
        """Whether the flag is set."""

@final
class Model:
    """An open model.  Made by model_open; shared by any number of threads."""

    def info(self) -> dict[str, Any]:
        """Hyperparameters and sizes; main_type is ggml's number."""

    def tokenizer(self) -> Tokenizer | None:
        """The file's vocabulary, or None."""

    def gguf(self) -> GGUF:
        """The open file; it keeps the model alive."""

    def repacked_bytes(self) -> int:
        """Memory held by repacked weights so far: all or none of it counts."""

    def work_bytes(self) -> int:
        """Memory of the work areas of forward passes that wait for their next use."""

    def memory(self) -> Budget | None:
        """The budget its keys and values count in; None for an encoder."""

    def kv_stats(self) -> dict[str, int]:
        """Memory of keys and values and counters of its use; zeros for an encoder."""

    def embed(
        self,
        tokens: Sequence[int] | _Buffer,
        lengths: Sequence[int] | _Buffer,
        cancel: Cancel | None,
        /,
    ) -> Array:
        """Embeddings of texts that stand one after another in tokens.

        Returns float32 ``(n, n_embd)``, rows of unit length.
        Raises ArgumentError, FullError for a text beyond the context, CancelledError.
        """

def model_open(
    path: str,
    n_threads: int,
    kv_type: int,
    n_batch: int,
    prefault: bool,
    progress: Callable[[float], object] | None,
    repack: int = 0,
    kv_budget: int = 0,
    kv_store: int = 0,
    kv_rotate: bool = True,
    kv_tail: int = 0,
    kv_batch: int = 0,
    kv_fit: int = 0,
    share: bool = True,
    numerics: int = 0,
    memory: Budget | None = None,
    /,
) -> Model:
    """Open a GGUF model; 0 means the default of n_threads, kv_type and n_batch.

    kv_type: 0 as precise as the weights, 1 F16, 2 F32, 3 Q8_0, 4 Q4_0.  progress: called
    with 0..1 while prefault reads the file; an exception in it ends the opening.  repack:
    0 auto, 1 never, 2 always.  kv_budget: bytes, 0: half of what is available.  kv_store: 0 none,
    3 Q8_0, 4 Q4_0, 5 keys Q8_0 and values Q4_0.  kv_tail, kv_batch: positions, multiples of 64;
    0: 256 and 64.  kv_fit: 0 first, 1 best, 2 round robin.  share: sequences with equal beginnings
    share pages.  numerics: 0 exact, 1 fast.
    memory: instead of kv_budget.
    """

# ---- memory ----

@final
class Budget:
    """A byte budget for several holders of memory.  Made by budget_new; thread-safe."""

    def join(self, name: str, priority: int, shrink: Callable[[int], bool] | None, /) -> Holder:
        """A new holder of nothing.

        shrink: called with how many bytes are wanted, in whatever thread wants them; frees what can
        be done without and says whether it has.  It must not refer to the holder but weakly.
        """

    def watch(self, fraction: float, tell: Callable[[], object], /) -> Holder:
        """Have tell called when use rises to a fraction of the budget, as long as this lives.

        Raises ArgumentError for a fraction outside (0, 1].
        """

    def resize(self, bytes: int, /) -> int:
        """Another budget; what is held beyond it and nobody could free."""

    def stats(self) -> dict[str, int]:
        """budget, used, peak (bytes), n_refused, n_shrinks."""

    def holders(self) -> list[tuple[str, int, int]]:
        """Name, priority and bytes of each that holds some, who is asked first in front."""

@final
class Holder:
    """Part of a budget, or a watch over it; with its last reference all is given back."""

    def take(self, bytes: int, /) -> None:
        """Count bytes before they are allocated, asking others to free; FullError."""

    def give(self) -> None:
        """Count nothing any more."""

    def use(self) -> None:
        """Be the most recently used of its priority: of those it is asked last."""

    def held(self) -> int:
        """Bytes counted."""

def budget_new(bytes: int, /) -> Budget:
    """A budget that nobody holds a part of."""

@final
class Page:
    """Sixteen positions of a layer, read-only ``(n_heads, run)`` through the buffer protocol.

    It stays as it is while the session goes on.
    """

    def about(self) -> dict[str, Any]:
        """type, n_heads, head_dim, n_tokens (positions that hold something), rotated (keys)."""

@final
class Session:
    """A sequence with its KV cache.  One thread at a time: StateError otherwise."""

    def eval(
        self, tokens: Sequence[int] | _Buffer, all: bool, cancel: Cancel | None, /
    ) -> Array | None:
        """Run tokens at the end of the sequence; on an error no position is consumed.

        all: return the logits of every token, float32 ``(n, n_vocab)``, else None.
        Raises ArgumentError for an id out of range, FullError, CancelledError.
        """

    def sample(
        self, sampler: Sampler, pos: int, allow: _Buffer | None, /
    ) -> tuple[int, float, tuple[int, ...], tuple[float, ...]]:
        """As Sampler.sample, on the logits of the last token, without copying them."""

    def logits(self) -> Array:
        """A copy of the last token's logits, float32 ``(n_vocab,)``; StateError before eval."""

    def truncate(self, n: int, /) -> None:
        """Forget everything from position n on."""

    def n_past(self) -> int:
        """Tokens held."""

    def room(self) -> int:
        """Tokens that still fit."""

    def kv_bytes(self) -> int:
        """Bytes of keys and values held."""

    def start(self, tokens: Sequence[int] | _Buffer, /) -> int:
        """Hold as much of tokens as needs no computing, at most all but one; how many."""

    def fork(self) -> Session:
        """Another session with the same contents and no logits."""

    def save(self, path: str | bytes | PathLike[str], digest: str, /) -> None:
        """Write keys, values and state into a file, whole or not at all."""

    def load(
        self,
        path: str | bytes | PathLike[str],
        digest: str,
        tokens: Sequence[int] | _Buffer,
        /,
    ) -> int:
        """``start`` from a file.

        Raises NotFoundError, FileError, FormatError (damaged), UnsupportedError (of another model,
        version or kv options), FullError.
        """

    def page(self, layer: int, i: int, /) -> Page:
        """Positions 16 * i and on of the layer-th layer that keeps keys."""

    def close(self) -> None:
        """Free the sequence now; later calls raise StateError."""

def session_new(model: Model, n_ctx: int, /) -> Session:
    """A new sequence of at most n_ctx tokens, 1 .. the model's context."""

# ---- engine ----

# id, token (-1: none), logprob, top ids, their logprobs, finish (0 goes on, 1 stop, 2 length,
# 3 cancelled, 4 deadline, 5 error), the error, prompt tokens found, times preempted, tokens that
# came from its file, why what was on disk was of no use
_Event: TypeAlias = tuple[
    int, int, float, tuple[int, ...], tuple[float, ...], int, Exception | None, int, int, int,
    Exception | None
]  # fmt: skip

@final
class Engine:
    """Continuous batching over a model.  Made by engine_new; one thread steps, any may submit.

    Every method but ``close`` raises StateError once it is closed, and in a forked process.
    """

    def submit(
        self,
        tokens: Sequence[int] | _Buffer,
        max_tokens: int,
        params: _SampleParams,
        allow: _Buffer | None,
        stop_ids: Sequence[int] | _Buffer,
        ignore_eog: bool,
        priority: int,
        tenant: int,
        deadline_ms: int,
        salt: bytes,
        restore: bytes | None = None,
        n_restore: int = 0,
        kv_tail: int = 0,
        /,
    ) -> int:
        """Queue a request; its id, which is greater than any before.

        allow: mask of the first choice, as Sampler.sample takes it.  priority: 0 low .. 3 critical.
        deadline_ms: from now, 0: none.  salt: only requests of one salt share prefixes.
        restore: path of a file of ``park`` with n_restore tokens of the same beginning.
        kv_tail: newest positions that stay out of the store, a multiple of 64; 0: the model's.
        Raises ArgumentError; FullError when the queue is full or the request can never fit.
        """

    def cancel(self, id: int, reason: int, /) -> None:
        """End a request before the next step; reason 1 stop, 3 cancelled.

        Raises NotFoundError when it is unknown or has ended.
        """

    def allow(self, id: int, mask: _Buffer | None, /) -> None:
        """Mask of the next choice of a request, and of no later one; None: all tokens."""

    def step(self) -> tuple[list[_Event], bool, Exception | None]:
        """One forward pass over rows of many requests, without the GIL.

        Returns its events, whether nothing runs or waits any more, and an error that is no
        request's fault (out of memory): nothing was computed then, and it may be tried again.
        Raises StateError while another thread is inside.
        """

    def stats(self) -> dict[str, Any]:
        """n_waiting, n_running, n_steps, n_rows, n_tokens, n_submitted, n_refused, n_finished,
        n_cancelled, n_preempted, n_prompt, n_cached (int); step_ms, rows_per_step (float)."""

    def park(
        self, path: bytes, tokens: Sequence[int] | _Buffer, salt: bytes, kv_tail: int = 0, /
    ) -> tuple[int, int]:
        """Begin to write what the cache has of these tokens; in the thread that steps.

        Returns how many of them, and the bytes of the file; 0: nothing is there or written.
        Raises UnsupportedError without a folder, StateError while another one is being written,
        FileError.
        """

    def park_more(self, n_bytes: int, /) -> bool:
        """Write about so much more; whether the file is there.  An error leaves none."""

    def peek(self, tokens: Sequence[int] | _Buffer, salt: bytes, kv_tail: int = 0, /) -> int:
        """How many of the tokens a request would find in the cache."""

    def forget(self, tokens: Sequence[int] | _Buffer, salt: bytes, kv_tail: int = 0, /) -> int:
        """Free what the cache keeps of these tokens and of no other continuation; 0."""

    def close(self) -> None:
        """End what runs, report nothing and free it; StateError while a call is under way."""

def engine_new(
    model: Model,
    policy: int,
    n_ctx: int,
    max_rows: int,
    max_chunk: int,
    max_running: int,
    max_queue: int,
    max_queue_tokens: int,
    age_steps: int,
    max_preempt: int,
    spill_dir: bytes | None = None,
    digest: str = "",
    swap: bool = False,
    /,
) -> Engine:
    """An engine; 0 means the default everywhere.  policy: 0 fcfs, 1 sjf, 2 fair.

    spill_dir: an existing folder for keys and values of what does not run.  digest: of the model,
    for its files.  swap: preempted requests are written there.
    Raises UnsupportedError for an encoder, ArgumentError for an option out of range.
    """

# ---- kernels ----

def cpu() -> _CpuInfo:
    """What the kernels run on.

    Returns ``{"features": ..., "machine": ..., "kernels": {...}}``: the instruction sets in use and
    those this machine has ("avx2 avx512 vnni bf16", "portable" for none), and for each kernel
    ("mul_q4_0", "quant", "norm", "rope", "act", "attn") the one that serves it: "ref", "avx2",
    "avx512" or "vnni".
    """

def cpu_limit(mask: int, /) -> None:
    """Refill the kernel table for the instruction sets in mask that this machine has.

    mask: sum of 1 (AVX2), 2 (AVX-512), 4 (VNNI) and 8 (BF16), 0 .. 15; 15 is everything. A level
    counts as missing when one it stands on is: AVX2 below AVX-512, that below the other two. Tests
    and benchmarks only: no other thread may be computing. Raises ArgumentError beyond 0 .. 15.
    """

def dtypes() -> dict[str, tuple[int, int, int]]:
    """Tensor types by name: (ggml's number, values per block, bytes per block)."""

def dequantize(type: int, data: _Buffer, k: int, out: _Buffer, /) -> None:
    """Whole blocks to float32.

    data: the bytes of k values of that type. out: writable float32 ``(k,)``, C-contiguous; receives
    the values the format defines. Raises ArgumentError for an unknown type or a wrong size.
    """

def quantize(
    type: int, x: _Buffer, k: int, out: _Buffer, weights: _Buffer | None = None, /
) -> None:
    """Rows of k float32 values to blocks.

    x: float32 ``(rows, k)``, C-contiguous; every value finite and small enough for the type, its
    scales in half precision included. out: writable uint8 of exactly the rows' bytes; untouched on
    an error. weights: float32 ``(k,)``, finite, >= 0: how much an error in a column counts, such as
    the mean square of its input; None: all alike. Without weights the bytes of f32 f16 bf16 q4_0
    q4_1 q5_0 q5_1 q8_0 are those of ggml's reference code; everything else searches the least sum
    of weights * error^2. Releases the GIL.
    Raises ArgumentError naming the value or weight at fault, the type or the size.
    """

def act_pack(x: _Buffer, /) -> bytes:
    """A row of float32 values rounded to 8 bits per 32, as mul wants it (layout in rvk.h).

    x: float32, a multiple of 32 values. Raises ArgumentError otherwise.
    """

def panel_bytes(type: int, n_rows: int, k: int, /) -> int:
    """Bytes of n_rows >= 1 rows of k values repacked as panels of sixteen rows, see rvk.h.

    Raises ArgumentError for a type that the kernels in use do not read so.
    """

def panel_pack(type: int, w: _Buffer, n_rows: int, k: int, out: _Buffer, /) -> None:
    """Repack the bytes of n_rows rows into out: writable, ``panel_bytes`` long."""

def mul(
    type: int,
    w: _Buffer,
    n_rows: int,
    x: _Buffer,
    k: int,
    out: _Buffer,
    panels: bool = False,
    rounded: bool = False,
    /,
) -> None:
    """out[c, r] = w[r] . x[c]; with panels w is what panel_pack wrote.

    w: the bytes of n_rows rows of k values. x: float32 ``(n_cols, k)``; packed first where the type
    is quantised. rounded: x is rounded to the type first, see rvk.h, which not all have.
    out: writable float32 ``(n_cols, n_rows)``. Releases the GIL.
    Raises ArgumentError for an unknown type or a wrong size.
    """

def rms_norm(x: _Buffer, g: _Buffer, eps: float, out: _Buffer, /) -> None:
    """Test hook: x / sqrt(mean(x^2) + eps) * g over float32 ``(n,)``."""

def layer_norm(x: _Buffer, g: _Buffer, b: _Buffer | None, eps: float, out: _Buffer, /) -> None:
    """Test hook: (x - mean) / sqrt(var + eps) * g + b over float32 ``(n,)``."""

def rope(x: _Buffer, n_heads: int, head_dim: int, cs: _Buffer, neox: bool, /) -> None:
    """Test hook: rotate float32 ``(n_heads, head_dim)`` in place.

    cs: float32 ``(n_rot,)``, cos and sin of pair i at 2i and 2i + 1; n_rot is even.
    """

def swiglu(gate: _Buffer, up: _Buffer, out: _Buffer, /) -> None:
    """Test hook: silu(gate) * up over float32 ``(n,)``."""

def gelu(x: _Buffer, out: _Buffer, /) -> None:
    """Test hook: gelu in its tanh form over float32 ``(n,)``."""

def add(a: _Buffer, b: _Buffer, out: _Buffer, /) -> None:
    """Test hook: a + b over float32 ``(n,)``."""

def shortconv(
    b: _Buffer, c: _Buffer, u: _Buffer, taps: _Buffer, state: _Buffer, l: int, out: _Buffer, /
) -> None:
    """Test hook: one token of the gated short convolution.

    b, c, u, out: float32 ``(n,)``. taps: float32 ``(n, l)``. state: writable float32
    ``(l - 1, n)``, moved on by one row.
    """

def attn(
    type: int,
    q: _Buffer,
    k: _Buffer,
    v: _Buffer,
    lo: int,
    hi: int,
    st_max: _Buffer,
    st_sum: _Buffer,
    acc: _Buffer,
    /,
) -> None:
    """Test hook: positions lo .. hi - 1 of a block of 64 into the running softmax.

    type: number of the cache's type, F32, F16, Q8_0, Q4_0, or 31: keys Q8_0, values Q4_0. q:
    float32 ``(n_q, d)``. k, v: float32 ``(hi, d)``, rounded to the type. st_max, st_sum: writable
    float32 ``(n_q,)``. acc: writable float32 ``(n_q, d)``.
    """

# from typing import TypedDict
class _CpuInfo(TypedDict):
    """What :func:`cpu` returns."""

    features: str
    machine: str
    kernels: dict[str, str]

# ---- gguf ----

@final
class GGUFView:
    """Bytes of one tensor, shown read-only by the buffer protocol; made by GGUF.tensor_data."""

@final
class GGUF:
    """An open GGUF file (all parts of a split one), read-only, memory-mapped.

    Made by :func:`gguf_open` and :func:`gguf_open_bytes`. Every method but ``close`` raises
    StateError once it is closed.
    """

    def version(self) -> int:
        """Version of the format: 2 or 3."""
    def alignment(self) -> int:
        """Alignment of tensor data in bytes: a power of two, 8 to 65536."""
    def file_bytes(self) -> int:
        """Size of all parts in bytes."""
    def n_kv(self) -> int:
        """Number of metadata pairs, of the first part."""
    def n_tensors(self) -> int:
        """Number of tensors, of all parts."""
    def kv(self, max_array: int, /) -> list[tuple[str, str, Any]]:
        """``(key, type name, value)`` of every pair, in the file's order.

        max_array: the most elements a list gets (each level of nested ones); -1: all.
        Type names: u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64, and ``arr[<element type>]``.
        Bytes of a string that are not UTF-8 become U+FFFD. Raises ArgumentError below -1.
        """
    def get(self, key: str, /) -> Any | None:
        """The whole value of a key: int, float, bool, str or (nested) list; None without it."""
    def tensors(self) -> list[tuple[str, int, str, tuple[int, ...], int, int, int]]:
        """``(name, type, type name, dims, offset, n_bytes, i_file)`` of every tensor.

        dims: 1 to 4 numbers, the contiguous one first. offset: absolute in its file, in bytes.
        i_file: which part, from 0.
        """
    def tensor_data(self, i: int, /) -> memoryview:
        """The bytes of tensor i as they stand in the file: uint8 ``(n_bytes,)``, read-only.

        Zero-copy; keeps the GGUF alive. Raises ArgumentError unless 0 <= i < n_tensors().
        """
    def close(self) -> None:
        """Unmap the file; a second call does nothing. BufferError while tensor views exist."""

def gguf_open(path: str | bytes | PathLike[str], /) -> GGUF:
    """Open a GGUF file; of a split one (any part given) all parts. The GIL is released.

    Raises NotFoundError, FileError, FormatError (bytes that are no valid GGUF),
    UnsupportedError (big-endian, version 1, a tensor type or a count this build does not read).
    """

def gguf_open_bytes(data: bytes, /) -> GGUF:
    """The same over bytes in memory, which are kept alive. TypeError for anything but bytes."""

# ---- tok ----

@final
class Tokenizer:
    """A vocabulary: text to ids and back.  Made by tokenizer_open; threads may share it."""

    def encode(self, text: str | bytes, flags: int, /) -> list[int]:
        """Ids of ``text``, without the GIL, in nearly linear time.

        text: at most 2**30 bytes of UTF-8.  Bytes that are not UTF-8 become U+FFFD, one each;
        a vocabulary with byte tokens keeps them.
        flags: 1 begin token first, 2 end token last, 4 text that spells a control token becomes it.
        Raises ArgumentError for a lone surrogate, too long a text or an unknown flag.
        """

    def decode(self, ids: Sequence[int] | _Buffer, special: bool, /) -> bytes:
        """Bytes of ``ids``; control tokens give nothing unless ``special``.

        The space that encoding put before the text is left out.
        Raises ArgumentError for an id outside 0 .. n_vocab - 1.
        """

    def piece(self, id: int, special: bool, /) -> bytes:
        """The bytes one id adds to running text.  Raises ArgumentError for an id out of range."""

    def text(self, id: int, /) -> bytes:
        """The token as the vocabulary spells it; empty for an id out of range."""

    def type_of(self, id: int, /) -> int:
        """1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.

        Raises ArgumentError for an id out of range.
        """

    def find(self, text: str | bytes, /) -> int:
        """The id whose vocabulary spelling is exactly this, or -1."""

    def is_eog(self, id: int, /) -> bool:
        """Whether the token ends a generation.  Raises ArgumentError for an id out of range."""

    def info(self) -> dict[str, Any]:
        """model, pre (str); n_vocab, bos, eos, eot, unk, pad, sep, cls, mask (int, -1: none);
        add_bos, add_eos, add_space_prefix (bool): what the file asks for by default."""

def tokenizer_open(gguf: GGUF, /) -> Tokenizer:
    """The vocabulary of an open GGUF, of which nothing is kept.

    Raises FormatError for missing or inconsistent keys, UnsupportedError for a model or a
    pre-tokenizer that is not known, StateError for a closed file.
    """

def tokenizer_new(
    model: str,
    pre: str,
    tokens: Sequence[bytes],
    scores: Sequence[float] | None,
    types: Sequence[int] | None,
    merges: Sequence[bytes] | None,
    specials: dict[str, int | str],
    /,
) -> Tokenizer:
    """A vocabulary from plain arrays.

    model: "gpt2", "llama" or "bert".  scores, types: one per token.  merges: b"left right".
    specials: bos, eos, eot, eom, unk, pad, sep, cls, mask, fim_* (ids); add_bos, add_eos,
    add_space_prefix, remove_extra_whitespaces, ignore_merges, lowercase, strip_accents (0 or 1);
    arch, name (str).
    Raises as tokenizer_open; ValueError for a key that is not known or arrays of other lengths.
    """

# ---- sampler ----

@final
class Sampler:
    """Chooses tokens from logits.  Made by sampler_new; one thread at a time."""

    def accept(self, ids: Sequence[int] | _Buffer, /) -> None:
        """Tell the penalties about tokens already in the text.

        ids: int32 array or integers in 0 .. n_vocab - 1.  On an error nothing is remembered.
        Raises ArgumentError for an id outside the range, StateError while another thread is inside.
        """

    def sample(
        self, logits: _Buffer, pos: int, allow: _Buffer | None, /
    ) -> tuple[int, float, tuple[int, ...], tuple[float, ...]]:
        """Choose a token; it is remembered for the penalties.

        logits: float32 ``(n_vocab,)``, C-contiguous, not changed.  pos: 0 .. 2**64 - 1, the index
        of the generated token; the random number depends on (seed, pos) alone.
        allow: int32 or uint32 ``(ceil(n_vocab / 32),)``, bit i % 32 of word i // 32 allows token i.
        Returns (id, logprob, top_ids, top_logprobs): nats, of the softmax of the logits as given;
        the tops falling, ties by id, empty when n_logprobs is 0, without tokens of logit -inf.
        Raises ArgumentError for a wrong buffer or a NaN, StateError when no token is allowed.
        """

# The arguments of sampler_new but n_vocab.
_SampleParams: TypeAlias = tuple[
    float, int, float, float, float, float, float, float, int, int, Sequence[int] | _Buffer,
    Sequence[float], int,
]  # fmt: skip

def sampler_new(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    repeat_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    penalty_last_n: int,
    seed: int,
    bias_ids: Sequence[int] | _Buffer,
    bias: Sequence[float],
    n_logprobs: int,
    n_vocab: int,
    /,
) -> Sampler:
    """A sampler: bias, penalties, mask, top-k, typical, top-p, min-p, temperature, draw.

    temperature: >= 0, 0 is greedy.  top_k: >= 0, 0 off.  top_p, typical_p: (0, 1], 1 off.
    min_p: [0, 1], 0 off.  repeat_penalty: > 0, 1 off.  frequency_penalty, presence_penalty:
    -100 .. 100.  penalty_last_n: -1 (all) .. 2**20 tokens, 0 none.  seed: 0 .. 2**64 - 1.
    bias_ids: distinct ids; bias: as many numbers, finite or -inf (bans).
    n_logprobs: 0 .. 100; -1: logprobs are nan, and a draw costs less.
    Floats are rounded to float32.  Raises ArgumentError naming the parameter, value and range.
    """

# ---- store ----

@final
class Store:
    """memory.db in a folder (made when missing), with its own writer thread.

    dir: the folder. queue_depth: rows, 0: 10,000. queue_bytes: 0: 256 MiB. max_batch: rows per
    commit, 0: 100. max_wait_ms: 0: 1000. busy_timeout_ms: 0: 5000.
    Raises FileError, FormatError, UnsupportedError (newer schema), StateError (the file was open
    when this process was forked), ArgumentError.
    """

    def __new__(
        cls,
        dir: str | os.PathLike[str],
        queue_depth: int = 0,
        queue_bytes: int = 0,
        max_batch: int = 0,
        max_wait_ms: int = 0,
        busy_timeout_ms: int = 0,
        /,
    ) -> Store: ...
    @property
    def path(self) -> str:
        """The file, absolute."""

    def witness_put(self, entry: dict[str, object], critical: bool = False, /) -> str:
        """Queue an entry and return its id; with critical return when it is on the disk.

        entry: column to value (str, bytes, int, float or None), JSON columns as text.
        Raises ArgumentError, FullError (queue full), StateError; critical: FileError, FormatError.
        """

    def write(self, name: str, args: tuple[int | str | None, ...], /) -> None:
        """Queue a row: "digest" (path, size, mtime_ns, inode, digest), "meta" (key, value)."""

    def query(self, name: str, args: tuple[int | str | None, ...], /) -> list[dict[str, Any]]:
        """Rows of a named query, column to value; it sees what is committed.

        "witness_get" (id or its beginning); "witness_list" (since_ms, until_ms, session_id,
        model_name, kind, limit, offset); "witness_count" (the first five); "digest" (path, size,
        mtime_ns, inode); "meta" (key).
        """

    def flush(self, timeout_s: float = -1.0, durable: bool = True, /) -> None:
        """Wait until all that is queued is committed, and with durable on the disk.

        timeout_s: seconds, negative: no limit. Raises StateError when it is over, FileError when a
        commit failed (rows stay queued), FormatError when the table refused rows since the last
        flush.
        """

    def close(self) -> None:
        """Write what waits, stop the thread, close the file; again: nothing. As flush, raises."""

    def new_id(self) -> str:
        """A new UUID, version 7; later ones sort after earlier ones."""

    def stats(self) -> dict[str, Any]:
        """Counters: queued, written, dropped, failed, batches, retries, queue_depth, queue_bytes,
        queued_seq, committed_seq, durable_seq (int), failing, ofd_locks (bool), last_error (str).
        """
