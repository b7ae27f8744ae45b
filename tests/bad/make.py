"""Write the kept hostile GGUF files, README.md and the seeds of the fuzz corpus.

python tests/bad/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE.parent / "fuzz" / "corpus_gguf"
sys.path.insert(0, str(HERE.parent / "py"))

HEAD = """# Inputs that must be refused

Each GGUF file here ends in the error beside it, in every reader test, sanitizer run and fuzz run
(it is part of the corpus). `make.py` writes the files and this list from `tests/py/gguf_bad.py`.

| file | bytes | error | says |
|---|---|---|---|
"""


def main() -> None:
    import gguf_bad

    rows = []
    for case in gguf_bad.ALL:
        if case.name not in gguf_bad.KEPT:
            continue
        (HERE / f"{case.name}.gguf").write_bytes(case.data)
        rows.append(
            f"| `{case.name}.gguf` | {len(case.data)} | {case.error.__name__} | `{case.text}` |\n"
        )
    (HERE / "README.md").write_text(HEAD + "".join(rows))
    for name, data in seeds().items():
        (CORPUS / name).write_bytes(data)


def seeds() -> dict[str, bytes]:
    """Files that open; what a fuzzer finds from there is stored beside them by its hash."""
    import gguf_make as mk

    kvs = [mk.kv("general.name", mk.STR, "x"), mk.kv("general.alignment", mk.U32, 64)]
    order = [mk.Tensor("b", (32,), 2, offset=64), mk.Tensor("a", (4, 2), 0, offset=0)]
    return {
        "empty.gguf": mk.gguf(),
        "all_types.gguf": mk.all_types(),
        "nested_8.gguf": mk.nested(8),
        "version_2.gguf": mk.gguf([mk.kv("k", mk.U32, 1)], [mk.Tensor()], version=2),
        "order_align_64.gguf": mk.gguf(kvs, order, align=64),
        "split_part.gguf": mk.gguf(mk.split_keys(0, 2, 1), [mk.Tensor()]),
        "types.gguf": mk.gguf((), [mk.Tensor(f"t{k}", (256,), k) for k in mk.BLOCKS]),
    }


if __name__ == "__main__":
    main()
