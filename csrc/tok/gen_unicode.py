"""Writes unicode.inc, the character tables of the tokenizers.

    python3 csrc/tok/gen_unicode.py

Only the standard library's ``unicodedata`` is read. The tables hold Unicode 15.1, the version
that published token ids were made with. An interpreter with an older database (Python 3.11 has
14.0) lacks what 15.0 and 15.1 assigned: those ranges are listed in NEWER below and are the only
difference there is (no character changed its category, case or decomposition in between). A
database newer than 15.1 would assign more: its extra characters are left out by their age, which
unicodedata does not tell, so the script refuses to run there.

Tables written:
  rv_uc_stage1, rv_uc_stage2  class of a code point: one of L N P S M Z C (control, format,
                              surrogate, private), 0 when not assigned, and a bit for
                              White_Space; two stages of 128 code points
  uc_lower  code point -> the first code point of its lower case
  uc_nfd    code point -> the first code point of its canonical decomposition
  UC_DIGEST  FNV-1a over class, lower and nfd of every code point but the surrogates, as this
             script sees them: a test takes the same digest through the C functions
The two maps are runs {first, last, step, to}, ascending: with step 1 or 2 the code points first,
first + step, ... last map to themselves plus (to - first); with step 0 all of first .. last map
to ``to``.
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

WANT = "15.1.0"
KNOWN = ("14.0.0", "15.0.0", "15.1.0")

# Assigned in 15.0 and 15.1, as (first, last, major category).
NEWER = [
    (0x0CF3, 0x0CF3, "M"), (0x0ECE, 0x0ECE, "M"), (0x2FFC, 0x2FFF, "S"), (0x31EF, 0x31EF, "S"),
    (0x10EFD, 0x10EFF, "M"), (0x1123F, 0x11240, "L"), (0x11241, 0x11241, "M"),
    (0x11B00, 0x11B09, "P"), (0x11F00, 0x11F01, "M"), (0x11F02, 0x11F02, "L"),
    (0x11F03, 0x11F03, "M"), (0x11F04, 0x11F10, "L"), (0x11F12, 0x11F33, "L"),
    (0x11F34, 0x11F3A, "M"), (0x11F3E, 0x11F42, "M"), (0x11F43, 0x11F4F, "P"),
    (0x11F50, 0x11F59, "N"), (0x1342F, 0x1342F, "L"), (0x13439, 0x1343F, "C"),
    (0x13440, 0x13440, "M"), (0x13441, 0x13446, "L"), (0x13447, 0x13455, "M"),
    (0x1B132, 0x1B132, "L"), (0x1B155, 0x1B155, "L"), (0x1D2C0, 0x1D2D3, "N"),
    (0x1DF25, 0x1DF2A, "L"), (0x1E030, 0x1E06D, "L"), (0x1E08F, 0x1E08F, "M"),
    (0x1E4D0, 0x1E4EB, "L"), (0x1E4EC, 0x1E4EF, "M"), (0x1E4F0, 0x1E4F9, "N"),
    (0x1F6DC, 0x1F6DC, "S"), (0x1F774, 0x1F776, "S"), (0x1F77B, 0x1F77F, "S"),
    (0x1F7D9, 0x1F7D9, "S"), (0x1FA75, 0x1FA77, "S"), (0x1FA87, 0x1FA88, "S"),
    (0x1FAAD, 0x1FAAF, "S"), (0x1FABB, 0x1FABD, "S"), (0x1FABF, 0x1FABF, "S"),
    (0x1FACE, 0x1FACF, "S"), (0x1FADA, 0x1FADB, "S"), (0x1FAE8, 0x1FAE8, "S"),
    (0x1FAF7, 0x1FAF8, "S"), (0x2B739, 0x2B739, "L"), (0x2EBF0, 0x2EE5D, "L"),
    (0x31350, 0x323AF, "L"),
]  # fmt: skip

# White_Space of PropList.txt.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)}
SPACES |= {0x2028, 0x2029, 0x202F, 0x205F, 0x3000}

CLASS = {"L": 0x01, "N": 0x02, "P": 0x04, "S": 0x08, "M": 0x10, "Z": 0x20, "C": 0x40}
SPACE_BIT = 0x80
END = 0x110000
BLOCK = 128
SURROGATES = range(0xD800, 0xE000)


def classes() -> bytearray:
    """One class byte per code point."""
    out = bytearray(END)
    for c in range(END):
        cat = unicodedata.category(chr(c))
        out[c] = 0 if cat == "Cn" else CLASS[cat[0]]
    for first, last, cat in NEWER:
        for c in range(first, last + 1):
            out[c] = CLASS[cat]
    for c in SPACES:
        out[c] |= SPACE_BIT
    return out


def runs(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Join (from, to) pairs into (first, last, step, to of first) runs; step 0: all to one."""
    out: list[tuple[int, int, int, int]] = []
    i = 0
    while i < len(pairs):
        c, to = pairs[i]
        best, step = i, 1
        for s in (1, 2):
            j = i
            while j + 1 < len(pairs) and pairs[j + 1] == (pairs[j][0] + s, pairs[j][1] + s):
                j += 1
            if j > best:
                best, step = j, s
        j = i
        while j + 1 < len(pairs) and pairs[j + 1] == (pairs[j][0] + 1, to):
            j += 1
        if j > best:
            best, step = j, 0
        out.append((c, pairs[best][0], step, to))
        i = best + 1
    return out


def digest(table: bytearray, lower: list[tuple[int, int]], nfd: list[tuple[int, int]]) -> int:
    """FNV-1a, 64 bits, of (class, lower, nfd) per code point, one number at a time."""
    h = 0xCBF29CE484222325
    for (c, low), (_, first) in zip(lower, nfd, strict=True):
        for v in (table[c], low, first):
            h = (h ^ v) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def emit(name: str, ctype: str, values: list[str], per_line: int) -> list[str]:
    """The C text of one array."""
    lines = [f"{ctype} {name}[{len(values)}] = {{"]
    for i in range(0, len(values), per_line):
        lines.append("    " + ", ".join(values[i : i + per_line]) + ",")
    return [*lines, "};", ""]


def content() -> str:
    """The whole of unicode.inc."""
    table = classes()
    blocks: dict[bytes, int] = {}
    stage1 = []
    for start in range(0, END, BLOCK):
        stage1.append(blocks.setdefault(bytes(table[start : start + BLOCK]), len(blocks)))
    assert len(blocks) < 256
    valid = [c for c in range(END) if c not in SURROGATES]
    lower = [(c, ord(chr(c).lower()[0])) for c in valid]
    nfd = [(c, ord(unicodedata.normalize("NFD", chr(c))[0])) for c in valid]
    lines = [
        f"/* Unicode {WANT}. Written by gen_unicode.py (see there for the format): do not edit. */",
        "",
    ]
    lines += emit("rv_uc_stage1", "const uint8_t", [str(b) for b in stage1], 24)
    lines += emit("rv_uc_stage2", "const uint8_t", [str(v) for b in blocks for v in b], 24)
    for name, pairs in (("uc_lower", lower), ("uc_nfd", nfd)):
        changed = [(c, to) for c, to in pairs if c != to]
        rows = [f"{{0x{a:X}, 0x{b:X}, {s}, 0x{t:X}}}" for a, b, s, t in runs(changed)]
        lines += emit(name, "static const uc_run", rows, 4)
    lines += [f"#define UC_DIGEST 0x{digest(table, lower, nfd):016x}u", ""]
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Write unicode.inc beside this file."""
    if unicodedata.unidata_version not in KNOWN:
        sys.exit(f"unicodedata {unicodedata.unidata_version}: want one of {', '.join(KNOWN)}")
    Path(__file__).with_name("unicode.inc").write_text(content(), encoding="ascii")


if __name__ == "__main__":
    main()
