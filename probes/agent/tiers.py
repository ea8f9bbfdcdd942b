"""The four tiers as a table: what an instance of each is made of, how long it may last and how often it must be passed.

Horizon and k are the tier's promise; the oracle's length is computed per instance by the generator, which rejects an
instance whose horizon is less than `MIN_SLACK` times that length. A step is one tool call, or one turn without a call:
several calls in a turn cost one step each, so that calling in parallel does not change the tier.
Sources: research figures of the prototype world (slack, SPRT hypotheses), recomputed here by `benchmarks/bench_agent.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["MIN_SLACK", "TIERS", "Kind", "Tier", "TierName", "tier_named"]

TierName = Literal["easy", "medium", "hard", "extreme"]
Kind = Literal["approval", "lock", "migration", "flag", "snapshot"]

MIN_SLACK: Final = 1.3
"""Least horizon ÷ reactive oracle: a model that errs a little must still be able to finish."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Parameters of one tier. `chains[i]` is the number of hidden prerequisites behind goal i's last action."""

    name: TierName
    horizon: int  # steps
    k: int  # runs of one Pass^k
    ships: bool  # goals end with a deployment; else with green tests
    chains: tuple[int, ...]
    referenced: int  # prerequisites that ask for a value read elsewhere
    kinds: tuple[Kind, ...]
    decoys: int
    traps: int
    transient_faults: int
    persistent_share: float  # of instances whose right ending is a truthful `blocked`
    constraints: int
    distractors: int  # files that have nothing to do with the task
    waits: int  # prerequisites that are granted only after some steps
    wait_steps: int
    lease_steps: int  # 0: locks do not expire
    reread_costs_two: bool  # a value shown once must be fetched through a second read
    p1: float  # the pass rate that clears the tier …
    p0: float  # … against the one that fails it (sequential test, α = β = 0.05)

    @property
    def goals(self) -> int:
        return len(self.chains)

    @property
    def hidden(self) -> int:
        return sum(self.chains)

    @property
    def max_oracle_steps(self) -> int:
        return int(self.horizon / MIN_SLACK)


TIERS: Final[tuple[Tier, ...]] = (
    Tier("easy", 8, 5, False, (0,), 0, (), 1, 0, 0, 0.0, 1, 2, 0, 0, 0, False, 0.95, 0.80),
    Tier(
        "medium", 16, 8, True, (2,), 1, ("approval", "lock", "migration", "flag"), 4, 1, 1, 0.06, 2, 6, 0, 0, 0, False, 0.90, 0.70
    ),
    Tier(
        "hard",
        28,
        16,
        True,
        (3, 1),
        2,
        ("approval", "lock", "migration", "flag", "snapshot"),
        8,
        3,
        1,
        0.08,
        3,
        15,
        1,
        1,
        0,
        True,
        0.90,
        0.70,
    ),
    Tier(
        "extreme",
        48,
        24,
        True,
        (4, 3, 1),
        4,
        ("approval", "lock", "migration", "flag", "snapshot"),
        14,
        5,
        2,
        0.08,
        5,
        40,
        1,
        1,
        16,
        True,
        0.80,
        0.50,
    ),
)


def tier_named(name: str) -> Tier:
    """The tier of that name; `KeyError` lists the names there are."""
    for tier in TIERS:
        if tier.name == name.strip().lower():
            return tier
    raise KeyError(f"no tier {name!r}; there are {', '.join(t.name for t in TIERS)}")
