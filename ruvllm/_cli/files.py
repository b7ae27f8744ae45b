"""``ruvllm inspect``, ``convert`` and ``quantize``: what works on GGUF files.

``inspect`` reads any valid file, of an architecture this build runs or not."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm._cli import terminal
from ruvllm._cli.options import JsonFlag, ThreadsOption, flags, option

if TYPE_CHECKING:
    from ruvllm.engine.convert import ConvertResult
    from ruvllm.engine.quantize import QuantizeResult, TypeTotal

SHOWN_ELEMENTS = 8
SHOWN_CHARACTERS = 160

Tensor = tuple[str, int, str, tuple[int, ...], int, int, int]


@flags
def inspect(
    *,
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file.")],
    tensors: Annotated[
        bool, option("--tensors/--no-tensors", "The table of tensors.", env="RUVLLM_TENSORS")
    ] = True,
    all: Annotated[
        bool, option("--all -a", "Whole arrays and strings of the metadata.", env=False)
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show what a GGUF file holds: metadata, tensors and a summary.

    Any valid file will do, of architectures that this build cannot run too.
    """
    from ruvllm import _core

    gguf = _core.gguf_open(os.fspath(path))
    pairs = gguf.kv(-1)
    table = gguf.tensors()
    summary = _summary(path, gguf, pairs, table)
    if json:
        out = {**summary, "metadata": [_pair(*pair, whole=all) for pair in pairs]}
        if tensors:
            out["tensors"] = [_tensor(t) for t in table]
        terminal.print_json(out)
        return
    _show_metadata(pairs, whole=all)
    if tensors and table:
        _show_tensors(table)
    _show_summary(summary)


def _summary(path: Path, gguf: Any, pairs: list[Any], table: list[Tensor]) -> dict[str, Any]:
    types: dict[str, dict[str, int]] = {}
    for _, _, kind, dims, _, n_bytes, _ in table:
        total = types.setdefault(kind, {"tensors": 0, "params": 0, "bytes": 0})
        total["tensors"] += 1
        total["params"] += prod(dims)
        total["bytes"] += n_bytes
    known = {key: value for key, _, value in pairs}
    name, arch = known.get("general.name"), known.get("general.architecture")
    return {
        "path": os.fspath(path),
        "name": name if isinstance(name, str) else None,
        "architecture": arch if isinstance(arch, str) else None,
        "runs": _runs(path) if table else {"ok": False, "why": "has no tensors"},
        "version": gguf.version(),
        "alignment": gguf.alignment(),
        "file_bytes": gguf.file_bytes(),
        "n_metadata": len(pairs),
        "n_tensors": len(table),
        "n_params": sum(t["params"] for t in types.values()),
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
    }


def _runs(path: Path) -> dict[str, Any]:
    """Whether this build can run the model, and if not, why."""
    from ruvllm import Model, RuvllmError

    try:
        Model(path, n_threads=1, witness=False).close()
    except RuvllmError as e:
        return {"ok": False, "why": str(e)}
    return {"ok": True, "why": None}


def _pair(key: str, kind: str, value: Any, whole: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"key": key, "type": kind}
    if isinstance(value, list):
        out["n"] = len(value)
        value = value if whole else value[:SHOWN_ELEMENTS]
    out["value"] = value
    return out


def _tensor(t: Tensor) -> dict[str, Any]:
    name, _, kind, dims, offset, n_bytes, part = t
    return {
        "name": name,
        "type": kind,
        "shape": list(dims),
        "bytes": n_bytes,
        "offset": offset,
        "file": part,
    }


def _show_metadata(pairs: list[Any], whole: bool) -> None:
    shown = terminal.table("key", "type", "value")
    shown.columns[0].no_wrap = all(len(key) <= 50 for key, _, _ in pairs)
    for key, kind, value in pairs:
        shown.add_row(terminal.short(key, 100), kind, _value(value, whole))
    terminal.show(shown)


def _value(value: Any, whole: bool) -> str:
    if isinstance(value, list):
        if whole:
            return f"[{', '.join(_value(v, whole) for v in value)}]"
        first = ", ".join(_element(v) for v in value[:SHOWN_ELEMENTS])
        more = f", … {len(value):,} in all" if len(value) > SHOWN_ELEMENTS else ""
        return terminal.short(f"[{first}{more}]", 2 * SHOWN_CHARACTERS)
    if not isinstance(value, str):
        return _element(value)
    if whole or len(value) <= SHOWN_CHARACTERS:
        return terminal.visible(value)
    return f"{terminal.short(value, SHOWN_CHARACTERS)} ({len(value):,} characters)"


def _element(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list):
        return f"[… {len(value):,}]"
    return terminal.short(repr(value), 24) if isinstance(value, str) else str(value)


def _show_tensors(table: list[Tensor]) -> None:
    shown = terminal.table("tensor", "type", ">shape", ">bytes")
    for name, _, kind, dims, _, n_bytes, _ in table:
        shown.add_row(terminal.short(name, 100), kind, " × ".join(map(str, dims)), f"{n_bytes:,}")
    print()
    terminal.show(shown)


def _show_summary(s: dict[str, Any]) -> None:
    shown = terminal.table("type", ">tensors", ">parameters", ">bytes")
    for kind, total in s["types"].items():
        shown.add_row(kind, f"{total['tensors']:,}", f"{total['params']:,}", f"{total['bytes']:,}")
    print()
    if s["types"]:
        terminal.show(shown)
        print()
    name = terminal.short(s["name"] or Path(s["path"]).name, 100)
    parts = [
        terminal.short(s["architecture"] or "no architecture", 60),
        f"{terminal.count(s['n_params'])} parameters",
        terminal.size(s["file_bytes"]),
        f"GGUF v{s['version']}",
    ]
    print(f"{name}: {', '.join(parts)}")
    why = s["runs"]["why"]
    print("runs here: yes" if why is None else f"runs here: no: {terminal.visible(why)}")


# ---- convert and quantize ----

TYPES = (
    "f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q3_k q4_k q5_k; mixes as llama.cpp's: q2_k q2_k_s "
    "q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k iq4_nl iq4_xs."
)
PureFlag = Annotated[
    bool, option("--pure", "Every matrix gets the type: no exceptions for the head and others.")
]


@flags
def convert(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A Hugging Face folder with safetensors.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to make or replace.")],
    type: Annotated[
        str, option("--type", f"Type of the matrices: {TYPES}", metavar="TYPE")
    ] = "f16",
    pure: PureFlag = False,
    name: Annotated[
        str | None, option("--name", "Name of the model. Default: the folder's.", env=False)
    ] = None,
    pooling: Annotated[
        str | None,
        option("--pooling", "Of an encoder: mean cls last none. Default: as its config says."),
    ] = None,
    threads: ThreadsOption = None,
    json: JsonFlag = False,
) -> None:
    """Make a GGUF file of a Hugging Face folder (extra: convert)."""
    from ruvllm.engine.convert import convert as work

    with terminal.progress(f"writing {out.name}") as moved:
        result = work(
            folder, out, type=type, pure=pure, name=name, pooling=pooling, n_threads=threads,
            progress=moved,
        )  # fmt: skip
    for note in result.notes:
        terminal.note(note)
    about = {"src": str(folder), "arch": result.arch, "n_params": result.n_params}
    _report(about, out, result, json)


@flags
def quantize(
    *,
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A GGUF file.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The file to make or replace.")],
    type: Annotated[str, option("--type", f"Type of the matrices: {TYPES}", metavar="TYPE")],
    imatrix: Annotated[
        Path | None,
        option(
            "--imatrix",
            "How much each column counts: GGUF of llama.cpp's imatrix tool, or .npz.",
            metavar="FILE",
        ),
    ] = None,
    pure: PureFlag = False,
    allow_requantize: Annotated[
        bool,
        option("--allow-requantize", "Accept matrices that are quantised: their errors add up."),
    ] = False,
    threads: ThreadsOption = None,
    json: JsonFlag = False,
) -> None:
    """Write a GGUF file with its matrices in another type.

    ruvllm quantize model-f16.gguf model-q4_k_m.gguf --type q4_k_m
    """
    from ruvllm.engine.quantize import quantize as work

    with terminal.progress(f"writing {dst.name}") as moved:
        result = work(
            src, dst, type, imatrix=imatrix, pure=pure, allow_requantize=allow_requantize,
            n_threads=threads, progress=moved,
        )  # fmt: skip
    if result.unweighted:
        names = ", ".join(result.unweighted[:3])
        more = f" and {len(result.unweighted) - 3} more" if len(result.unweighted) > 3 else ""
        terminal.note(f"the imatrix says nothing about {terminal.visible(names)}{more}")
    about = {
        "src": str(src),
        "src_bytes": result.src_bytes,
        "bits_per_value": round(result.bits_per_value, 3),
        "unweighted": result.unweighted,
    }
    _report(about, dst, result, json)


def _report(
    about: dict[str, Any], dst: Path, result: ConvertResult | QuantizeResult, json: bool
) -> None:
    for wanted, got in sorted({(f.wanted, f.got) for f in result.fallbacks}):
        some = [f.row_values for f in result.fallbacks if (f.wanted, f.got) == (wanted, got)]
        rows = ", ".join(str(n) for n in sorted(set(some)))
        terminal.note(
            f"{len(some)} tensors are {got}: rows of {rows} are not whole blocks of {wanted}"
        )
    if json:
        terminal.print_json(
            {
                **about,
                "dst": str(dst),
                "type": result.type,
                "dst_bytes": result.dst_bytes,
                "seconds": round(result.seconds, 3),
                "types": {kind: _total(t) for kind, t in result.after.items()},
                "fallbacks": [f.name for f in result.fallbacks],
            }
        )
        return
    was = f" from {terminal.size(about['src_bytes'])}" if "src_bytes" in about else ""
    kinds = ", ".join(f"{t.tensors} {kind}" for kind, t in result.after.items())
    print(
        f"{terminal.visible(str(dst))}: {result.type}, {terminal.size(result.dst_bytes)}{was}, "
        f"tensors: {kinds}, in {result.seconds:.1f} s"
    )


def _total(t: TypeTotal) -> dict[str, int]:
    return {"tensors": t.tensors, "params": t.values, "bytes": t.n_bytes}
