"""The rules that others published, re-implemented from their description (research/detectors.md 1), for the same table.

Text rules see chunks as they stream and answer True once. "Tokens" are our lexer's symbols, so rules on token ids would behave a
little differently. Trajectory rules see the calls of an answer, their results and its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from benchmarks.detect.corpus import symbols_of
from benchmarks.detect.trajectories import Answer

__all__ = ["TEXT", "TRAJECTORY", "TextRule", "TrajectoryRule"]


class TextRule(Protocol):
    def see(self, chunk: str) -> bool: ...


class TrajectoryRule(Protocol):
    def see(self, answer: Answer) -> bool: ...

    def user(self) -> None: ...


# --- text


class GeminiCli:
    """Windows of 50 characters, ten equal ones no farther than 250 apart with at most five different texts between; off inside a
    fence, begun anew at tables, lists, headings, quotes and dividers seen in the current chunk."""

    _RESETS = re.compile(r"^\s*(?:\|.*\||[*\-+] |\d+\. |#{1,6} |> |[+\-_=*─━═]+\s*$)|```", re.M)

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._places: dict[int, list[int]] = {}
        self._fenced = False

    def see(self, chunk: str) -> bool:
        if chunk.count("```") % 2:
            self._fenced = not self._fenced
        if self._RESETS.search(chunk):
            self._text, self._at = "", 0
            self._places.clear()
        if self._fenced:
            return False
        self._text += chunk
        if len(self._text) > 5_000:
            cut = len(self._text) - 5_000
            self._text, self._at = self._text[cut:], max(self._at - cut, 0)
            self._places = {key: kept for key, places in self._places.items() if (kept := [p - cut for p in places if p >= cut])}
        while self._at + 50 <= len(self._text):
            window = self._text[self._at : self._at + 50]
            places = self._places.setdefault(hash(window), [])
            places.append(self._at)
            self._at += 1
            if len(places) >= 10:
                last = places[-10:]
                if (last[-1] - last[0]) / 9 <= 250:
                    between = {self._text[a:b] for a, b in pairwise(last)}
                    if len(between) <= 5:
                        return True
        return False


class GeminiCliLarge(GeminiCli):
    """The same, fed with 200 characters at a time, as its own API sends them."""

    def __init__(self) -> None:
        super().__init__()
        self._pending = ""

    def see(self, chunk: str) -> bool:
        self._pending += chunk
        if len(self._pending) < 200:
            return False
        chunk, self._pending = self._pending, ""
        return super().see(chunk)


class Periodic:
    """The last `copies` units of one of the periods `least` to `most` are exactly equal, in symbols."""

    def __init__(self, least: int, most: int, copies: int) -> None:
        self._history = np.zeros(most, dtype=np.int64)
        self._runs = np.zeros(most, dtype=np.int64)
        periods = np.arange(1, most + 1)
        self._needed = np.where(periods >= least, periods * (copies - 1), 1 << 60)

    def see(self, chunk: str) -> bool:
        for symbol in symbols_of(chunk):
            mark = hash(symbol.strip() or symbol)
            self._runs = np.where(self._history == mark, self._runs + 1, 0)
            self._history[1:] = self._history[:-1].copy()
            self._history[0] = mark
            if bool((self._runs >= self._needed).any()):
                return True
        return False


class OllamaRepeats:
    """More than 30 chunks in a row that are equal but for blanks around them."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._run = 0

    def see(self, chunk: str) -> bool:
        piece = chunk.strip()
        self._run = self._run + 1 if piece == self._last else 1
        self._last = piece
        return self._run > 30


TEXT: dict[str, Callable[[], TextRule]] = {
    "gemini-cli, token-sized chunks": GeminiCli,
    "gemini-cli, 200-character chunks": GeminiCliLarge,
    "vLLM, periods to 8, 4 copies": lambda: Periodic(1, 8, 4),
    "vLLM, periods to 20, 3 copies": lambda: Periodic(1, 20, 3),
    "llama.cpp, periods 16 to 1024, 4": lambda: Periodic(16, 1024, 4),
    "Ollama, 30 equal chunks": OllamaRepeats,
}


# --- trajectories


def _call(name: str, arguments: dict[str, Any], *, ordered: bool) -> str:
    return name + json.dumps(arguments, sort_keys=not ordered)


class GeminiCliTools:
    """The last calls are five copies of a cycle of one to five calls; the order of keys matters, results do not."""

    def __init__(self) -> None:
        self._calls: list[str] = []

    def user(self) -> None:
        self._calls.clear()

    def see(self, answer: Answer) -> bool:
        self._calls += [_call(name, arguments, ordered=True) for name, arguments in answer.calls]
        for period in range(1, 6):
            last = self._calls[-5 * period :]
            if len(last) == 5 * period and all(last[i] == last[i % period] for i in range(len(last))):
                return True
        return False


class OpenHands:
    """Four equal pairs of action and observation; the same action failing four times; three messages in a row; A-B over six."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, str, bool]] = []
        self._messages = 0

    def user(self) -> None:
        self._pairs.clear()

    def see(self, answer: Answer) -> bool:
        if not answer.calls:
            self._messages += 1
            return self._messages >= 3
        self._messages = 0
        for (name, arguments), result in zip(answer.calls, answer.results, strict=True):
            self._pairs.append((answer.text + _call(name, arguments, ordered=False), result, answer.errors))
        last = self._pairs[-20:]
        if len(last) >= 4 and len({pair[:2] for pair in last[-4:]}) == 1:
            return True
        if len(last) >= 4 and len({pair[0] for pair in last[-4:]}) == 1 and all(pair[2] for pair in last[-4:]):
            return True
        return len(last) >= 6 and len({p[:2] for p in last[-6::2]}) == 1 and len({p[:2] for p in last[-5::2]}) == 1


class ThreeEqual:
    """Three answers in a row make the same calls: QuantaMind's rule without its oracle, and opencode's with one call each."""

    def __init__(self) -> None:
        self._last: list[str] = []

    def user(self) -> None:
        self._last.clear()

    def see(self, answer: Answer) -> bool:
        self._last.append(json.dumps([_call(name, arguments, ordered=False) for name, arguments in answer.calls]))
        return bool(answer.calls) and len(self._last) >= 3 and len(set(self._last[-3:])) == 1


class OpenCode:
    """The last three calls of this message are the same tool with the same input, as written."""

    def __init__(self) -> None:
        self._calls: list[str] = []

    def user(self) -> None:
        self._calls.clear()

    def see(self, answer: Answer) -> bool:
        self._calls += [_call(name, arguments, ordered=True) for name, arguments in answer.calls]
        return len(self._calls) >= 3 and len(set(self._calls[-3:])) == 1


TRAJECTORY: dict[str, Callable[[], TrajectoryRule]] = {
    "gemini-cli": GeminiCliTools,
    "OpenHands": OpenHands,
    "QuantaMind": ThreeEqual,
    "opencode": OpenCode,
}
