"""A neighbour that takes a core: the worker that computes nothing, for ever; see peer_pipe.py."""

from __future__ import annotations

import threading

from peer_pipe import serve


def spin() -> None:
    """Start, and answer at once."""

    def loop() -> None:
        while True:
            pass

    threading.Thread(target=loop, daemon=True).start()


if __name__ == "__main__":
    serve({"about": dict, "spin": spin})
