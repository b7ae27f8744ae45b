"""What users import: __all__ is the truth, and importing has no side effects."""

from __future__ import annotations

import subprocess
import sys
import types

import ruvllm


def test_all_names_are_there_and_nothing_else_is_public() -> None:
    public = {
        n
        for n, v in vars(ruvllm).items()
        if not n.startswith("_") and not isinstance(v, types.ModuleType)
    }
    assert public | {"__version__"} == set(ruvllm.__all__)
    assert list(ruvllm.__all__) == sorted(ruvllm.__all__)


def test_every_public_name_is_documented() -> None:
    for name in ruvllm.__all__:
        if name != "__version__":
            doc = getattr(ruvllm, name).__doc__
            assert doc and len(doc) > 20, name


def test_import_starts_nothing() -> None:
    code = (
        "import threading, sys, ruvllm; assert threading.active_count() == 1; "
        "heavy = {'rich', 'typer', 'jinja2', 'llguidance', 'safetensors', 'sqlite3', 'asyncio'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() in ("[]", "['asyncio']")


def test_version_is_one_number() -> None:
    from importlib.metadata import version

    assert ruvllm.__version__ == version("ruvllm")
