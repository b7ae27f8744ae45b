"""Where ruvllm keeps what it remembers: one folder, laid out as docs/store.md says."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The folder of ruvllm's data; not made by this call.

    ``RUVLLM_HOME`` if it is set, else the platform's user data directory:
    ``$XDG_DATA_HOME/ruvllm`` (an absolute path, else ``~/.local/share/ruvllm``) on Linux,
    ``~/Library/Application Support/ruvllm`` on macOS, ``%LOCALAPPDATA%\\ruvllm`` on Windows.
    """
    chosen = os.environ.get("RUVLLM_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "ruvllm"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "ruvllm"
    xdg = os.environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".local" / "share"
    return base / "ruvllm"
