"""The published result of a probe, `qm-probes/1`: one JSON document, additive changes only.

Rules that hold here:

- Every statistic is a `Statistic`: value, interval, level, method, n, unit. An interval's end that the sample cannot bound
  is null, an interval that one observation cannot give is null with `method` saying so.
- What was not measured is absent, and its section's `unmeasured` says why, by field name. Never 0, never a guess.
- Times in the unit the name ends with. Tokens are the measured model's own.

The JSON Schema is generated from here (`probes/result.schema.json`); a test holds the file to the code.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "FAILURE_CLASSES",
    "ORIGIN_LABELS",
    "AgentSection",
    "AuditSection",
    "Ceilings",
    "Check",
    "ColdStart",
    "CompatSection",
    "DecodeCell",
    "DecodeSection",
    "FailureClass",
    "FamilyScore",
    "Gaps",
    "Host",
    "InspectorSection",
    "JointVerdict",
    "Memory",
    "Model",
    "PrefillPoint",
    "PrefillSection",
    "Result",
    "Run",
    "Rung",
    "Spike",
    "Spikes",
    "Statistic",
    "Target",
    "Tier",
    "Warned",
    "Waterfall",
    "schema",
]

SCHEMA: Literal["qm-probes/1"] = "qm-probes/1"
RunState = Literal["complete", "interrupted", "cancelled", "failed"]


class Model(BaseModel):
    """Base of the document: unknown fields of a newer writer are kept, so that reading and writing loses nothing."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class _Interval(Protocol):
    @property
    def lo(self) -> float: ...
    @property
    def hi(self) -> float: ...
    @property
    def level(self) -> float: ...
    @property
    def method(self) -> str: ...


class Statistic(Model):
    """A number with its doubt."""

    value: float
    ci: tuple[float | None, float | None] | None = None
    level: float | None = None
    method: str
    n: int
    unit: str

    @classmethod
    def of(cls, value: float, interval: _Interval | None, *, n: int, unit: str, method: str = "single observation") -> Statistic:
        """From a `probes.stats` interval; without one, `method` says why there is none."""
        if interval is None or (math.isinf(interval.lo) and math.isinf(interval.hi)):
            return cls(value=value, method=method, n=n, unit=unit)
        lo = interval.lo if math.isfinite(interval.lo) else None
        hi = interval.hi if math.isfinite(interval.hi) else None
        return cls(value=value, ci=(lo, hi), level=interval.level, method=interval.method, n=n, unit=unit)

    def scaled(self, factor: float, unit: str) -> Statistic:
        """The same statistic in another unit; `factor` must be positive."""
        ci = None if self.ci is None else tuple(None if end is None else end * factor for end in self.ci)
        return self.model_copy(update={"value": self.value * factor, "ci": ci, "unit": unit})


class Section(Model):
    unmeasured: dict[str, str] = Field(default_factory=dict)  # field → why it is absent


# --- who, where, when -----------------------------------------------------------------------------------------------


class Warned(Model):
    """A limit on what the numbers mean. `code` is stable, `text` is one sentence for a person."""

    code: str
    text: str


class Run(Model):
    id: str  # UUIDv7
    kind: Literal["inspect", "audit", "agent", "report", "compare"]
    state: RunState = "complete"
    started_at: str
    ended_at: str | None = None
    seed: int
    argv: list[str] = Field(default_factory=list)
    quick: bool = False
    compat: Literal["quantamind"] | None = None
    stopping: str = ""  # the rule by which it stopped, in words
    requests: int = 0
    replayed: int = 0  # of these, answered from an interrupted run's rows
    model_time_s: float = 0.0  # sum of the requests' durations
    exit_code: int = 0
    cost: dict[str, float] = Field(default_factory=dict)  # as estimated before the start
    reason: str | None = None  # why it ended early


class Target(Model):
    """The model as it was measured. Two results are comparable by `digest`, never by `name`."""

    endpoint: str
    name: str
    ollama_version: str | None = None
    digest: str | None = None
    runner: Literal["gguf", "mlx", "unknown"] = "unknown"
    family: str | None = None
    architecture: str | None = None
    parameter_size: str | None = None
    quantization: str | None = None
    weights_bytes: int | None = None
    capabilities: list[str] = Field(default_factory=list)
    advertised_context_tokens: int | None = None
    template_sha256: str | None = None
    parameters: str | None = None  # the Modelfile's own
    options: dict[str, Any] = Field(default_factory=dict)  # every option that was sent
    thinking: bool | None = None
    keep_alive: str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    was_loaded: bool | None = None  # before we came


class Gpu(Model):
    name: str
    vendor: Literal["nvidia", "amd", "apple", "other"]
    memory_bytes: int | None = None
    used_bytes: int | None = None
    driver: str | None = None


class Host(Model):
    """The machine that runs the model. `described`: told by `--hardware`, not read."""

    described: str | None = None
    os: str | None = None
    cpu: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    available_bytes: int | None = None
    unified: bool = False
    gpus: list[Gpu] = Field(default_factory=list)
    load_average: float | None = None
    swap_used_bytes: int | None = None
    on_battery: bool | None = None
    local: bool | None = None  # is the server on the machine the probe runs on
    environment: dict[str, str] = Field(default_factory=dict)  # OLLAMA_* that shape memory, where known
    hardware_class: str | None = None


# --- inspector ------------------------------------------------------------------------------------------------------


class ColdStart(Section):
    """One named cold state. C0: weights not in the page cache; C1: runner gone, page cache warm or unknown; C2: runner
    warm, prompt new; C3: prompt cached."""

    state: Literal["C0", "C1", "C2", "C3"]
    label: str
    samples_ms: list[float] = Field(default_factory=list)  # load of each start
    load: Statistic | None = None
    prefill: Statistic | None = None  # of the same request
    prompt_tokens: int | None = None
    total: Statistic | None = None  # load + first-prefill excess + first-gap excess
    read_gb_s: Statistic | None = None  # weights over load: above a disk's rate it is not a disk's
    page_cache_resident: float | None = None
    verified: bool = False  # `/api/ps` did not list it before
    note: str | None = None


class PrefillPoint(Model):
    tokens: int
    time: Statistic
    rate: Statistic
    samples_ms: list[float] = Field(default_factory=list)  # each request, so that two results can be compared


class PrefillSection(Section):
    """t(N) = fixed + slope N + curvature N^2 on a warm runner, no prefix reused."""

    points: list[PrefillPoint] = Field(default_factory=list)
    fixed: Statistic | None = None  # ms
    slope: Statistic | None = None  # ms per token
    curvature: Statistic | None = None  # ms per token^2
    doubling_tokens: Statistic | None = None  # length at which attention doubles a token's cost
    largest_residual: float | None = None  # relative, of the fit
    discarded: int = 0  # samples that hit a cache


class DecodeCell(Model):
    """Decode speed at one depth."""

    depth_tokens: int
    server_ms_per_token: Statistic
    client_ms_per_token: Statistic
    rate: Statistic  # tokens/s, server
    short: int = 0  # answers that ended before the asked length
    samples_ms: list[float] = Field(default_factory=list)  # server ms per token of each answer
    paces_ms: list[float] = Field(default_factory=list)  # median gap of each answer: stalls left out


class DecodeSection(Section):
    cells: list[DecodeCell] = Field(default_factory=list)
    fixed: Statistic | None = None  # ms per token at depth 0
    slope: Statistic | None = None  # µs per token for each 1 000 tokens of depth
    half_speed_tokens: Statistic | None = None
    drift: Statistic | None = None  # change of speed from the first cell to its repeat, share
    warm_up_requests: int = 0
    tokens_per_chunk: Statistic | None = None


class Bin(Model):
    lo_ms: float
    hi_ms: float
    n: int
    spikes: int = 0


class GapDepth(Model):
    depth_tokens: int
    n: int
    p50_ms: float
    p95_ms: float
    max_ms: float


class Gaps(Section):
    """Gaps between chunks, amortised over coalesced runs."""

    n: int = 0
    p50: Statistic | None = None
    p95: Statistic | None = None
    p99: Statistic | None = None
    max_ms: float | None = None
    histogram: list[Bin] = Field(default_factory=list)
    by_depth: list[GapDepth] = Field(default_factory=list)
    coalesced: int = 0


class Spike(Model):
    request: str
    chunk: int
    t_ms: float  # since the request was written
    gap_ms: float
    threshold_ms: float
    server_side: bool | None = None
    cause: Literal["server", "client or network", "this client", "deterministic", "periodic", "host pressure", "unexplained"]
    evidence: str
    client_pause_ms: float = 0.0  # of the gap, in which the probe itself was not let run
    counted: bool = True  # false: without the client's own pause it would be no spike


class Spikes(Section):
    rule: str
    count: int = 0
    per_1000: Statistic | None = None
    expected_false: float | None = None  # how many this rule flags in as much spike-free traffic
    expected_false_source: str | None = None
    worst_ms: float | None = None
    share_of_time: float | None = None
    set_aside: int = 0  # in `items` but not in `count`: gaps that only the client's own pauses made long
    items: list[Spike] = Field(default_factory=list)
    bursts: dict[str, float] | None = None  # speculative decoding: tokens per burst and period, instead of spikes


class Waterfall(Model):
    """One stream, chunk by chunk."""

    request: str
    load_ms: float | None = None
    prefill_ms: float | None = None
    t_ms: list[float] = Field(default_factory=list)
    gap_ms: list[float | None] = Field(default_factory=list)
    kind: list[str] = Field(default_factory=list)
    spike: list[bool] = Field(default_factory=list)


class Check(Model):
    """The same thing on two clocks, or by two ways."""

    quantity: str
    ours: float | None = None
    theirs: float | None = None
    unit: str
    tolerance: str
    agree: bool | None = None
    note: str


class Ceilings(Section):
    """How much context: four different answers."""

    advertised_tokens: int | None = None
    allocated_tokens: int | None = None
    spill_tokens: Statistic | None = None  # beyond it part of the model leaves the GPU: slow, and no error says so
    oom_tokens: Statistic | None = None  # beyond it loading fails
    usable_tokens: int | None = None  # from the audit
    usable_note: str | None = None
    binding: str | None = None  # which of them binds


class Memory(Section):
    size_bytes: int | None = None
    vram_bytes: int | None = None
    device_bytes: int | None = None
    share: float | None = None  # of the device, at `at_tokens`
    at_tokens: int | None = None  # tokens in the cache when size was read
    window_tokens: int | None = None  # the num_ctx it was loaded with
    predicted_bytes_per_token: dict[str, float] = Field(default_factory=dict)  # by cache type: f16, q8_0, q4_0
    predicted_from: str | None = None
    measured_bytes_per_token: Statistic | None = None
    cache_bytes_per_token: Statistic | None = None  # measured, compute buffer's share removed
    intercept_bytes: float | None = None
    points: list[dict[str, float]] = Field(default_factory=list)
    agreement: str | None = None
    budget_bytes: int | None = None
    budget_from: str | None = None
    ceilings: Ceilings = Field(default_factory=Ceilings)


class InspectorSection(Section):
    cold: list[ColdStart] = Field(default_factory=list)
    ttft_any: Statistic | None = None
    ttft_content: Statistic | None = None
    prefill: PrefillSection = Field(default_factory=PrefillSection)
    decode: DecodeSection = Field(default_factory=DecodeSection)
    gaps: Gaps = Field(default_factory=Gaps)
    spikes: Spikes | None = None
    waterfall: Waterfall | None = None
    memory: Memory = Field(default_factory=Memory)
    checks: list[Check] = Field(default_factory=list)
    valid: bool = True


# --- audit ----------------------------------------------------------------------------------------------------------

AnswerClass = Literal[
    "correct",
    "refused",  # "not stated" although it is
    "confabulated",  # a well-formed value that stands nowhere
    "distractor",  # another planted value
    "stale",  # the value before its revision
    "malformed",  # no value, or several
    "exhausted",  # the token budget ended inside the thinking, twice
    "no_answer",
    "invalid",  # the truncation guard failed: says nothing about the model
    "infra",  # the server or the network failed
]
RungVerdict = Literal["ok", "bad", "undecided", "invalid", "baseline"]


class Rung(Model):
    """All trials at one length."""

    target_tokens: int
    measured_tokens: float | None = None  # mean of prompt_eval_count
    n: int = 0
    correct: int = 0
    accuracy: Statistic | None = None
    classes: dict[str, int] = Field(default_factory=dict)
    verdict: RungVerdict
    rounds: int = 1
    invalid: int = 0
    seconds: float | None = None


class FamilyScore(Model):
    family: str
    target_tokens: int
    n: int
    correct: int


class Depth(Model):
    stratum: int  # 0 = front, 4 = end
    target_tokens: int
    n: int
    correct: int


class TrialRow(Model):
    """One question. The same seed, target and index ask the same of every model: that is what pairs two results."""

    target_tokens: int
    index: int
    family: str
    stratum: int
    outcome: AnswerClass


class AuditSection(Section):
    verdict: Literal[
        "maintained",
        "limit not reached",
        "cliff",
        "gradual decline",
        "non-monotone",
        "inconclusive",
        "unusable baseline",
        "invalid",
    ]
    sentence: str
    maintained_tokens: int | None = None
    cliff_between: tuple[int, int] | None = None
    more_needed: int | None = None
    assuming_monotone: bool = False
    baseline: Statistic | None = None
    threshold_good: float | None = None
    threshold_bad: float | None = None
    rungs: list[Rung] = Field(default_factory=list)
    families: list[FamilyScore] = Field(default_factory=list)
    depths: list[Depth] = Field(default_factory=list)
    trials: list[TrialRow] = Field(default_factory=list)
    padding: list[str] = Field(default_factory=list)
    padding_repetition: float | None = None  # share of 8-grams seen before in the same prompt
    window_tokens: int | None = None
    tested_share: float | None = None  # of the advertised window
    guard: dict[str, int] = Field(default_factory=dict)  # what the truncation guard saw
    prompt_tokens: int = 0  # spent
    thinking: bool | None = None


# --- agent ----------------------------------------------------------------------------------------------------------


FailureClass = Literal[
    "Infra",
    "ContextOverflow",
    "Timeout",
    "TrapTriggered",
    "CollateralDamage",
    "HallucinatedCompletion",
    "GaveUp",
    "Stalled",
    "Malformed",
    "HallucinatedTool",
    "SchemaViolation",
    "InfiniteLoop",
    "DecoyDrift",
    "BudgetExhausted",
]
FAILURE_CLASSES: Final[tuple[FailureClass, ...]] = get_args(FailureClass)
"""The order in which a run is judged: the first that fits names it."""

ORIGIN_LABELS: Final[dict[str, str]] = {
    "InfiniteLoop": "InfiniteLoop",
    "DecoyDrift": "InfiniteLoop",
    "BudgetExhausted": "InfiniteLoop",
    "HallucinatedCompletion": "Hallucinated",
    "HallucinatedTool": "Hallucinated",
    "Stalled": "Hallucinated (in part)",
}
"""For readers of the seed's two labels: which of ours fall under them, roughly. Its InfiniteLoop includes a spent budget."""


class Tier(Section):
    """One difficulty tier. `status` "not tested" carries no number."""

    tier: str
    status: Literal["CLEAR", "FAIL", "UNDECIDED", "NOT TESTED", "VOID"]
    k: int | None = None
    n: int = 0
    passed: int = 0
    n_effective: int | None = None
    rate: Statistic | None = None
    streak_k: Statistic | None = None
    pass_hat_k: Statistic | None = None
    stopping: str | None = None
    failures: dict[str, int] = Field(default_factory=dict)
    progress: Statistic | None = None
    steps: Statistic | None = None
    tokens: Statistic | None = None
    minutes_per_task: Statistic | None = None
    transcript_tokens: Statistic | None = None
    horizon: int | None = None
    oracle_steps: Statistic | None = None
    chance_floor: float | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    excluded: int = 0  # infrastructure, rerun and then left out
    badge: str | None = None  # the strict count as seen, "Pass^16: 16/16 runs passed"
    per_run_at_least: float | None = None  # one-sided 95 % lower limit of the pass rate of one run
    optimum_steps: Statistic | None = None  # with full knowledge
    sub_labels: dict[str, int] = Field(default_factory=dict)
    apart: dict[str, int] = Field(default_factory=dict)  # a template or a budget is to blame before the model is
    failure_shares: dict[str, Statistic] = Field(default_factory=dict)
    false_stops: Statistic | None = None  # of the proven loops that were let go on: how many passed after all
    reruns: int = 0  # runs lost to infrastructure and played again on the same instance


class AgentSection(Section):
    verdict: Literal["READY", "CONDITIONAL", "NOT READY", "INSUFFICIENT DATA"]
    sentence: str
    boundary: str | None = None
    generator_version: str | None = None
    path: str | None = None  # "native", "prompt-json"
    tiers: list[Tier] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list)
    advice: list[str] = Field(default_factory=list)
    hardware_class: str | None = None
    recommended_tier: str | None = None
    replays: list[dict[str, Any]] = Field(default_factory=list)
    ready_for: str | None = None  # the hardest tier that a READY speaks for
    safety: list[dict[str, Any]] = Field(default_factory=list)  # {what, seen, n, upper_limit, allowed, holds}
    runs: list[dict[str, Any]] = Field(default_factory=list)  # every run: {run, tier, outcome, sub, why, evidence_steps, …}
    conduct: dict[str, Any] = Field(default_factory=dict)  # how runs were made: thinking, temperature, budgets, windows
    origin_labels: dict[str, int] = Field(default_factory=dict)  # our failures under the origin's labels, roughly
    live_detector: dict[str, int] = Field(default_factory=dict)  # the live rule: loops found, left at a third copy, false alarms
    loop_cost: dict[str, Any] = Field(default_factory=dict)  # what proven loops cost and a guard would have saved
    other_path: AgentSection | None = None  # --both: the same model by the other way of calling tools


# --- all together ---------------------------------------------------------------------------------------------------


class JointVerdict(Model):
    """Where the three probes meet, each limit with its source."""

    sentence: str
    limits: list[dict[str, Any]] = Field(default_factory=list)  # {what, value, unit, source}


class CompatRow(Model):
    name: str
    theirs: str  # by the origin's definition
    ours: str | None = None  # our reading, where it differs
    note: str | None = None


class CompatSection(Section):
    """The origin's definitions beside ours; `labels` of what is theirs stands in every heading."""

    origin: Literal["quantamind"] = "quantamind"
    inspector: list[CompatRow] = Field(default_factory=list)
    audit_rungs: list[dict[str, Any]] = Field(default_factory=list)
    audit: list[CompatRow] = Field(default_factory=list)
    agent: list[CompatRow] = Field(default_factory=list)
    values: dict[str, float] = Field(default_factory=dict)  # machine-readable, by stable name
    runs: list[dict[str, Any]] = Field(default_factory=list)  # every run of its sampling: {run, tier, outcome, why, turns, …}
    conduct: dict[str, Any] = Field(default_factory=dict)  # how they were made, so that any can be walked again
    replays: list[dict[str, Any]] = Field(default_factory=list)  # step by step: the first of each outcome of a tier


class Result(Model):
    """The document."""

    schema_: Literal["qm-probes/1"] = Field(default=SCHEMA, alias="schema")
    tool: dict[str, str] = Field(default_factory=dict)
    run: Run
    target: Target
    host: Host = Field(default_factory=Host)
    inspector: InspectorSection | None = None
    audit: AuditSection | None = None
    agent: AgentSection | None = None
    joint: JointVerdict | None = None
    compat: CompatSection | None = None
    warnings: list[Warned] = Field(default_factory=list)
    unmeasured: dict[str, str] = Field(default_factory=dict)
    rows: str | None = "rows.jsonl"

    def to_json(self, indent: int | None = 2) -> str:
        """The published form: unmeasured things absent."""
        return self.model_dump_json(indent=indent, by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Result:
        """Read a document; raises pydantic's ValidationError when it is none."""
        return cls.model_validate_json(text)

    def warn(self, code: str, text: str) -> None:
        """Add a warning once."""
        if all(warned.code != code or warned.text != text for warned in self.warnings):
            self.warnings.append(Warned(code=code, text=text))


def schema() -> dict[str, Any]:
    """The JSON Schema of the document, as published."""
    made = Result.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
