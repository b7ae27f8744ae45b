"""Tokens to text while they come: whole characters only, nothing of a stop string.

A token's bytes may end inside a UTF-8 sequence, and the last characters so far may turn out to be
the beginning of a stop string; both are held back until the next token decides.  What has been
given out is never taken back.

The stop strings are matched by an automaton over characters (Aho and Corasick, "Efficient string
matching", CACM 1975): its state is the longest end of the text that begins a stop string, and that
is exactly what has to be held back.  The work is linear in the text, however the stops overlap.
The stop that is complete first ends the text, whatever the tokens were; of several complete at the
same character the longest.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from ruvllm._errors import ArgumentError


class _StopMatcher:
    """States are numbered; 0 is the empty one.  held[s]: characters that state s stands for."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.held: list[int] = [0]
        self.hit: list[int] = [-1]  # index of the longest stop that ends here
        self._fail: list[int] = [0]
        for i, stop in enumerate(stops):
            self._add(i, stop)
        self._link(stops)

    def _add(self, i: int, stop: str) -> None:
        state = 0
        for c in stop:
            if c not in self.next[state]:
                self.next[state][c] = len(self.next)
                self.next.append({})
                self.held.append(self.held[state] + 1)
                self.hit.append(-1)
                self._fail.append(0)
            state = self.next[state][c]
        if self.hit[state] < 0:
            self.hit[state] = i

    def _link(self, stops: Sequence[str]) -> None:
        """Breadth first, so that a state's fall-back is finished before the state is."""
        level = list(self.next[0].values())
        while level:
            following: list[int] = []
            for state in level:
                if self.hit[state] < 0:
                    self.hit[state] = self.hit[self._fail[state]]
                for c, child in self.next[state].items():
                    self._fail[child] = self.step(self._fail[state], c)
                    following.append(child)
            level = following

    def step(self, state: int, c: str) -> int:
        while c not in self.next[state]:
            if state == 0:
                return 0
            state = self._fail[state]
        return self.next[state][c]


def check_stops(stop: str | Sequence[str] | None) -> list[str]:
    """The stop strings as a list; one string stands for itself, None for none.

    Raises ArgumentError unless each is a non-empty string.
    """
    if stop is None:
        return []
    if isinstance(stop, str):
        stop = [stop]
    elif not isinstance(stop, Sequence) or isinstance(stop, bytes | bytearray):
        raise ArgumentError(f"stop: is a {type(stop).__name__}, want a string or a list of strings")
    for i, s in enumerate(stop):
        if not isinstance(s, str):
            raise ArgumentError(f"stop[{i}]: is a {type(s).__name__}, want a string")
        if not s:
            raise ArgumentError(f"stop[{i}]: is empty, want at least one character")
    return list(stop)


class TextStream:
    """The text of a growing sequence of tokens.

    piece: gives the bytes a token adds to the text.  stop: strings that end the text; they are
    not part of it.  ``push`` for every token, then ``finish``: the pieces returned, joined, are
    the text of all tokens (invalid bytes as U+FFFD) up to the first stop string.
    """

    def __init__(
        self, piece: Callable[[int], bytes], stop: str | Sequence[str] | None = None
    ) -> None:
        self._piece = piece
        self._stops = check_stops(stop)
        self._matcher = _StopMatcher(self._stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = 0
        self._held = ""
        self._finished = False
        #: The stop string that ended the text, or None.
        self.stop_hit: str | None = None

    def push(self, token: int) -> str:
        """Add a token.  Returns the text that is certain now; after a stop nothing more."""
        if self.stop_hit is not None or self._finished:
            return ""
        return self._match(self._decoder.decode(self._piece(token)))

    def finish(self) -> str:
        """The end of the tokens: what was held back.  An unfinished character is one U+FFFD."""
        if self.stop_hit is not None or self._finished:
            return ""
        self._finished = True
        text = self._match(self._decoder.decode(b"", final=True))
        if self.stop_hit is None:
            text += self._held
        self._held = ""
        return text

    def _match(self, new: str) -> str:
        if not self._stops:
            return new
        m, state = self._matcher, self._state
        for i, c in enumerate(new):
            state = m.step(state, c)
            if m.hit[state] >= 0:
                self.stop_hit = self._stops[m.hit[state]]
                text = self._held + new[: i + 1]
                self._held = ""
                return text[: len(text) - len(self.stop_hit)]
        self._state = state
        text = self._held + new
        certain = len(text) - m.held[state]
        self._held = text[certain:]
        return text[:certain]
