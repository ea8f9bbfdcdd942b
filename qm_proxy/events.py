"""What happened: on the wire, or beside it. Decoders make events; the timeline and the detectors see them.

Rules that hold here:

- `t_ns` is `time.monotonic_ns()` of the relay at the moment it read the bytes (one clock for both processes). Events
  whose bytes came in the same read share the same `t_ns`: that is how coalesced chunks are known.
- `server_ns` is the server's own clock (native `created_at`, UTC, ns since the epoch), `None` where the dialect has none.
- `None` means unknown. A server that leaves out a zero (`omitempty`) gives `None`, never 0.
- Text lives in events only while they flow. Nothing downstream keeps it unless the user asked for capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NewType, TypeAlias, TypeVar, dataclass_transform

__all__ = [
    "PAYLOAD",
    "Asked",
    "Began",
    "Channel",
    "Cut",
    "Deltas",
    "Dialect",
    "EmptyRecord",
    "Ending",
    "Event",
    "Failed",
    "Finished",
    "HostSample",
    "Malformed",
    "Message",
    "Missed",
    "Nanoseconds",
    "OfferedTool",
    "Operation",
    "PastCall",
    "Residency",
    "ResidentModel",
    "TextDelta",
    "ThinkingDelta",
    "ToolArguments",
    "ToolCall",
    "Usage",
    "event",
]

T = TypeVar("T")

Nanoseconds = NewType("Nanoseconds", int)

Dialect = Literal["ollama", "openai-chat", "openai-completions", "openai-responses", "anthropic", "other"]
Operation = Literal["chat", "text_completion", "embeddings"]
Channel = Literal["text", "thinking", "tool"]
Ending = Literal[
    "complete",  # the dialect's terminal record, or the whole body of a non-streamed answer, arrived
    "client_disconnect",  # the client left first
    "upstream_error",  # an error status, or an error record in a stream
    "upstream_truncated",  # the answer ended without its terminal record
    "upstream_unreachable",  # our own 502
    "guard_cut",  # ended by us, on the user's order
    "shutdown",  # the proxy was stopped
]


@dataclass_transform(frozen_default=True)
def event(cls: type[T]) -> type[T]:
    """Immutable to the type checker, an ordinary slots dataclass at run time: events are built once per token."""
    return dataclass(slots=True)(cls)


# --- the request ------------------------------------------------------------------------------------------------------


@event
class OfferedTool:
    """A tool that the request offers. `parameters` is its JSON Schema as sent (raw JSON), `None` where it has none."""

    name: str  # as the model must call it; members of a namespace are "namespace.member"
    kind: str  # "function", "custom", or the built-in's own type ("web_search_20250305", "local_shell", …)
    parameters: bytes | None = None
    strict: bool | None = None


@event
class PastCall:
    """A tool call that an earlier assistant message of this request's history contains."""

    call_id: str  # "" where the dialect gave none
    name: str
    arguments: str  # JSON text; for dialects that carry objects, re-encoded compactly with key order kept


@event
class Message:
    """One message of the request's history, in the order of the request. System prompts are messages too."""

    role: str  # "system", "developer", "user", "assistant", "tool"
    text: str = ""
    thinking: str = ""
    calls: tuple[PastCall, ...] = ()
    call_id: str = ""  # for role "tool": which call this answers; "" = pair by order
    tool_name: str = ""  # for role "tool", where the dialect names it
    is_error: bool | None = None
    media: tuple[str, ...] = ()  # sha256 hex of each image, audio or file; never the bytes


@event
class Asked:
    """What the client asked for, read from a copy of its request body. Absent fields are `None` or empty."""

    t_ns: Nanoseconds  # last byte of the request body
    dialect: Dialect
    operation: Operation | None
    model: str | None
    streamed: bool  # with the route's default applied
    messages: tuple[Message, ...] = ()
    tools: tuple[OfferedTool, ...] = ()
    tool_choice: str | None = None  # "auto", "none", "required" or the one tool's name
    options: dict[str, object] | None = None  # native `options`, else the dialect's sampling fields, by their wire names
    keep_alive: str | None = None
    thinking: str | None = None  # what was asked: "true", "false", "low", …
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    hints: dict[str, str] | None = None  # ids that real clients put in the body (Anthropic metadata.user_id, …)
    body_bytes: int = 0
    problems: tuple[str, ...] = ()  # what could not be read, in words


# --- the answer -------------------------------------------------------------------------------------------------------


@event
class Began:
    """The first record of an answer."""

    t_ns: Nanoseconds
    response_model: str | None
    response_id: str | None
    remote_host: str | None = None  # the cloud host that really answered, where the server says so


@event
class TextDelta:
    t_ns: Nanoseconds
    text: str
    server_ns: int | None = None


@event
class ThinkingDelta:
    t_ns: Nanoseconds
    text: str
    server_ns: int | None = None


@event
class ToolArguments:
    """A piece of a tool call that arrives in pieces. Ollama sends calls whole; other servers of these dialects do not.
    The finished call follows as `ToolCall` (which then counts as no further chunk: `whole` is false)."""

    t_ns: Nanoseconds
    index: int
    fragment: str
    server_ns: int | None = None


@event
class ToolCall:
    """A complete tool call. `arguments` is JSON text: verbatim where the wire has a string, else the object's own bytes."""

    t_ns: Nanoseconds
    index: int
    call_id: str
    name: str
    arguments: str
    whole: bool = True  # it came in one record, so it is itself a chunk
    server_ns: int | None = None


@event
class EmptyRecord:
    """A record without payload: withheld tokens, keep-alives, role announcements. Counted, never a token."""

    t_ns: Nanoseconds
    server_ns: int | None = None


@event
class Usage:
    """The server's own account. Durations in ns, native dialect only. `estimated`: a guess of the server's, not a count."""

    t_ns: Nanoseconds
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    total_ns: int | None = None
    load_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    estimated: bool = False


@event
class Finished:
    """The dialect's terminal record (`done:true`, `[DONE]`, `response.completed`, `message_stop`), or the end of a whole
    non-streamed answer. `reason` is the wire's own word (`stop`, `length`, `tool_calls`, `end_turn`, `load` …)."""

    t_ns: Nanoseconds
    reason: str | None


@event
class Failed:
    """The server reported an error, before the answer (`status` ≥ 400) or inside it (`status` is 200)."""

    t_ns: Nanoseconds
    status: int
    message: str  # the innermost text that could be found; "" when the dialect swallowed it (`"model":""` chunks)
    code: str | None = None  # `error.type` / `error.code` where given
    n_prompt_tokens: int | None = None  # of `exceed_context_size_error`
    n_ctx: int | None = None


@event
class Malformed:
    """Bytes that should have been a record and were not. Decoding goes on behind them."""

    t_ns: Nanoseconds
    evidence: str  # ≤ 80 characters


@event
class Missed:
    """The tap dropped bytes here (bounded copy). What follows in this body cannot be decoded reliably."""

    t_ns: Nanoseconds
    n_bytes: int


@event
class Cut:
    """The answer is over and no terminal record came."""

    t_ns: Nanoseconds
    ending: Ending


class Deltas:
    """Text deltas in a row, or thinking deltas, that came in a read each: what a stream nearly always is, told at once. Costs a
    third of as many events; iterating makes those."""

    __slots__ = ("_ns_of", "_stamps", "kind", "t_ns", "texts")

    def __init__(
        self,
        kind: type[TextDelta | ThinkingDelta],
        t_ns: Sequence[Nanoseconds],
        texts: list[str],
        stamps: list[str] | None = None,
        ns_of: Callable[[str], int | None] | None = None,
    ) -> None:
        """`stamps`: the server's clock as it wrote it, one a delta; `ns_of` reads one (it costs more than a delta does)."""
        self.kind = kind
        self.t_ns = t_ns
        self.texts = texts
        self._stamps = stamps
        self._ns_of = ns_of

    def server_ns(self, i: int) -> int | None:
        """The server's clock at the i-th, `None` where the dialect has none."""
        return None if self._stamps is None or self._ns_of is None else self._ns_of(self._stamps[i])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> TextDelta | ThinkingDelta:
        return self.kind(self.t_ns[i], self.texts[i], self.server_ns(i))

    def __iter__(self) -> Iterator[TextDelta | ThinkingDelta]:
        return map(self.__getitem__, range(len(self.texts)))


# --- beside the wire --------------------------------------------------------------------------------------------------


@event
class HostSample:
    """The machine, once per sampling interval. Bytes; ratios 0–1; `None` where it cannot be read."""

    t_ns: Nanoseconds
    cpu: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    swap_used: int | None = None
    swap_in_per_s: float | None = None
    pressure: float | None = None  # memory stall share (Linux PSI some avg10, macOS pressure level / 4)
    gpu: float | None = None
    gpu_memory_used: int | None = None
    gpu_memory_total: int | None = None
    gpu_throttled: bool | None = None
    cpu_throttled: bool | None = None  # slowed by heat since the last sample


@event
class ResidentModel:
    name: str
    digest: str
    size: int | None
    size_vram: int | None
    context_window: int | None  # tokens, per slot
    expires_at: str | None


@event
class Residency:
    """What `/api/ps` said: the loaded models. An empty tuple means none; no event means it did not answer."""

    t_ns: Nanoseconds
    models: tuple[ResidentModel, ...]


Event: TypeAlias = (
    Began
    | TextDelta
    | ThinkingDelta
    | ToolArguments
    | ToolCall
    | EmptyRecord
    | Usage
    | Finished
    | Failed
    | Malformed
    | Missed
    | Cut
    | HostSample
    | Residency
)

PAYLOAD = (TextDelta, ThinkingDelta, ToolArguments, ToolCall)
"""The events that are chunks: one tick each on a waterfall (`ToolCall` only when `whole`)."""
