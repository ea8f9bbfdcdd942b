"""Provable loops: the same call on the same state with the same answer, three times, while nothing new was learned.

Nothing here guesses. A repetition is a loop when (a) the pair of call and world state came up a third time with identical
answers and no state change or new fact in between, and (b) on a copy of the world the repeated calls go on giving the same
answers to the horizon: waiting longer would not have helped. Polling, retrying and re-reading after a write fail (a) or (b).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from probes.agent.world import World

__all__ = ["COPIES", "Loop", "LoopWatch", "canonical"]

COPIES: Final = 3
LONGEST_CYCLE: Final = 4


@dataclass(frozen=True, slots=True)
class Loop:
    """`steps` are the three equal ones; `period` is the cycle's length, `None` when other calls lay between at random."""

    steps: tuple[int, ...]
    period: int | None
    call: str
    proof_steps: int  # how many further repetitions on a copy of the world gave the same answers

    @property
    def form(self) -> Literal["repeat", "cycle", "scattered"]:
        return "repeat" if self.period == 1 else "cycle" if self.period else "scattered"


def canonical(name: str, arguments: Mapping[str, object]) -> str:
    """A call's identity: arguments in fixed order."""
    return f"{name} {json.dumps(arguments, sort_keys=True, separators=(',', ':'), default=str)[:4000]}"


class LoopWatch:
    """Sees every step of a run and answers with the loop it completes, if any. Memory: the steps since the last progress."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, bytes, str], list[int]] = {}
        self._since: list[tuple[str, Mapping[str, object], str]] = []

    def see(
        self, step: int, name: str, arguments: Mapping[str, object], key: bytes, answer: str, *, progress: bool, world: World
    ) -> Loop | None:
        """`key` is the state before the call; `progress`: the state changed or the answer held something new."""
        if progress:
            self._places.clear()
            self._since.clear()
            return None
        call = canonical(name, arguments)
        self._since.append((name, arguments, answer))
        places = self._places.setdefault((call, key, answer), [])
        places.append(step)
        if len(places) < COPIES:
            return None
        gap = places[-1] - places[-2]
        regular = gap == places[-2] - places[-3] and gap <= LONGEST_CYCLE and len(self._since) >= gap
        segment = self._since[-gap:] if regular else self._since[-1:]
        proof = _prove(world, segment)
        if proof is None:
            return None
        return Loop(tuple(places[-COPIES:]), gap if regular else None, call, proof)


def _prove(world: World, segment: Sequence[tuple[str, Mapping[str, object], str]]) -> int | None:
    """Go on repeating on a copy until the horizon: the number of equal answers, or `None` at the first that differs."""
    trial = world.copy()
    left = max(len(segment), world.instance.horizon - world.steps)
    for index in range(left):
        name, arguments, answer = segment[index % len(segment)]
        if trial.act(name, arguments).text != answer:
            return None
    return left
