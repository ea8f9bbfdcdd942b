"""The finished story of one exchange, and the two shorter ones told while it goes on. Field names are CONTRACT's."""

from __future__ import annotations

from dataclasses import dataclass, field

from qm_proxy.events import Asked, Dialect, Ending, Nanoseconds, Operation
from qm_proxy.findings import Finding

__all__ = ["Chunks", "InterToken", "Opened", "Progress", "Record", "ToolCallSeen"]


@dataclass(slots=True)
class InterToken:
    """Inter-token latency of one stream: gaps between consecutive chunks that came in different reads. Seconds."""

    n: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


@dataclass(slots=True)
class ToolCallSeen:
    id: str
    name: str
    t_s: float  # since the exchange's first byte
    argument_bytes: int
    valid: bool | None = None  # None: not judged
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Chunks:
    """Every chunk's time, compact. `arrival` and `written` are `measure.series` blobs; `kinds` is run-length coded."""

    n: int
    start_unix_ns: int  # wall clock of the exchange's first byte, taken once
    resolution_ns: int
    arrival: bytes
    written: bytes | None
    kinds: list[tuple[str, int]]
    coalesced: list[int]  # indices of chunks that came in the same read as the one before
    suspended: list[int] = field(default_factory=list)  # indices before which the machine slept: marked, not measured


@dataclass(slots=True)
class Opened:
    """An exchange has begun: its request is known."""

    id: str  # UUIDv7
    t_ns: Nanoseconds  # first byte of the request, monotonic
    started_at: str  # UTC, ISO 8601
    method: str
    route: str  # path without query
    dialect: Dialect
    operation: Operation | None
    model: str | None
    streamed: bool
    client: str
    user_agent: str | None
    origin: str  # "client" or "probe"
    asked: Asked | None  # None: no body, not a generation, or not decodable
    hints: dict[str, str] = field(default_factory=dict)  # session ids from headers and body of real clients
    traceparent: str | None = None
    tracestate: str | None = None
    connection: int = 0


@dataclass(slots=True)
class Progress:
    """A stream in flight, ≤ 10 per second and stream."""

    id: str
    t_ns: Nanoseconds
    phase: str  # "uploading", "waiting", "thinking", "answering"
    chunks: int
    elapsed_s: float
    ttft_s: float | None
    tokens_per_s: float | None


@dataclass(slots=True)
class Record:
    """One exchange from first byte to last. Seconds and counts; `None` is unknown, never 0."""

    id: str
    started_at: str
    method: str
    route: str
    dialect: Dialect
    operation: Operation | None
    model: str | None
    response_model: str | None
    streamed: bool
    http_status: int | None
    ending: Ending
    session_id: str | None
    session_source: str | None
    turn: int | None
    client: str
    user_agent: str | None
    origin: str
    ttft_s: float | None
    ttft_content_s: float | None
    queue_s: float | None
    load_s: float | None
    prefill_s: float | None
    decode_s: float | None
    client_wait_s: float | None
    unexplained_s: float | None
    total_s: float
    slow_because: str | None
    itl: InterToken | None
    tokens_per_s: float | None
    rate_source: str | None  # "server", "client"
    input_tokens: int | None
    output_tokens: int | None
    chunks: int
    thinking_chunks: int
    context_window_tokens: int | None
    finish_reason: str | None
    tool_calls: list[ToolCallSeen]
    findings: list[Finding]
    bytes_in: int  # from the client
    bytes_out: int  # to the client
    written_lag_s: float | None  # longest a chunk waited for the client to take it
    proxy_overhead_s: float | None  # median time from read to written, chunks that waited for the client left out
    trace_id: str | None
    # beside CONTRACT's fields: what the sinks need and the console does not show in lists
    cached_tokens: int | None = None
    error: str | None = None  # the server's message, ≤ 200 characters
    undecoded: str | None = None  # why the body could not be read, in words
    series: Chunks | None = None
    opened: Opened | None = None
    captured_request: str | None = None  # only with --capture-content
    captured_answer: str | None = None
    captured_thinking: str | None = None
