"""The finished story of one exchange, and the two shorter ones told while it goes on. Field names are CONTRACT's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from qm_proxy.events import Asked, Dialect, Ending, Nanoseconds, Operation
from qm_proxy.findings import Finding

__all__ = [
    "Chunks",
    "InterToken",
    "Opened",
    "Placed",
    "Prefix",
    "Progress",
    "Record",
    "Relation",
    "SessionSource",
    "ToolCallSeen",
    "Turnaround",
]

SessionSource = Literal[
    "header",  # the client's own id, in a header
    "metadata",  # the client's own id, in the body
    "responses",  # previous_response_id
    "prefix",  # its messages continue, fork, shorten or quote those of an earlier exchange
    "new",  # nothing known fits: the first of its session
]
Relation = Literal[
    "start",  # the first exchange of its session
    "next",  # goes on where the trajectory's last exchange ended
    "retry",  # the same request again
    "rewrite",  # goes on, but the client changed earlier messages
    "fork",  # goes on from an earlier point: an edit, a dropped turn, a parallel branch
    "compaction",  # goes on with a shortened or summarised history
    "subagent",  # another agent that this session started
    "side",  # a title, a summary, a topic check: one question about the session
]


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
    coalesced: Sequence[int]  # indices of chunks that came in the same read as the one before; `arrival` marks them too
    suspended: list[int] = field(default_factory=list)  # indices before which the machine slept: marked, not measured


@dataclass(slots=True)
class Turnaround:
    """A tool's result has come back: from the model's complete call to the request that brings the result."""

    exchange_id: str  # whose answer made the call
    index: int  # of the call in that answer
    call_id: str
    name: str
    asked_ns: Nanoseconds  # the call was complete on the wire
    back_ns: Nanoseconds  # first byte of the request that brings the result
    is_error: bool | None  # as the client says; None where the dialect does not

    @property
    def seconds(self) -> float:
        return (self.back_ns - self.asked_ns) / 1e9


@dataclass(slots=True)
class Prefix:
    """How much of the previous turn's prompt this one repeats from its very start: what a prefix cache can reuse.

    Counted in characters of the request (tools, system prompt, messages; media count as one), as only the server has tokens.
    `thinking` is left out: most templates drop it from earlier turns. `broken_at` is None when all of it is repeated.
    """

    previous_characters: int
    common_characters: int
    characters: int
    previous_messages: int
    common_messages: int
    broken_at: Literal["tools", "message"] | None = None
    message: int | None = None  # index of the first message that differs
    role: str | None = None
    character: int | None = None  # offset in that message; None when its former text is not held any more
    difference: tuple[str, str] | None = None  # before and now, ≤ 80 characters each; memory only, never stored or exported
    lost_tokens: int | None = None  # estimated at close: prompt tokens that had to be evaluated again
    lost_s: float | None = None  # estimated at close: prefill time spent on them


@dataclass(slots=True)
class Placed:
    """Where an exchange stands among the others. Decided when it opens; `prefix.lost_*` and `expected` follow when it closes."""

    session_id: str
    source: SessionSource
    relation: Relation
    trajectory: int  # 0 is the session's main line; forks, sub-agents and side calls count on
    turn: int  # 1, 2, … within its trajectory; a retry keeps its number
    parent_trajectory: int | None = None
    previous_exchange_id: str | None = None  # in this trajectory, or the one it branched from
    client_session: str | None = None  # the client's own id
    new_messages: int = 0  # messages that the previous turn did not have
    wait_s: float | None = None  # since the session's last answer ended, nothing being in flight; None: something was
    waited_for: Literal["tools", "user"] | None = None
    results: list[Turnaround] = field(default_factory=list)
    prefix: Prefix | None = None
    model_s: float | None = None  # at close: what this exchange adds to the time in which the session waited for the model
    tip: int | None = None  # keyed hash of the history as sent, and with the answer: how a restart finds the session again
    expected: int | None = None


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
    placed: Placed | None = None  # set by sessions before any sink sees it; None: belongs to no session


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
    server_total_s: float | None = None  # total_duration as the server reports it (native routes)
    withheld_tokens: int | None = None  # output_tokens − chunks of a stream: tokens that came in no chunk of their own
    doubts: list[str] = field(default_factory=list)  # what in these numbers disagrees or was cut to fit, in words
    error: str | None = None  # the server's message, ≤ 200 characters
    undecoded: str | None = None  # why the body could not be read, in words
    series: Chunks | None = None
    opened: Opened | None = None
    captured_request: str | None = None  # only with --capture-content, or for export
    captured_answer: str | None = None
    captured_thinking: str | None = None
    answer_pieces: bytes | None = None  # how much of it came in each chunk: measure.pieces
    thinking_pieces: bytes | None = None
    captured_calls: list[str] = field(default_factory=list)  # the arguments of each tool call; exported, not stored
