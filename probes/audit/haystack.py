"""A trial → a prompt of a wanted length: header, padding with the needles at their depths, the question last.

Lengths are the model's own tokens, predicted from measured counts: tokens = fixed + rate x characters, per register,
corrected with each answer until a prompt lands within 1 % of its target.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from probes.audit.facts import Trial
from probes.audit.solver import NOT_STATED
from probes.padding import Register, fill

__all__ = ["STRATA", "Calibration", "Prompt", "build"]

STRATA = 5
_LEAD = (
    "Below is reference material. Read all of it, then answer the question at its end with the value only. "
    f"If the material does not state it, answer {NOT_STATED}.\n\n"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A built trial."""

    text: str
    trial: Trial
    header: str
    register: Register
    depth: float  # of the asked fact, 0 = front
    padding_characters: int
    fixed_characters: int

    def asking(self, trial: Trial) -> Prompt:
        """The same material with another question at its end: all before the question is the same, byte for byte."""
        text = self.text.removesuffix(_tail(self.trial)) + _tail(trial)
        return Prompt(text, trial, self.header, self.register, self.depth, self.padding_characters, self.fixed_characters)


def _tail(trial: Trial) -> str:
    return f"\n\nQuestion: {trial.question}\nAnswer:" if trial.question else "\n"


@dataclass(slots=True)
class Calibration:
    """Characters ↔ tokens of one model. Two unpadded measurements start it; every valid answer sharpens it."""

    points: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # register → (characters, tokens)

    def learn(self, register: str, characters: int, tokens: int) -> None:
        """Take a measured count; the last 40 of a register are kept."""
        kept = self.points.setdefault(register, [])
        kept.append((characters, tokens))
        del kept[:-40]

    def law(self, register: str) -> tuple[float, float]:
        """(fixed tokens, tokens per character). Before any measurement: 4 characters a token."""
        found = self.points.get(register) or [pair for pairs in self.points.values() for pair in pairs]
        if not found:
            return 0.0, 0.25
        sizes = {characters for characters, _ in found}
        if len(sizes) < 2 or max(sizes) < 1.5 * min(sizes):
            total = sum(characters for characters, _ in found)
            return 0.0, sum(tokens for _, tokens in found) / max(1, total)
        # relative errors: weights 1/characters^2
        w = [1.0 / (characters * characters) for characters, _ in found]
        sw = math.fsum(w)
        sx = math.fsum(wi * c for wi, (c, _) in zip(w, found, strict=True))
        sy = math.fsum(wi * t for wi, (_, t) in zip(w, found, strict=True))
        sxx = math.fsum(wi * c * c for wi, (c, _) in zip(w, found, strict=True))
        sxy = math.fsum(wi * c * t for wi, (c, t) in zip(w, found, strict=True))
        determinant = sw * sxx - sx * sx
        if determinant <= 0:
            return 0.0, sy / sx
        rate = (sw * sxy - sx * sy) / determinant
        return (sy - rate * sx) / sw, rate

    def expected(self, register: str, characters: int) -> float:
        """Tokens that a prompt of so many characters should have."""
        fixed, rate = self.law(register)
        return fixed + rate * characters

    def tolerance(self, register: str, characters: int) -> float:
        """How far a count may lie from the expected one: 16 tokens, 1 %, or three standard errors of the counts so far."""
        expected = self.expected(register, characters)
        found = self.points.get(register) or []
        errors = [abs(tokens / self.expected(register, c) - 1) for c, tokens in found if self.expected(register, c) > 0]
        spread = math.sqrt(math.fsum(e * e for e in errors) / len(errors)) if len(errors) >= 3 else 0.02
        return max(16.0, 0.01 * expected, 3 * spread * expected)

    def characters(self, register: str, tokens: float) -> int:
        """Characters for a prompt of so many tokens in all."""
        fixed, rate = self.law(register)
        return max(0, round((tokens - fixed) / rate))


def build(
    trial: Trial,
    register: Register,
    characters: int,
    seed: int | str,
    *,
    header: str,
    stratum: int | None = None,
    depth: float | None = None,
) -> Prompt:
    """A prompt of `characters` in all (longer only where the facts alone are longer). The asked fact lies in `stratum` (0–4,
    random inside) or exactly at `depth`."""
    draw = random.Random(f"haystack/{seed}")
    place = depth if depth is not None else ((stratum or 0) + draw.random()) / STRATA
    head = f"Header tag: {header}.\n\n{_LEAD}"
    tail = _tail(trial)
    needles = [f"\n{needle.text.strip()}\n" if not needle.text.startswith("\n") else needle.text for needle in trial.needles]
    fixed = len(head) + len(tail) + sum(map(len, needles))
    room = max(0, characters - fixed)
    blocks = _absent_from(trial, register, seed, room)
    body = "".join(_insert(blocks, needles, _depths(trial, place, draw), room))
    return Prompt(head + body + tail, trial, header, register, place, room, fixed)


def _absent_from(trial: Trial, register: Register, seed: int | str, room: int) -> list[str]:
    """Padding in which none of the trial's values occurs by chance."""
    values = [value for value in (trial.answer, *trial.distractors, *trial.stale) if value]
    for attempt in range(8):
        blocks = fill(register, f"{seed}/{attempt}", room)
        if not any(value in block for block in blocks for value in values):
            return blocks
    raise RuntimeError("eight paddings in a row contain the secret value: the grammar and the facts overlap")


def _depths(trial: Trial, place: float, draw: random.Random) -> list[float]:
    """Where each needle goes. The first of an unordered family, and the last word of an ordered one, is the asked fact."""
    n = len(trial.needles)
    if n <= 1:
        return [place] * n
    if trial.family == "conflict":
        return [place * 0.5, place] if place > 0 else [0.0, 0.0]
    if trial.family == "chain":
        return [min(1.0, max(0.0, needle.order)) for needle in trial.needles]
    asked = next((index for index, needle in enumerate(trial.needles) if trial.answer and trial.answer in needle.text), 0)
    return [place if index == asked else draw.random() for index in range(n)]


def _insert(blocks: list[str], needles: list[str], depths: list[float], room: int) -> list[str]:
    waiting = sorted(zip(depths, range(len(needles)), strict=True))
    made: list[str] = []
    passed = 0
    for block in blocks:
        while waiting and passed >= waiting[0][0] * room:
            made.append(needles[waiting.pop(0)[1]])
        made.append(block)
        passed += len(block)
    made += [needles[index] for _, index in waiting]
    return made
