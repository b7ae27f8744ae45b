"""Write the kept hostile GGUF files and README.md of this folder: python tests/bad/make.py."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
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


if __name__ == "__main__":
    main()
