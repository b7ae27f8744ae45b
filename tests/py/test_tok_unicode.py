"""The character tables are what their generator writes (the C side: tests/c/test_tok.c)."""

from __future__ import annotations

import importlib.util
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "csrc" / "tok"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_unicode", FOLDER / "gen_unicode.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_generated() -> None:
    gen = generator()
    if unicodedata.unidata_version not in gen.KNOWN:
        pytest.skip(f"unicodedata {unicodedata.unidata_version} assigns more than the tables")
    assert gen.content() == (FOLDER / "unicode.inc").read_text()
