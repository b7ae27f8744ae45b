"""Writes ids.json: what llama.cpp makes of random texts.

    python tests/golden/vocab/make_ids.py      (needs llama-cpp-python; run from the repository)

For each (vocabulary, pre-tokenizer): the ids of every text with special tokens parsed and not, the
tokens that end a generation, and a digest over the pieces of all tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tempfile
from ctypes import create_string_buffer
from pathlib import Path

import llama_cpp as ll

FOLDER = Path(__file__).parent
KEY = b"tokenizer.ggml.pre"
CASES = [
    ("gpt-2", "gpt-2"), ("gpt-2", "smollm"), ("gpt-2", "default"), ("gpt-2", "tekken"),
    ("gpt-2", "qwen35"), ("gpt-2", "lfm2"), ("llama-bpe", "llama-bpe"), ("llama-bpe", "lfm2"),
    ("llama-bpe", "default"), ("llama-bpe", "dbrx"), ("qwen2", "qwen2"), ("qwen2", "smollm"),
    ("qwen2", "megrez"), ("llama-spm", ""), ("bert-bge", ""),
]  # fmt: skip
WORDS = """
the of and Hello world don't I'm we'll they've it's CAN'T HE'LL foo_bar camelCase HTTPServer
x1 3.14 2024-11-20 naïve café 東京 の 天気 안녕하세요 привет שלום مرحبا ภาษาไทย हिन्दी বাংলা 🙂
👩‍👩‍👧 🇩🇪 ½ ² Ⅷ ٣٤٥ １２３ ﬁ ǅ İstanbul ſ <s> </s> <|im_end|> <|im_start|> <|eot_id|>
<|endoftext|> <|begin_of_text|> [CLS] [MASK] <unk> <0x0A> return if(x==1){ }; // /* -> != &&
... --- === ### ``` ''' $ + < = > ^ ` | ~
""".split()  # noqa: SIM905
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\u00a0", "\u3000",
          "\x0b", "\x85", "\u2028", "", "", "\u200b", "'"]  # fmt: skip
BLOCKS = [(0x20, 0x7E), (0, 0x1F), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x4FF), (0x590, 0x6FF),
          (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x21FF), (0x2460, 0x27BF),
          (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFFEF),
          (0x10000, 0x1FFFF), (0x20000, 0x323AF), (0, 0xD7FF)]  # fmt: skip
CODE = ["    ", "\t", "for", "(", ")", "{", "}", ";", "\n", "x", "i", "=", "==", "0", "10", "0xFF",
        '"s"', "'c'", "//", " ", "_", ".", "::", "->", "\\n", "100000", "3.14e-5"]  # fmt: skip
RUNS = [" ", "\n", "\t", "\r", "a", "1", ".", "'", "é", "中", "٣", "\u3000", "_", "🙂", "\u0301"]
CONTRACTIONS = ["'s", "'S", "'t", "'re", "'RE", "'Ve", "'ll", "'lL", "'d", "'M", "'", "x", " "]
BAD = [b"\xff", b"\x80", b"\xe2\x96", b"\xc3", b"\xf0\x9f\x99"]


def texts(n: int) -> list[bytes]:
    """n texts; every eighth is not UTF-8."""
    rng = random.Random(20)

    def pick(items: list[str], most: int) -> str:
        return "".join(rng.choice(items) for _ in range(rng.randint(1, most)))

    def block() -> str:
        first, last = rng.choice(BLOCKS)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12)))

    kinds = [
        lambda: "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 9))),
        lambda: pick(CODE, 20),
        lambda: "".join(rng.choice(RUNS) * rng.randint(1, 9) for _ in range(rng.randint(1, 7))),
        lambda: pick(CONTRACTIONS, 9),
        lambda: pick(list("019٣Ⅷ½ .,a１"), 14),
        block,
    ]
    out = []
    for i in range(n):
        raw = rng.choice(kinds)().encode()
        if i % 8 == 7:
            at = rng.randint(0, len(raw))
            raw = raw[:at] + b" " + rng.choice(BAD) + b" " + raw[at:]
        out.append(raw)
    return out


def with_pre(data: bytes, pre: str) -> bytes:
    """The file with another ``tokenizer.ggml.pre``."""
    at = data.index(struct.pack("<Q", len(KEY)) + KEY) + 8 + len(KEY)
    n = struct.unpack_from("<Q", data, at + 4)[0]
    return data[: at + 4] + struct.pack("<Q", len(pre)) + pre.encode() + data[at + 12 + n :]


def ask(path: Path, all_texts: list[bytes]) -> dict[str, object]:
    """Everything about one vocabulary."""
    params = ll.llama_model_default_params()
    params.vocab_only = True
    model = ll.llama_model_load_from_file(str(path).encode(), params)
    vocab = ll.llama_model_get_vocab(model)
    n_vocab = ll.llama_vocab_n_tokens(vocab)

    def encode(raw: bytes, special: bool) -> list[int]:
        room = 3 * len(raw) + 16
        ids = (ll.llama_token * room)()
        n = ll.llama_tokenize(vocab, raw, len(raw), ids, room, False, special)
        assert n >= 0
        return list(ids[:n])

    digest = hashlib.sha256()
    buf = create_string_buffer(4096)
    for special in (False, True):
        for i in range(n_vocab):
            n = ll.llama_token_to_piece(vocab, i, buf, 4096, 0, special)
            digest.update(n.to_bytes(4, "little") + buf.raw[:n])
    out = {
        "plain": [encode(raw, False) for raw in all_texts],
        "special": [encode(raw, True) for raw in all_texts],
        "eog": [i for i in range(n_vocab) if ll.llama_vocab_is_eog(vocab, i)],
        "add_bos": bool(ll.llama_vocab_get_add_bos(vocab)),
        "pieces_sha256": digest.hexdigest(),
    }
    ll.llama_model_free(model)
    return out


def main() -> None:
    """Write ids.json beside this file."""
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, None)
    ll.llama_backend_init()
    raw = texts(96)
    result: dict[str, object] = {
        "command": "python tests/golden/vocab/make_ids.py",
        "source": f"llama-cpp-python {ll.__version__}",
        "texts_hex": [t.hex() for t in raw],
    }
    for name, pre in CASES:
        data = (FOLDER / f"ggml-vocab-{name}.gguf").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "v.gguf"
            path.write_bytes(with_pre(data, pre) if pre else data)
            result[f"{name}/{pre}"] = ask(path, raw)
    lines = [f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in result.items()]
    (FOLDER / "ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
