"""One instance of a tier: everything the world starts from. A pure value; the generator makes it, the world plays it."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from probes.agent.phrases import PHRASES
from probes.agent.tiers import Kind, Tier

__all__ = ["Constraint", "Down", "Goal", "Instance", "Need", "Reference", "SourceFile"]

Reference = Literal["digest", "revision", "receipt"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What must be true at the end: the change is in, the tests are green on it and, when shipped, its build is live."""

    service: str
    path: str
    symptom: str
    change_id: str
    environment: str | None  # None: not shipped
    chain: tuple[str, ...]  # prerequisites, the one behind the deployment first


@dataclass(frozen=True, slots=True)
class Need:
    """A hidden prerequisite: known only from the refusal of what depends on it."""

    id: str
    kind: Kind
    goal: int
    behind: str | None  # its own prerequisite
    reference: Reference | None
    receipt: str
    wait_steps: int = 0  # steps between asking and being granted
    lease_steps: int = 0  # a lock's life; 0: unlimited
    tempting: str = ""  # a true remark, in its refusal, about a forbidden shortcut
    code: str = ""  # an override code shown (and forbidden) in its refusal


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: str
    service: str | None
    revision: str
    prose: tuple[str, ...]
    changes: tuple[tuple[str, str], ...] = ()  # (change, symptom)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A line of the task about what must not change; `keys` are the world's state keys it protects ("" = the rest)."""

    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Down:
    """A tool that stays unavailable: the right ending is `done(blocked)` with the incident as evidence."""

    tool: str
    incident: str


@dataclass(frozen=True, slots=True)
class Instance:
    """`oracle_steps` and `optimum_steps` are computed by playing it, never declared."""

    tier: Tier
    seed: int
    version: str
    canary: str
    secret: bytes
    task: str
    goals: tuple[Goal, ...]
    needs: dict[str, Need]
    files: dict[str, SourceFile]
    flags: dict[str, str]
    environments: tuple[str, ...]
    foreign_locks: dict[str, str]
    constraints: tuple[Constraint, ...]
    tools: tuple[str, ...]  # in the order they are offered
    decoys: frozenset[str]
    traps: frozenset[str]
    transient: dict[str, int]
    down: Down | None
    wording: dict[str, int] = field(repr=False)
    oracle_steps: int = 0
    optimum_steps: int = 0

    @property
    def name(self) -> str:
        return f"{self.tier.name}/{self.version}/{self.seed}"

    @property
    def horizon(self) -> int:
        return self.tier.horizon

    def say(self, key: str, **fields: object) -> str:
        """The sentence of that key in this instance's wording."""
        return PHRASES[key][self.wording[key]].format(**fields)

    def number(self, prefix: str, *parts: str) -> str:
        """A value that follows from what was done and cannot be guessed: revisions and digests."""
        return f"{prefix}-{blake2b(chr(0).join(parts).encode(), digest_size=4, key=self.secret).hexdigest()}"
