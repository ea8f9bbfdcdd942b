"""A run as it happened: every step and turn, how it ended, and what the world was then. Made by `run`, judged by `taxonomy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from probes.agent.dialogue import Path
from probes.agent.instance import Instance
from probes.agent.loops import Loop

__all__ = ["Ending", "Played", "StepKind", "StepSeen", "TurnSeen"]

Ending = Literal["done", "trap", "loop", "stalled", "malformed", "horizon", "infra", "timeout", "overflow"]
StepKind = Literal[
    "ok", "refused", "fault", "down", "decoy", "trap", "no_tool", "schema", "fabricated", "done", "no_call", "malformed"
]


@dataclass(slots=True)
class StepSeen:
    """One step as it happened."""

    n: int  # from 1
    turn: int  # from 1
    kind: StepKind
    name: str
    arguments: dict[str, object]
    answer: str
    changed: bool  # the world's state
    learned: tuple[str, ...]  # facts no earlier answer held
    distance: int  # calls left for a player who knows everything, after this step
    detail: str = ""

    @property
    def wasted(self) -> bool:
        """Neither changed anything nor taught anything, and was no honest retry."""
        return not self.changed and not self.learned and self.kind not in ("fault", "down", "done")


@dataclass(slots=True)
class TurnSeen:
    """One request and its answer."""

    n: int
    key: str
    text: str
    calls: int
    input_tokens: int | None
    output_tokens: int | None
    seconds: float
    thought: bool


@dataclass(slots=True)
class Played:
    """A whole run."""

    instance: Instance
    key: str
    path: Path
    ending: Ending
    detail: str
    sub: str | None
    steps: list[StepSeen]
    turns: list[TurnSeen]
    truthful: bool
    goal_reached: bool
    claim: tuple[str, str] | None
    damage: list[str]
    damage_steps: tuple[int, ...]
    start_distance: int
    loop: Loop | None = None
    went_on: bool = False  # it was let run after the loop was proven
    recovered: bool | None = None  # and would have passed (`None`: was not let run)
    messages: list[dict[str, Any]] = field(default_factory=list, repr=False)  # the transcript as it was sent back

    @property
    def judged(self) -> list[StepSeen]:
        """The steps that decide the outcome: all of them, or those up to the loop in a run that was let go on."""
        return [step for step in self.steps if step.n <= self.loop.steps[-1]] if self.went_on and self.loop else self.steps

    @property
    def progress(self) -> float:
        """How much of the way was covered at best, 0–1."""
        reached = min((step.distance for step in self.judged), default=self.start_distance)
        return (self.start_distance - reached) / self.start_distance

    @property
    def judged_turns(self) -> list[TurnSeen]:
        """The turns of the judged steps."""
        return self.turns[: self.judged[-1].turn] if self.went_on and self.judged else self.turns

    @property
    def output_tokens(self) -> int | None:
        counts = [turn.output_tokens for turn in self.judged_turns]
        return None if not counts or any(count is None for count in counts) else sum(count or 0 for count in counts)

    @property
    def transcript_tokens(self) -> int | None:
        """The longest prompt plus its answer."""
        sizes = [
            t.input_tokens + t.output_tokens for t in self.turns if t.input_tokens is not None and t.output_tokens is not None
        ]
        return max(sizes, default=None)

    @property
    def seconds(self) -> float:
        return sum(turn.seconds for turn in self.judged_turns)
