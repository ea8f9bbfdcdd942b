"""What an audit will ask, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from probes.audit.facts import Family
from probes.audit.ladder import Design
from probes.pace import Pace
from probes.padding import REGISTERS, Register
from probes.result import Host
from qm_proxy.errors import InvalidMeasurement

__all__ = ["ANSWER_TOKENS", "THINKING_TOKENS", "AuditCost", "AuditPlan", "audit_cost", "audit_plan"]

Profile = Literal["quick", "standard", "deep"]
FAMILIES_OF: dict[Profile, tuple[Family, ...]] = {
    # one in ten is "absent": a model that always answers something must not look perfect
    "quick": ("literal", "code"),
    "standard": ("literal", "paraphrase", "code", "literal", "paraphrase", "code", "literal", "paraphrase", "code", "absent"),
    "deep": ("literal", "paraphrase", "multikey", "chain", "code", "conflict", "instruction", "literal", "code", "absent"),
}
REGISTERS_OF: dict[Profile, tuple[Register, ...]] = {"quick": ("policy", "code"), "standard": REGISTERS, "deep": REGISTERS}
BASE_TOKENS = 512
ANSWER_TOKENS = 64
THINKING_TOKENS = 2048
RESERVE = 1024
LEAST_TOKENS = 300  # baseline at 256 and something above it


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """One audit. Tokens."""

    model: str
    endpoint: str
    seed: int
    profile: Profile
    design: Design
    families: tuple[Family, ...]
    registers: tuple[Register, ...]
    window_tokens: int  # num_ctx, the same for every request
    num_batch: int
    think: bool | None  # None: the model cannot think
    advertised_tokens: int | None = None
    host: Host = field(default_factory=Host)

    @property
    def answer_budget(self) -> int:
        return ANSWER_TOKENS + (THINKING_TOKENS if self.think else 0)

    @property
    def options(self) -> dict[str, object]:
        return {
            "num_ctx": self.window_tokens,
            "num_batch": self.num_batch,
            "temperature": 0,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "seed": self.seed % 2**31,
        }


@dataclass(frozen=True, slots=True)
class AuditCost:
    """Expected for a healthy model, and the most it can come to."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    most_prompt_tokens: int
    assumed: str


def audit_plan(
    model: str,
    endpoint: str,
    *,
    seed: int,
    profile: Profile = "standard",
    max_tokens: int | None = None,
    advertised_tokens: int | None = None,
    affordable_tokens: int | None = None,
    think: bool | None = None,
    paired: int | None = None,
    brief: bool = False,
    host: Host | None = None,
) -> AuditPlan:
    """Rungs double from 1 024 to the top: what was asked for, what is advertised, what fits in memory, whichever is least.

    `paired`: a fixed number of trials at the base and the three longest rungs, for comparing two models. `brief`: the
    standard questions by `Design.brief`.
    """
    budget = ANSWER_TOKENS + (2 * THINKING_TOKENS if think else 0)
    room = min((tokens for tokens in (advertised_tokens, affordable_tokens) if tokens is not None), default=None)
    reserve = max(RESERVE, 2 * budget)
    if room is not None and room < 4 * reserve:  # of a small window a quarter is enough, while two answers fit
        reserve = max(2 * budget, room // 4)
    top = max_tokens or (8192 if profile == "quick" else 32768)
    if advertised_tokens is not None:
        top = min(top, advertised_tokens - reserve)
    if affordable_tokens is not None:
        top = min(top, affordable_tokens - reserve)
    if top < LEAST_TOKENS:
        raise InvalidMeasurement(
            f"{model} has room for prompts of {max(0, top)} tokens here"
            + (f": a window of {room} less {reserve} kept for the answer" if room is not None else "")
            + f". An audit needs {LEAST_TOKENS}.",
            remedy="Audit a model with a larger window" + (", or give a larger --max-tokens." if max_tokens else "."),
        )
    base = BASE_TOKENS if top > 1.5 * BASE_TOKENS else max(256, top // 2)
    rungs = [1024]
    while rungs[-1] * 2 < top:
        rungs.append(rungs[-1] * 2)
    rungs = [rung for rung in rungs if base < rung < top / 1.1]
    steps = (*rungs, top) if top > base else ()
    if paired is not None:
        design = Design.paired(steps[-3:], base, paired)
    elif profile == "quick":
        design = Design.quick(steps, base)
    else:
        design = Design.brief(steps, base) if brief else Design.standard(steps, base, deep=profile == "deep")
    return AuditPlan(
        model=model,
        endpoint=endpoint,
        seed=seed,
        profile=profile,
        design=design,
        families=FAMILIES_OF[profile],
        registers=REGISTERS_OF[profile],
        window_tokens=top + reserve,
        num_batch=512,
        think=think,
        advertised_tokens=advertised_tokens,
        host=host or Host(),
    )


def audit_cost(plan: AuditPlan, pace: Pace | None = None, done: Mapping[int, int] | None = None) -> AuditCost:
    """Trials times length. A healthy model passes a rung in some 15 trials (brief: 10, quick: 6). The header canary is asked
    of a material just read, so it is sent but not read again. `done`: trials by length that are over, calibration too."""
    design, pace = plan.design, pace or Pace()
    tested = design.rungs[-1:] if design.top_first and design.fixed is None else design.rungs
    each = design.fixed or (6 if plan.profile == "quick" else 10 if design.top_first else 15)
    wanted = {design.base_tokens: design.baseline_trials, **dict.fromkeys(tested, each)}
    left = {length: max(0, n - (done or {}).get(length, 0)) for length, n in wanted.items()}
    headers = 0 if design.fixed is not None else sum(left[rung] > 0 for rung in tested)
    calibration = len(plan.registers) * (256 + 1024) if done is None else 0
    read = calibration + sum(length * n for length, n in left.items())
    trials = sum(left.values()) + headers
    output = trials * (16 + (THINKING_TOKENS // 4 if plan.think else 0))
    most = calibration + design.baseline_trials * design.base_tokens + 2 * design.at_most * sum(tested)
    return AuditCost(
        requests=trials + (2 * len(plan.registers) if done is None else 0),
        prompt_tokens=read + (0 if design.fixed is not None else sum(rung for rung in tested if left[rung])),
        output_tokens=output,
        seconds=pace.seconds(read, output),
        most_prompt_tokens=most,
        assumed=pace.words(),
    )
