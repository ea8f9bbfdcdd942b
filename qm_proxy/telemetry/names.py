"""One table of every name that leaves this program as telemetry, per convention profile. Nothing else spells one.

Profiles: `genai-current` (default; the OpenTelemetry GenAI conventions as shipped in September 2026), `genai-next` (the open
renames of metrics and token counters), `legacy-1.36` (before the provider rename). `OTEL_SEMCONV_STABILITY_OPT_IN` chooses:
`gen_ai_latest_experimental` is `genai-current`; `qm/PROFILE` names one. All GenAI names are of Development status upstream.

Prometheus names follow the OpenTelemetry rule: dots to underscores, the unit as a suffix, `_total` on counters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ATTRIBUTES",
    "EVENTS",
    "LABELS",
    "METRICS",
    "PROFILES",
    "SPANS",
    "Attribute",
    "Metric",
    "Profile",
    "attribute",
    "metric_name",
    "profile_from_environment",
    "prometheus_name",
]

Profile = Literal["genai-current", "genai-next", "legacy-1.36"]
PROFILES: tuple[Profile, ...] = ("genai-current", "genai-next", "legacy-1.36")

SECONDS_CONVENTIONAL = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
SECONDS_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0, 3600.0)
SECONDS_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
SECONDS_GAP = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
SECONDS_SERVER_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
SECONDS_SERVER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
SECONDS_OVERHEAD = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
RATES = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A span, log or metric attribute: our key, and its name in each profile (`None`: left out there)."""

    current: str
    next: str | None = ""  # "" = as current
    legacy: str | None = ""

    def name(self, profile: Profile) -> str | None:
        other = {"genai-current": self.current, "genai-next": self.next, "legacy-1.36": self.legacy}[profile]
        return self.current if other == "" else other


ATTRIBUTES: dict[str, Attribute] = {
    # GenAI conventions
    "operation": Attribute("gen_ai.operation.name"),
    "provider": Attribute("gen_ai.provider.name", legacy="gen_ai.system"),
    "request_model": Attribute("gen_ai.request.model"),
    "response_model": Attribute("gen_ai.response.model"),
    "stream": Attribute("gen_ai.request.stream", legacy=None),
    "time_to_first_chunk": Attribute("gen_ai.response.time_to_first_chunk", legacy=None),
    "max_tokens": Attribute("gen_ai.request.max_tokens"),
    "temperature": Attribute("gen_ai.request.temperature"),
    "top_p": Attribute("gen_ai.request.top_p"),
    "top_k": Attribute("gen_ai.request.top_k"),
    "seed": Attribute("gen_ai.request.seed"),
    "stop_sequences": Attribute("gen_ai.request.stop_sequences"),
    "frequency_penalty": Attribute("gen_ai.request.frequency_penalty"),
    "presence_penalty": Attribute("gen_ai.request.presence_penalty"),
    "reasoning_level": Attribute("gen_ai.request.reasoning.level", legacy=None),
    "previous_response": Attribute("gen_ai.request.previous_response.id", legacy=None),
    "output_type": Attribute("gen_ai.output.type"),
    "response_id": Attribute("gen_ai.response.id"),
    "finish_reasons": Attribute("gen_ai.response.finish_reasons"),
    "input_tokens": Attribute("gen_ai.usage.input_tokens"),
    "output_tokens": Attribute("gen_ai.usage.output_tokens"),
    "cached_tokens": Attribute("gen_ai.usage.cache_read.input_tokens", legacy=None),
    "conversation": Attribute("gen_ai.conversation.id"),
    "token_type": Attribute("gen_ai.token.type"),
    "token_modality": Attribute("gen_ai.token.modality", legacy=None),
    "tool_name": Attribute("gen_ai.tool.name"),
    "tool_call_id": Attribute("gen_ai.tool.call.id"),
    "input_messages": Attribute("gen_ai.input.messages"),
    "output_messages": Attribute("gen_ai.output.messages"),
    "system_instructions": Attribute("gen_ai.system_instructions"),
    "tool_definitions": Attribute("gen_ai.tool.definitions"),
    # HTTP and general conventions
    "error_type": Attribute("error.type"),
    "server_address": Attribute("server.address"),
    "server_port": Attribute("server.port"),
    "http_method": Attribute("http.request.method"),
    "http_route": Attribute("http.route"),
    "http_status": Attribute("http.response.status_code"),
    "url_path": Attribute("url.path"),
    "url_scheme": Attribute("url.scheme"),
    "user_agent": Attribute("user_agent.original"),
    "synthetic": Attribute("user_agent.synthetic.type"),
    # ours
    "origin": Attribute("qm.origin"),
    "client": Attribute("qm.client"),
    "dialect": Attribute("qm.dialect"),
    "exchange": Attribute("qm.exchange.id"),
    "session": Attribute("qm.session.id"),
    "session_source": Attribute("qm.session.source"),
    "turn": Attribute("qm.turn.index"),
    "ending": Attribute("qm.ending"),
    "timing_source": Attribute("qm.timing.source"),
    "derived": Attribute("qm.derived"),
    "chunks": Attribute("qm.stream.chunks"),
    "reasoning_chunks": Attribute("qm.reasoning.chunks"),
    "ttft_content": Attribute("qm.time_to_first_content"),
    "slow_because": Attribute("qm.slow_because"),
    "window": Attribute("qm.context.window"),
    "itl_count": Attribute("qm.itl.count"),
    "itl_mean": Attribute("qm.itl.mean"),
    "itl_p50": Attribute("qm.itl.p50"),
    "itl_p90": Attribute("qm.itl.p90"),
    "itl_p99": Attribute("qm.itl.p99"),
    "itl_max": Attribute("qm.itl.max"),
    "itl_hist": Attribute("qm.itl.hist"),
    "itl_stalls": Attribute("qm.itl.stalls"),
    "itl_series": Attribute("qm.itl.series"),
    "itl_truncated": Attribute("qm.itl.series_truncated"),
    "tool_calls": Attribute("qm.tool_calls"),
    "tool_call_time": Attribute("qm.tool_call.time"),
    "tool_call_bytes": Attribute("qm.tool_call.argument_bytes"),
    "tool_call_valid": Attribute("qm.tool_call.valid"),
    "tool_call_problems": Attribute("qm.tool_call.problems"),
    "finding": Attribute("qm.finding"),
    "finding_id": Attribute("qm.finding.id"),
    "severity": Attribute("qm.severity"),
    "summary": Attribute("qm.summary"),
    "findings": Attribute("qm.findings"),
    "tokens_wasted": Attribute("qm.tokens_wasted"),
    "process": Attribute("qm.process"),
    "reason": Attribute("qm.reason"),
    "sink": Attribute("qm.sink"),
    "signal": Attribute("qm.signal"),
    "side": Attribute("qm.side"),
    "memory_kind": Attribute("qm.memory.kind"),
}

SPANS: dict[str, str] = {
    "queue": "qm.queue",
    "load": "qm.load",
    "prefill": "qm.prefill",
    "decode": "qm.decode",
    "tool_turnaround": "qm.tool_turnaround",
}
"""Names of our own spans; inference spans are `{operation} {model}`, HTTP spans `{method} {route}`."""

EVENTS: dict[str, str] = {
    "finding": "qm.finding",
    "tool_call": "qm.tool_call",
    "operation_details": "gen_ai.client.inference.operation.details",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument. `unit` in UCUM; `labels` are keys of `ATTRIBUTES`, in the order of the values."""

    kind: Literal["histogram", "counter", "gauge"]
    current: str
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    next: str = ""
    legacy: str = ""

    def name(self, profile: Profile) -> str:
        other = {"genai-current": "", "genai-next": self.next, "legacy-1.36": self.legacy}[profile]
        return other or self.current


_REQUEST = ("operation", "provider", "request_model", "origin")
_CLIENT = ("request_model", "client", "origin")

METRICS: dict[str, Metric] = {
    "operation_duration": Metric(
        "histogram",
        "gen_ai.client.operation.duration",
        "s",
        "Duration of a model operation, first byte of the request to last byte of the answer",
        (*_REQUEST, "error_type"),
        SECONDS_CONVENTIONAL,
        next="gen_ai.client.inference.duration",
    ),
    "token_usage": Metric(
        "histogram",
        "gen_ai.client.token.usage",
        "{token}",
        "Tokens of one operation, as the server counted them",
        (*_REQUEST, "token_type"),
        TOKENS,
    ),
    "first_chunk": Metric(
        "histogram",
        "gen_ai.client.operation.time_to_first_chunk",
        "s",
        "Request to first chunk of any kind, streamed answers",
        _REQUEST,
        SECONDS_CONVENTIONAL,
        next="gen_ai.client.inference.time_to_first_chunk",
    ),
    "output_chunk": Metric(
        "histogram",
        "gen_ai.client.operation.time_per_output_chunk",
        "s",
        "Gaps between chunks, conventional buckets (nothing finer than 10 ms: see qm.chunk.gap)",
        _REQUEST,
        SECONDS_CONVENTIONAL,
        next="gen_ai.client.inference.time_per_output_chunk",
    ),
    "server_duration": Metric(
        "histogram",
        "gen_ai.server.request.duration",
        "s",
        "total_duration as Ollama reports it (native routes)",
        _REQUEST,
        SECONDS_CONVENTIONAL,
    ),
    "server_first_token": Metric(
        "histogram",
        "gen_ai.server.time_to_first_token",
        "s",
        "Queue, load and prefill as Ollama reports them (native routes)",
        _REQUEST,
        SECONDS_SERVER_TTFT,
    ),
    "server_per_token": Metric(
        "histogram",
        "gen_ai.server.time_per_output_token",
        "s",
        "eval_duration / eval_count as Ollama reports them (native routes)",
        _REQUEST,
        SECONDS_SERVER_TOKEN,
    ),
    "http_duration": Metric(
        "histogram",
        "http.server.request.duration",
        "s",
        "Every route, generations or not",
        ("http_method", "http_route", "http_status"),
        SECONDS_HTTP,
    ),
    "chunk_gap": Metric(
        "histogram",
        "qm.chunk.gap",
        "s",
        "Gaps between chunks that came in different reads, fine buckets",
        _CLIENT,
        SECONDS_GAP,
    ),
    "first_token": Metric(
        "histogram", "qm.first_token", "s", "Request to first token, buckets to an hour", _CLIENT, SECONDS_LONG
    ),
    "request_time": Metric(
        "histogram", "qm.request.duration", "s", "Whole operations, buckets to an hour", _CLIENT, SECONDS_LONG
    ),
    "phase": Metric("counter", "qm.phase.time", "s", "Where the time went, summed over requests", (*_CLIENT, "reason")),
    "decode_rate": Metric("histogram", "qm.decode.rate", "{token}/s", "Decode rate of each answer", _CLIENT, RATES),
    "exchanges": Metric("counter", "qm.exchanges", "{exchange}", "Exchanges seen, by how they ended", (*_CLIENT, "ending")),
    "tokens": Metric("counter", "qm.tokens", "{token}", "Tokens as the server counted them", (*_CLIENT, "token_type")),
    "streamed_tokens": Metric(
        "counter", "qm.tokens.streamed", "{token}", "Output tokens of streamed answers, to be held against chunks", _CLIENT
    ),
    "chunks_total": Metric("counter", "qm.chunks", "{chunk}", "Chunks seen in streams", _CLIENT),
    "tool_calls_total": Metric(
        "counter",
        "qm.tool.calls",
        "{call}",
        "Tool calls the model made",
        ("request_model", "tool_name", "tool_call_valid", "origin"),
    ),
    "findings_total": Metric("counter", "qm.findings", "{finding}", "Detections", ("finding", "severity", *_CLIENT)),
    "wasted": Metric(
        "counter", "qm.tokens.wasted", "{token}", "Tokens behind a loop's verdict", ("finding", "request_model", "origin")
    ),
    "finishes": Metric(
        "counter", "qm.finishes", "{exchange}", "Answers by the finish reason the server gave", (*_CLIENT, "finish_reasons")
    ),
    "prefix_kept": Metric(
        "histogram", "qm.prefix.kept", "1", "Share of a prompt that repeats the previous turn's from the start", _CLIENT, SHARES
    ),
    "window_fill": Metric(
        "histogram", "qm.context.fill", "1", "Tokens in and out over the window of the loaded model", _CLIENT, SHARES
    ),
    "in_flight": Metric("gauge", "qm.in_flight", "{exchange}", "Exchanges under way"),
    "loaded": Metric("gauge", "qm.model.memory", "By", "Memory of each loaded model (/api/ps)", ("request_model",)),
    "window": Metric("gauge", "qm.model.window", "{token}", "Window of each loaded model (/api/ps)", ("request_model",)),
    "host_memory": Metric(
        "gauge", "qm.host.memory", "By", "Memory in use while answers are under way: ram, swap, gpu", ("memory_kind",)
    ),
    # about ourselves
    "overhead": Metric(
        "histogram", "qm.self.overhead", "s", "Read to written in the relay, median of each exchange", (), SECONDS_OVERHEAD
    ),
    "connections": Metric("gauge", "qm.self.connections", "{connection}", "Client connections open"),
    "loop_lag": Metric("gauge", "qm.self.loop_lag", "s", "How late the event loop's timer was, recent maximum", ("process",)),
    "memory": Metric("gauge", "qm.self.memory", "By", "Resident memory", ("process",)),
    "cpu": Metric("counter", "qm.self.cpu", "s", "CPU time", ("process",)),
    "pipe_pending": Metric("gauge", "qm.self.pipe.pending", "By", "Copied bytes waiting in the relay"),
    "dropped": Metric("counter", "qm.self.dropped", "{item}", "What analysis gave up, by reason", ("reason",)),
    "restarts": Metric("counter", "qm.self.observer.restarts", "{restart}", "Observers that died and were replaced"),
    "store_commit": Metric("gauge", "qm.self.store.commit", "s", "Time of the last commit of the database"),
    "store_queued": Metric("gauge", "qm.self.store.queued", "{row}", "Rows that wait to be written"),
    "parser_fallbacks": Metric("counter", "qm.self.parser.fallbacks", "{exchange}", "Exchanges whose bytes could not be decoded"),
    "sink_failures": Metric("counter", "qm.self.sink.failures", "{failure}", "Exceptions in a sink, swallowed", ("sink",)),
    "export_drops": Metric("counter", "qm.self.export.drops", "{item}", "Telemetry that could not be delivered", ("signal",)),
}

LABELS = {key: attribute.current.replace(".", "_") for key, attribute in ATTRIBUTES.items()}
"""Prometheus label names of the attribute keys."""


def attribute(key: str, profile: Profile = "genai-current") -> str | None:
    """The attribute's name in this profile, or `None` where the profile has none. KeyError: not in the table."""
    return ATTRIBUTES[key].name(profile)


def metric_name(key: str, profile: Profile = "genai-current") -> str:
    return METRICS[key].name(profile)


_UNITS = {"s": "seconds", "By": "bytes", "{token}/s": "per_second"}
"""As a Collector writes them to Prometheus: a unit in braces is a note and vanishes, so both ways feed one board."""


def prometheus_name(key: str, profile: Profile = "genai-current") -> str:
    """The metric family's name in the Prometheus exposition, without `_bucket`, `_sum`, `_count` or `_total`."""
    metric = METRICS[key]
    name = metric.name(profile).replace(".", "_")
    unit = _UNITS.get(metric.unit)
    return f"{name}_{unit}" if unit and not name.endswith(unit) else name


def profile_from_environment() -> Profile:
    """The profile that `OTEL_SEMCONV_STABILITY_OPT_IN` names; `genai-current` otherwise."""
    for word in os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(","):
        name = word.strip().removeprefix("qm/")
        for profile in PROFILES:
            if name == profile:
                return profile
    return "genai-current"
