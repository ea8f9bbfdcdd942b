"""Personas: simulated models with stated truth, read from JSON files of a published schema (persona.schema.json).

A file holds one persona or a list of them. Unknown keys are errors, so that a misspelt law is not silently the default
one. Everything a measurement could find out about a persona stands in its file: `Persona.truth()` lists it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from probes.sim.pace import Decode, Load, Prefill, Share
from probes.sim.tokens import Tokenizer, compiling
from qm_proxy.errors import SettingsError

__all__ = [
    "Accuracy",
    "Answer",
    "Context",
    "Details",
    "Memory",
    "Misbehaviour",
    "Persona",
    "PolicyChoice",
    "Rule",
    "Thinking",
    "When",
    "builtin",
    "canonical",
    "load_file",
    "schema",
]

_STATED = ConfigDict(extra="forbid", frozen=True)
_BUILTIN = Path(__file__).parent / "personas"
Mode = Literal["rendered", "native", "mlx"]


class Details(BaseModel):
    """`details` of /api/tags, /api/show and /api/ps."""

    model_config = _STATED

    format: Literal["gguf", "safetensors"] = "gguf"
    family: str = "llama"
    parameter_size: str = "8.0B"
    quantization_level: str = "Q4_K_M"
    embedding_length: PositiveInt = 4096


class Memory(BaseModel):
    """What the model occupies. size = weights + compute + per-slot state + tokens × (slots × KV + 2 × num_batch)."""

    model_config = _STATED

    weights_bytes: NonNegativeInt = 4_661_211_808
    kv_bytes_per_token: NonNegativeInt = Field(default=131_072, description="per slot, layers with full attention only")
    window_bytes_per_token: NonNegativeInt = Field(
        default=0, description="KV of sliding-window layers, for at most `window_tokens`"
    )
    window_tokens: NonNegativeInt = 0
    state_bytes_per_slot: NonNegativeInt = Field(default=0, description="recurrent layers: constant")
    compute_bytes: NonNegativeInt = 268_435_456
    mask_bytes: bool = Field(default=True, description="the compute buffer holds 2 × num_batch bytes per token of context")
    device_bytes: NonNegativeInt = Field(default=25_769_803_776, description="0: no device, size_vram is 0")
    host_bytes: NonNegativeInt = Field(
        default=68_719_476_736, description="what does not fit the device spills here; beyond it the load fails"
    )

    def kv(self, tokens: int) -> int:
        """KV bytes of one slot holding `tokens`."""
        return self.kv_bytes_per_token * tokens + self.window_bytes_per_token * min(tokens, self.window_tokens)


class Context(BaseModel):
    """The window."""

    model_config = _STATED

    trained: PositiveInt = Field(default=131_072, description="advertised by /api/show; num_ctx is clamped to it silently")
    automatic: PositiveInt = Field(default=4096, description="window when the request names none, and on every /v1 route")
    serves: PositiveInt | None = Field(
        default=None,
        description="the real window, whatever num_ctx and /api/ps say: longer prompts are cut to its half, silently, always",
    )
    reads: PositiveInt | None = Field(
        default=None, description="the server silently keeps only this many tokens although it counts all"
    )


class Thinking(BaseModel):
    """What a thinking model does before it answers."""

    model_config = _STATED

    tokens: NonNegativeInt = Field(default=40, description="length of its thoughts, when no rule gives them")
    endless: bool = Field(default=False, description="thinks until num_predict ends it: the answer never comes")


class Answer(BaseModel):
    """One scripted answer. `\\1` or `\\g<name>` in texts stand for groups of the rule's pattern."""

    model_config = _STATED

    thinking: str | tuple[str, ...] | None = Field(default=None, description="a list: already cut, one token each")
    text: str | None = None
    pieces: tuple[str, ...] = Field(default=(), description="the text, already cut: one token each")
    tokens: PositiveInt | None = Field(default=None, description="prose of exactly this many tokens")
    calls: tuple[dict[str, Any], ...] = Field(
        default=(), description="tool calls: {name, arguments (object, or a string sent as it is)}"
    )
    repeat: PositiveInt = Field(default=1, description="the text this often")
    misbehave: Misbehaviour | None = None


class When(BaseModel):
    """All that is given must hold. Patterns are searched, DOTALL."""

    model_config = _STATED

    user: str | None = Field(default=None, description="in the last user message (or the prompt)")
    system: str | None = None
    tool_result: str | None = Field(default=None, description="in the last message, which must be a tool's")
    prompt: str | None = Field(
        default=None, description="anywhere in the rendered prompt as the model sees it (after truncation)"
    )
    has_tools: bool | None = None
    results: NonNegativeInt | None = Field(default=None, description="exactly this many tool results since the last user message")
    format: bool | None = Field(default=None, description="whether a structured answer is asked for")

    @field_validator("user", "system", "tool_result", "prompt")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return compiling(pattern)


class Rule(BaseModel):
    """The first rule that fits answers."""

    model_config = _STATED

    when: When = When()
    say: Answer


class PolicyChoice(BaseModel):
    """A policy by name with its parameters; see `policies.py` for the list."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Accuracy(BaseModel):
    """How often the model finds a fact in its context, as a function of the prompt's tokens. For the Audit."""

    model_config = _STATED

    law: Literal["flat", "cliff", "slope", "dip"] = "flat"
    base: Share = Field(default=1.0, description="accuracy of short prompts")
    floor: Share = Field(default=0.0, description="accuracy behind the cliff, at the end of the slope, in the dip")
    at: PositiveInt = Field(default=16_384, description="tokens: the cliff, the slope's start, the dip's start")
    to: PositiveInt | None = Field(default=None, description="tokens: the slope's end (linear in log tokens), the dip's end")
    wrong: Literal["confabulate", "refuse", "distractor", "stale", "empty", "malformed"] = "confabulate"
    absent: Literal["refuse", "confabulate"] = Field(
        default="refuse", description="what it says when the fact is not in its context"
    )

    def at_tokens(self, tokens: int) -> float:
        """Probability of a correct answer."""
        from math import log

        if self.law == "cliff":
            return self.base if tokens <= self.at else self.floor
        if self.law == "dip":
            return self.floor if self.at <= tokens <= (self.to or self.at) else self.base
        if self.law == "slope" and tokens > self.at:
            end = self.to or self.at * 16
            share = min(1.0, log(tokens / self.at) / log(end / self.at))
            return self.base + (self.floor - self.base) * share
        return self.base


class Misbehaviour(BaseModel):
    """What goes wrong on the wire, and when. `share` draws per request."""

    model_config = _STATED

    share: Share = Field(default=1.0, description="of the requests that this happens to")
    error_before: str | None = Field(default=None, description="500 with this text instead of an answer")
    error_after: PositiveInt | None = Field(default=None, description="the runner dies after this many tokens")
    error_text: str = "an error was encountered while running the model: unexpected EOF"
    cut_after: NonNegativeInt | None = Field(default=None, description="the connection is closed without the end of the body")
    reset: bool = Field(default=False, description="`cut_after` ends with a reset instead of a FIN")
    no_done_after: PositiveInt | None = Field(default=None, description="the body ends cleanly without terminal record")
    silent_after: NonNegativeInt | None = Field(default=None, description="no further byte, the connection stays open")
    swallow: bool = Field(default=False, description="tokens are counted but never sent (a tool call that the parser lost)")


class Hang(BaseModel):
    """Aborted streams leak slots: after enough of them the model accepts requests and never answers."""

    model_config = _STATED

    after_aborts: PositiveInt = Field(
        default=6, description="aborts of streams that were being written; every further one leaks a slot"
    )
    below_token_ms: NonNegativeFloat | None = Field(default=None, description="only when tokens come faster than this")


class Persona(BaseModel):
    """One simulated model."""

    model_config = _STATED

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$", description="without tag it is served as NAME:latest")
    description: str = ""
    mode: Mode = Field(
        default="rendered",
        description="rendered: Go template, Ollama parses; native: the runner's own template; mlx: Apple's runner, soft window",
    )
    capabilities: tuple[str, ...] = ("completion", "tools")
    same_weights_as: str | None = Field(default=None, description="shares the runner of that persona: one GGUF under two names")
    details: Details = Details()
    modified_at: str = "2026-11-23T07:58:54.609734376Z"
    template: str = "{{ .Prompt }}"
    model_info: dict[str, Any] = Field(default_factory=dict, description="of /api/show; adds to what is derived from the rest")
    layers: PositiveInt = 32
    heads: PositiveInt = 32
    kv_heads: PositiveInt | tuple[NonNegativeInt, ...] = 8
    slots: PositiveInt = Field(default=1, description="OLLAMA_NUM_PARALLEL for this model")
    load: Load = Load()
    prefill: Prefill = Prefill()
    decode: Decode = Decode()
    tokenizer: Tokenizer = Tokenizer()
    memory: Memory = Memory()
    context: Context = Context()
    thinking: Thinking = Thinking()
    answer_tokens: PositiveInt = Field(default=60, description="length of its prose when no rule and no policy says otherwise")
    rules: tuple[Rule, ...] = ()
    policy: PolicyChoice | None = None
    accuracy: Accuracy | None = None
    misbehaviour: Misbehaviour | None = None
    hang: Hang | None = None
    count_cached: bool = Field(default=True, description="prompt_eval_count includes cached tokens; False: the old servers' lie")
    calls_in_done: bool | None = Field(default=None, description="tool calls come in the done record; None: as the mode does")
    overhead_ms: NonNegativeFloat = Field(default=1.5, description="rendering and tokenising: in no duration field but total")

    @model_validator(mode="after")
    def _consistent(self) -> Persona:
        if self.context.automatic > self.context.trained:
            raise ValueError("context.automatic is larger than context.trained")
        if self.thinking.endless and "thinking" not in self.capabilities:
            raise ValueError("thinking.endless needs the capability thinking")
        return self

    @property
    def full_name(self) -> str:
        return canonical(self.name)

    @property
    def counts_eos(self) -> bool:
        return self.mode != "mlx"

    @property
    def puts_calls_in_done(self) -> bool:
        return self.mode == "native" if self.calls_in_done is None else self.calls_in_done

    def truth(self) -> dict[str, Any]:
        """What a measurement of this persona should find. Milliseconds and tokens; expectations where it is random."""
        d, p, s = self.decode, self.prefill, self.decode.stalls
        return {
            "name": self.full_name,
            "mode": self.mode,
            "load_ms": self.load.cold_ms,
            "read_gb_per_s": round(self.memory.weights_bytes / self.load.cold_ms / 1e6, 2) if self.load.cold_ms else None,
            "prefill_fixed_ms": p.fixed_ms,
            "prefill_tokens_per_s": p.tokens_per_s,
            "prefill_curve_ms": p.curve_ms_per_kilotoken2,
            "first_touch_ms": p.first_touch_ms,
            "token_ms": d.token_ms,
            "spread": d.spread,
            "stalls": {"at": list(s.at), "every": s.every, "per_1000": s.per_1000, "ms": s.ms, "ms_to": s.ms_to},
            "slots": self.slots,
            "window_tokens": self.context.automatic,
            "trained_tokens": self.context.trained,
            "weights_bytes": self.memory.weights_bytes,
            "kv_bytes_per_token": self.memory.kv_bytes_per_token,
            "accuracy": self.accuracy.model_dump() if self.accuracy else None,
            "policy": self.policy.name if self.policy else None,
            "description": self.description,
        }


Answer.model_rebuild()


def canonical(name: str) -> str:
    """A model name with its tag: Ollama lists `tiny` as `tiny:latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def schema() -> dict[str, Any]:
    """The published JSON Schema of a persona file."""
    item = Persona.model_json_schema()
    definitions = item.pop("$defs", {})
    definitions["Persona"] = item
    one = {"$ref": "#/$defs/Persona"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qm-proxy sim personas",
        "description": "One simulated model, or a list of them.",
        "anyOf": [one, {"type": "array", "items": one}],
        "$defs": definitions,
    }


def load_file(path: Path) -> list[Persona]:
    """Read the personas of a file. Raises SettingsError that names file, key and remedy."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise SettingsError(f"The persona file {path} cannot be read: {cause.strerror}.") from cause
    except ValueError as cause:
        raise SettingsError(f"The persona file {path} is not JSON: {cause}.") from cause
    return personas_of(content if isinstance(content, list) else [content], str(path))


def personas_of(items: Iterable[Any], source: str) -> list[Persona]:
    found: list[Persona] = []
    for n, item in enumerate(items):
        try:
            found.append(Persona.model_validate(item))
        except ValidationError as cause:
            name = item.get("name") if isinstance(item, dict) else None
            lines = [f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in cause.errors(include_url=False)]
            raise SettingsError(
                f"Persona {name or n} in {source} is not valid: {'; '.join(lines[:5])}.",
                remedy="`qm-proxy sim --schema` prints what a persona file may contain.",
            ) from cause
    return found


def builtin(names: Annotated[Iterable[str] | None, "all when None"] = None) -> list[Persona]:
    """The personas that ship, in a fixed order. Raises SettingsError for an unknown name."""
    known = {p.full_name: p for file in sorted(_BUILTIN.glob("*.json")) for p in load_file(file)}
    if names is None:
        return list(known.values())
    missing = [n for n in names if canonical(n) not in known]
    if missing:
        raise SettingsError(f"There is no persona {missing[0]!r}.", remedy=f"There are: {', '.join(known)}.")
    return [known[canonical(n)] for n in names]
