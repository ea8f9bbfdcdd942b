"""What a report will run, in the flags' words, and what that may cost: printed before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from probes.agent.sampling import gate_for
from probes.agent.tiers import TIERS, Tier, tier_named
from probes.result import Host
from qm_proxy.errors import SettingsError

__all__ = ["Cost", "Plan", "cost", "plan_for"]

PathChoice = Literal["auto", "native", "prompt-json", "both"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One Agent Report."""

    model: str
    endpoint: str
    seed: int
    tiers: tuple[Tier, ...]
    k: int | None = None
    strict_k: bool = False
    all_tiers: bool = False
    path: PathChoice = "auto"
    quick: bool = False
    compat: Literal["quantamind"] | None = None
    think: bool | None = None  # None: as the model does by itself
    temperature: float = 0.0
    window_tokens: int | None = None
    turn_limit_s: float = 600.0
    host: Host = field(default_factory=Host)
    ours: bool = True  # False with compat: only the origin's sampling


@dataclass(frozen=True, slots=True)
class Cost:
    """The span between a model that decides every tier at once and one that needs every run to the horizon."""

    runs_least: int
    runs_most: int
    turns_most: int
    seconds_least: float
    seconds_most: float
    assumed: str


def plan_for(
    model: str,
    endpoint: str,
    *,
    seed: int = 0,
    tiers: str | Sequence[str] | None = None,
    k: int | None = None,
    strict_k: bool = False,
    all_tiers: bool = False,
    both: bool = False,
    path: PathChoice = "auto",
    quick: bool = False,
    compat: Literal["quantamind"] | None = None,
    think: bool | None = None,
    temperature: float = 0.0,
    window_tokens: int | None = None,
    host: Host | None = None,
) -> Plan:
    """From the command's flags. Raises SettingsError for a tier that does not exist or a k below 1."""
    names = [name for name in tiers.split(",") if name.strip()] if isinstance(tiers, str) else list(tiers or ())
    try:
        chosen = {tier_named(name).name for name in names} or {tier.name for tier in TIERS}
    except KeyError as unknown:
        raise SettingsError(str(unknown.args[0]) + ".", remedy="Write for example --tiers easy,hard.") from unknown
    if k is not None and k < 1:
        raise SettingsError(f"--k is the number of runs that must all pass, at least 1, not {k}.")
    return Plan(
        model=model,
        endpoint=endpoint,
        seed=seed,
        tiers=tuple(tier for tier in TIERS if tier.name in chosen),
        k=k,
        strict_k=strict_k,
        all_tiers=all_tiers,
        path="both" if both else path,
        quick=quick,
        compat=compat,
        think=think,
        temperature=temperature,
        window_tokens=window_tokens,
        host=host or Host(),
    )


def cost(plan: Plan, *, seconds_per_turn: float | None = None) -> Cost:
    """Runs, turns and time. A turn's time that is not known is assumed to be 3 s."""
    each = seconds_per_turn or 3.0
    paths = 2 if plan.path == "both" else 1
    least = most = turns_least = turns_most = 0
    for index, tier in enumerate(plan.tiers):
        gate = gate_for(tier, k=plan.k, strict=plan.strict_k, quick=plan.quick)
        fewest = next(n for n in range(1, gate.cap + 1) if gate.decide(0, n) is not None)
        if index == 0 or plan.all_tiers:
            least += fewest
            turns_least += fewest
        most += gate.cap
        turns_most += gate.cap * tier.horizon
    least, most, turns_least, turns_most = (paths * n for n in (least, most, turns_least, turns_most))
    if plan.compat is not None:
        from probes.agent.compat import RUNS, TURNS_MOST

        least, most = least + RUNS, most + RUNS
        turns_least, turns_most = turns_least + RUNS, turns_most + TURNS_MOST
    known = "measured" if seconds_per_turn else "assumed"
    return Cost(least, most, turns_most, turns_least * each, turns_most * each, f"{known}: {each:g} s a turn")
