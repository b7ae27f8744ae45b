"""What users import: __all__ is the truth, and importing has no side effects."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import ruvllm


def test_all_names_are_there_and_nothing_else_is_public() -> None:
    values = {n: getattr(ruvllm, n) for n in dir(ruvllm) if not n.startswith("_")}
    public = {n for n, v in values.items() if not isinstance(v, types.ModuleType)}
    assert public - {"TYPE_CHECKING"} | {"__version__"} == set(ruvllm.__all__)
    assert list(ruvllm.__all__) == sorted(ruvllm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ruvllm.nothing


def test_every_public_name_is_documented() -> None:
    for name in ruvllm.__all__:
        if name != "__version__":
            doc = getattr(ruvllm, name).__doc__
            assert doc and len(doc) > 20, name


def test_import_starts_nothing() -> None:
    code = (
        "import threading, sys, ruvllm; assert threading.active_count() == 1; "
        "assert 'numpy' not in sys.modules; ruvllm.Model, ruvllm.WitnessLog; "
        "heavy = {'rich', 'typer', 'jinja2', 'llguidance', 'safetensors', 'sqlite3', 'asyncio'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_version_is_one_number() -> None:
    from importlib.metadata import version

    assert ruvllm.__version__ == version("ruvllm")
