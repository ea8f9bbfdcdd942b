"""The nouns between the dialects and the simulated runner: what was asked, the records of an answer, who writes them.

As in Ollama itself, every dialect is a coat over the native chat and generate calls: its request becomes an `Ask`, the
native records become its own events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from probes.sim.gojson import JSON
from probes.sim.speech import Call, Message

__all__ = ["Ask", "BadRequest", "Metrics", "Record", "Refusal", "Writer"]

Route: TypeAlias = Literal["chat", "generate"]


class BadRequest(Exception):
    """400 before anything else; str() is the server's text."""


class Refusal(Exception):
    """The request ends with this status before its first byte. `streaming`: raised where a stream was about to begin, which
    makes it one chunk of another content type."""

    def __init__(self, status: int, text: str, *, streaming: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.streaming = streaming


@dataclass(slots=True)
class Ask:
    """One generation request, in native terms."""

    route: Route
    dialect: str
    model: str
    streamed: bool
    messages: list[Message] = field(default_factory=list)
    prompt: str = ""
    system: str = ""
    suffix: str = ""
    raw: bool = False
    tools: list[JSON] = field(default_factory=list)
    think: bool | str | None = None  # None: on, where the model can
    strict_think: bool = True  # False: a model that cannot think is not an error (Anthropic)
    format: JSON = None
    options: dict[str, JSON] = field(default_factory=dict)
    options_count: bool = True  # /v1 routes cannot set launch options
    keep_alive_s: float | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    render_only: bool = False

    @property
    def empty(self) -> bool:
        """Nothing to answer: loads or unloads the model."""
        return not self.messages if self.route == "chat" else not self.prompt and not self.suffix


@dataclass(slots=True)
class Metrics:
    """Nanoseconds and counts of the final record."""

    total_ns: int
    load_ns: int
    prompt_tokens: int
    prefill_ns: int
    sampled_tokens: int
    decode_ns: int


@dataclass(slots=True)
class Record:
    """One native record, before any dialect has dressed it."""

    unix_ns: int
    text: str = ""
    thinking: str = ""
    calls: Sequence[Call] = ()
    done: bool = False
    reason: str | None = None
    metrics: Metrics | None = None
    context: list[int] | None = None
    tokens: list[str] | None = None  # logprobs: the tokens of this record


class Writer(Protocol):
    """Dresses records in one dialect. One per request; keeps that answer's ids and indices."""

    stream_headers: dict[str, str]
    whole_type: str

    def record(self, record: Record) -> list[bytes]:
        """The flushes that this record causes: usually one, with all that leaves at once; none when it is withheld."""

    def failure(self, text: str) -> list[bytes]:
        """An error after the first byte of a stream: what the dialect lets through of it."""

    def whole(self, record: Record) -> bytes:
        """The body of an answer that is not streamed: one record that holds everything."""

    def refusal(self, status: int, text: str) -> bytes:
        """An error's body."""
