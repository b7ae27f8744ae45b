"""Includes go downward only: every include line of the C sources is read and checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = {"gguf", "tok", "kv", "sample", "adapt", "index", "store"}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.M)

# Folder -> folders of ours it may include from, besides itself.
ALLOWED: dict[str, set[str]] = {
    "base": {"include"},
    "include": set(),
    **{leaf: {"base", "include", "kernels"} for leaf in LEAVES},
    "model": {"base", "include", "kernels", *LEAVES},
    "engine": {"base", "include", "kernels", "model", *LEAVES},
    "py": {"base", "include", "kernels"},
}


def _sources() -> list[Path]:
    return sorted(p for d in ("csrc", "kernels") for p in (ROOT / d).rglob("*.[ch]*"))


def _layer(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "kernels" if parts[0] == "kernels" else parts[1]


def _includes(path: Path) -> list[tuple[bool, str]]:
    return [(q == '"', name) for q, name in INCLUDE.findall(path.read_text())]


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_includes_go_downward(path: Path) -> None:
    layer = _layer(path)
    for ours, name in _includes(path):
        if not ours:
            assert not (ROOT / "csrc" / name).exists(), f"{path}: <{name}> is ours, want quotes"
            continue
        if layer == "kernels":
            assert (ROOT / "kernels" / name).exists(), f"{path}: includes {name}"
            continue
        if (ROOT / "kernels" / name).exists():
            assert "kernels" in ALLOWED[layer], f"{path}: {layer} includes kernels' {name}"
            assert name == "rvk.h", f"{path}: includes {name}, a private header of kernels"
            continue
        assert (ROOT / "csrc" / name).exists(), f"{path}: {name} is not written from csrc/"
        other = name.split("/")[0]
        assert other == layer or other in ALLOWED[layer], f"{path}: {layer} includes {other}"


def test_only_the_binding_sees_python() -> None:
    for path in _sources():
        names = {name for _, name in _includes(path)}
        assert ("Python.h" in names) == (path.relative_to(ROOT) == Path("csrc/py/py.h")), path
        if any(n.startswith("numpy/") for n in names):
            assert path.name == "npy.c", f"{path}: NumPy headers belong in csrc/py/npy.c"


def test_sql_lives_in_the_store() -> None:
    words = re.compile(
        r'"[^"\n]*\b(SELECT\b.*\bFROM|INSERT\s+INTO|CREATE\s+TABLE|PRAGMA\s)[^"\n]*"'
    )
    files = [*_sources(), *(ROOT / "ruvllm").rglob("*.py")]
    for path in files:
        if words.search(path.read_text()):
            assert path.relative_to(ROOT).parts[:2] == ("csrc", "store"), path


def test_one_public_header() -> None:
    assert [p.name for p in (ROOT / "csrc/include").iterdir()] == ["ruvllm.h"]


def test_sources_stay_readable_in_size() -> None:
    for path in [*_sources(), *(ROOT / "ruvllm").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 1000, f"{path}: over 1000 lines"
