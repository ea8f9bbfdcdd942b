"""A model in process: answers a probe's asks from stated laws, without sockets or waiting. Time is computed, not spent."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from probes.ask import Answer, Ask
from probes.audit.solver import NOT_STATED, solve
from qm_proxy.events import (
    Began,
    Event,
    Failed,
    Finished,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    Usage,
)

MS = 1_000_000


@dataclass
class FakeModel:
    """Truth in milliseconds and tokens. `answer` is what a `Runner` or `replay` calls."""

    name: str = "fake:8b"
    load_ms: float = 1500.0
    prefill_fixed_ms: float = 12.0
    prefill_ms_per_token: float = 1.0
    prefill_ms_per_token2: float = 0.0
    first_touch_ms: float = 0.0
    token_ms: float = 16.0
    jitter: float = 0.02
    depth_us_per_1k: float = 0.0
    stalls: dict[int, float] = field(default_factory=dict)  # chunk → extra ms
    per_token: float = 4.0  # characters
    overhead_tokens: int = 0
    trained: int = 131072
    weights: int = 5_000_000_000
    kv_bytes: int = 131072
    intercept: int = 5_300_000_000
    accuracy: Callable[[int], float] = lambda n: 1.0
    wrong: str = "confabulate"
    capabilities: tuple[str, ...] = ("completion", "tools")
    format: str = "gguf"
    model_info: dict[str, Any] = field(default_factory=dict)
    reads: int | None = None  # keeps only the last so many tokens, counts all
    cuts_at: int | None = None  # counts and keeps only so many
    thinking_tokens: int = 0
    endless_thinking: bool = False
    fail: Callable[[Ask], str | None] = lambda ask: None  # the ending of a request that fails
    seed: int = 1
    loaded: bool = False
    window: int = 4096
    now: int = 10**12
    asked: list[Ask] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def answer(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        start = self.now
        made = Answer(ask.key, started_ns=start, at_unix_s=start / 1e9, status=200)
        ending = self.fail(ask)
        if ending is not None:
            made.ending, made.error = ending, "planted failure"  # type: ignore[assignment]
            made.status = None if ending == "upstream_unreachable" else 200
            made.ended_ns = start + MS
            return made
        body = ask.body or {}
        if ask.path == "/api/version":
            made.document = {"version": "0.33.0"}
        elif ask.path == "/api/tags":
            made.document = {"models": [{"name": self.name, "digest": "d1gest", "size": self.weights}]}
        elif ask.path == "/api/show":
            self._show(made, str(body.get("model")))
        elif ask.path == "/api/ps":
            made.document = {"models": [self._line()] if self.loaded else []}
        else:
            self._generate(made, ask, body)
        made.ended_ns = max(made.ended_ns, start + MS)
        self.now = made.ended_ns + MS
        return made

    async def ask(self, ask: Ask) -> Answer:
        return self.answer(ask)

    def tokens(self, text: str) -> int:
        return round(len(text) / self.per_token)

    def _show(self, made: Answer, model: str) -> None:
        if model.removesuffix(":latest") != self.name.removesuffix(":latest"):
            made.status, made.document, made.ending = 404, {"error": f"model '{model}' not found"}, "upstream_error"
            made.error = f"model '{model}' not found"
            return
        info = {
            "general.architecture": "fake",
            "fake.context_length": self.trained,
            "fake.block_count": 32,
            "fake.attention.head_count": 32,
            "fake.attention.head_count_kv": 8,
            "fake.embedding_length": 4096,
        }
        made.document = {
            "capabilities": list(self.capabilities),
            "details": {"format": self.format, "family": "fake", "parameter_size": "8B", "quantization_level": "Q4_K_M"},
            "model_info": {**info, **self.model_info},
            "template": "{{ .Prompt }}",
        }

    def _line(self) -> dict[str, Any]:
        size = self.intercept + self.window * (self.kv_bytes + 2 * 512)
        return {"name": self.name, "digest": "d1gest", "size": size, "size_vram": size, "context_length": self.window}

    def _generate(self, made: Answer, ask: Ask, body: dict[str, Any]) -> None:
        options = body.get("options") or {}
        text = str(body.get("prompt", "")) or "\n".join(m["content"] for m in body.get("messages", []))
        if not text:
            self.loaded = body.get("keep_alive") != 0
            made.events = [Finished(Nanoseconds(self.now), "load" if self.loaded else "unload")]
            return
        window = min(int(options.get("num_ctx", 4096)), self.trained)
        load = 1.0
        touch = 0.0
        if not self.loaded or window != self.window:
            load, touch = self.load_ms, self.first_touch_ms
            self.loaded, self.window = True, window
        count = self.tokens(text) + self.overhead_tokens
        if self.cuts_at is not None and count > self.cuts_at:
            text, count = text[-round(self.cuts_at * self.per_token) :], self.cuts_at
        if count >= window:
            made.status, made.ending, made.error = 400, "upstream_error", "exceeds the available context size"
            made.events = [Failed(Nanoseconds(self.now), 400, made.error, "exceed_context_size_error", count, window)]
            return
        prefill = self.prefill_fixed_ms + touch + self.prefill_ms_per_token * count + self.prefill_ms_per_token2 * count**2
        pieces, thought = self._said(text, count, int(options.get("num_predict", 128)), bool(body.get("think")))
        at = self.now + int((load + prefill) * MS)
        events: list[Event] = [Began(Nanoseconds(at), self.name, None)]
        first = at
        for index, piece in enumerate([*thought, *pieces]):
            if index:
                pace = self.token_ms * (1 + self._draw.gauss(0, self.jitter)) + self.depth_us_per_1k * (count + index) / 1e6
                at += int((pace + self.stalls.get(index, 0.0)) * MS)
            kind = ThinkingDelta if index < len(thought) else TextDelta
            events.append(kind(Nanoseconds(at), piece, at))
        n = len(pieces) + len(thought)
        events.append(
            Usage(
                Nanoseconds(at),
                input_tokens=count,
                output_tokens=max(1, n),
                total_ns=at - self.now,
                load_ns=int(load * MS),
                prefill_ns=int(prefill * MS),
                decode_ns=int((at - first) * n / max(1, n - 1)) or MS,
            )
        )
        limit = n >= int(options.get("num_predict", 128))
        events.append(Finished(Nanoseconds(at), "length" if limit else "stop"))
        made.events, made.ended_ns, made.head_ns = events, at + MS // 2, self.now

    def _said(self, text: str, count: int, limit: int, think: bool) -> tuple[list[str], list[str]]:
        thought = ["hm "] * (limit if self.endless_thinking else min(limit, self.thinking_tokens)) if think else []
        left = limit - len(thought)
        if left <= 0:
            return [], thought
        seen = text if self.reads is None else text[-round(self.reads * self.per_token) :]
        key = solve(seen)
        if key is None:
            return ["word "] * left, thought
        if self._draw.random() < self.accuracy(count):
            return [key.answer], thought
        wrong = {
            "confabulate": "ZZZZ-ZZZ" if key.form != "1000000" else "1234567",
            "refuse": NOT_STATED,
            "distractor": key.others[0] if key.others else "ZZZZ-ZZZ",
            "stale": key.stale[0] if key.stale else "ZZZZ-ZZZ",
            "empty": "",
            "malformed": "It may be 2222-222 or 3333-333.",
        }
        return [wrong[self.wrong]], thought


def cut(ending: str) -> Callable[[Ask], str | None]:
    """Every generation ends so."""
    return lambda ask: ending if "prompt" in (ask.body or {}) or "messages" in (ask.body or {}) else None
