"""How fast a model reads, writes and loads here, as far as it is known: what a plan's time is computed from.

Nothing known: 1 000 prompt and 60 output tokens/s and 3 s a load are assumed, and every plan says so. They are what a
mid-size model does on a recent desktop; a CPU reads ten times slower, and then a long prompt is nearly all of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probes.ask import Answer
from probes.result import Result
from probes.stats.robust import median

__all__ = ["Pace", "pace_of", "pace_of_result", "spell"]


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens a second and seconds; `None`: not known. `source` says where the known ones are from."""

    prefill_per_s: float | None = None
    decode_per_s: float | None = None
    load_s: float | None = None
    source: str = "measured"

    @property
    def reads(self) -> float:
        return self.prefill_per_s or 1000.0

    @property
    def writes(self) -> float:
        return self.decode_per_s or 60.0

    @property
    def loads(self) -> float:
        return 3.0 if self.load_s is None else self.load_s

    def seconds(self, prompt: float, output: float, loads: int = 0) -> float:
        """For so many prompt and output tokens and loads."""
        return prompt / self.reads + output / self.writes + loads * self.loads

    def words(self, loads: int = 0) -> str:
        """What the time stands on, for the reader of a plan. The load is named where there are any."""
        named = [
            (f"{_number(self.reads)} prompt tokens/s", self.prefill_per_s),
            (f"{_number(self.writes)} output tokens/s", self.decode_per_s),
            *([(f"{_number(self.loads)} s a load", self.load_s)] if loads else []),
        ]
        known = ", ".join(text for text, value in named if value is not None)
        assumed = ", ".join(text for text, value in named if value is None)
        told = [f"{self.source}: {known}"] if known else []
        told += [f"assumed: {assumed}"] if assumed else []
        return "; ".join(told) + ("" if known else "; said again when measured")


def pace_of(answers: Iterable[Answer]) -> Pace:
    """From the server's own times of some answers. Reading slows with length, so the longest prompts count."""
    seen = [(answer, usage) for answer in answers if answer.ok and (usage := answer.usage) is not None]
    read = [(n, u.prefill_ns) for a, u in seen if u.prefill_ns and not u.cached_tokens and (n := a.input_tokens)]
    longest = max((n for n, _ in read), default=0)
    rates = [n / ns * 1e9 for n, ns in read if n >= longest / 2]
    wrote = [(a.output_tokens or 0, u.decode_ns) for a, u in seen if u.decode_ns and (a.output_tokens or 0) > 1]
    tokens, spent = sum(n for n, _ in wrote), sum(ns for _, ns in wrote)
    loads = [u.load_ns / 1e9 for _, u in seen if u.load_ns is not None and u.load_ns > 100_000_000]
    return Pace(
        median(rates) if rates else None, tokens / spent * 1e9 if tokens and spent else None, median(loads) if loads else None
    )


def pace_of_result(result: Result, source: str) -> Pace | None:
    """What an earlier result knows: its Inspector's, else its Audit's longest rung. `None` where it knows nothing."""
    inspector, audit = result.inspector, result.audit
    if inspector is not None and (slope := inspector.prefill.slope) is not None and slope.value > 0:
        cells = inspector.decode.cells
        loads = [start.load.value / 1000 for start in inspector.cold if start.state == "C1" and start.load is not None]
        return Pace(1000 / slope.value, cells[0].rate.value if cells else None, loads[0] if loads else None, source)
    rungs: Sequence[tuple[float, float]] = [
        (rung.measured_tokens * (rung.n + rung.invalid), rung.seconds)
        for rung in (audit.rungs if audit is not None else ())
        if rung.measured_tokens and rung.seconds and rung.n
    ]
    if not rungs:
        return None
    tokens, seconds = max(rungs)
    return Pace(tokens / seconds, None, None, source) if math.isfinite(tokens / seconds) else None


def spell(seconds: float) -> str:
    """A time for a reader who decides whether to wait."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
