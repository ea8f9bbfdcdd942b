"""The asking side's nouns: a probe yields an `Ask`, is sent an `Answer`, returns its section of the result.

Rules that hold here:

- A probe is a generator and does no I/O: it runs in a test without a server, and from recorded rows without a model.
- What it asks depends only on its plan, its seed and the answers so far. Each step bears a `key` that is unique in its
  run; a run is resumed by answering from the recorded rows until they end.
- When the run must stop, `Stopped` is thrown in at the yield; the probe concludes from what it has and returns.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from qm_proxy.events import (
    PAYLOAD,
    Cut,
    Ending,
    Event,
    Failed,
    Finished,
    HostSample,
    Malformed,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    Usage,
)

__all__ = ["ENDED", "Answer", "Ask", "Chunk", "Note", "Probe", "Step", "StopReason", "Stopped", "Wait", "fingerprint", "patience"]

T = TypeVar("T")
StopReason = Literal["interrupted", "cancelled", "upstream", "budget"]


ENDED: dict[Ending, str] = {
    "upstream_truncated": "the stream ended without its last record: the runner or the server died in the middle",
    "upstream_unreachable": "the server cannot be reached",
}
"""What an ending means to a person, where the server said nothing itself."""


@dataclass(slots=True)
class Ask:
    """One request to the upstream. `body` is sent as JSON, exactly as it stands."""

    key: str
    path: str
    body: dict[str, object] | None = None
    method: str = "POST"  # "LOCAL": no request; `path` is a file whose page cache is looked at, `body` {"evict": bool}
    silence_s: float = 600.0  # give up when no byte came for so long
    limit_s: float | None = None  # and when the whole answer took so long


@dataclass(slots=True)
class Wait:
    """Let `seconds` pass before the next step (memory settles, an unload completes). Not repeated on resume."""

    key: str
    seconds: float


@dataclass(slots=True)
class Note:
    """Progress for the person who waits; costs nothing and is sent an empty `Answer`."""

    text: str
    step: int = 0
    steps: int = 0
    lasting: bool = False  # a cost or a plan: to be left standing, not written over by the next


Step: TypeAlias = Ask | Wait | Note


def patience(prompt_tokens: int, *, loads: bool) -> float:
    """Seconds without a byte after which a model is said to hang. A load may take ten minutes (Ollama itself gives it five);
    on a loaded model the slowest prefill that is worth waiting for reads 20 tokens a second."""
    return (600.0 if loads else 120.0) + prompt_tokens / 20


class Chunk(NamedTuple):
    """One chunk of an answer: when it was read here, when the server stamped it, and what it was."""

    t_ns: int
    server_ns: int | None
    kind: Literal["text", "thinking", "tool"]


@dataclass(slots=True)
class Answer:
    """What came back: the same events that the passive half decodes. Times are monotonic ns of this process."""

    key: str
    started_ns: int = 0  # the request's first byte was written
    ended_ns: int = 0
    at_unix_s: float = 0.0  # wall clock of the start, for display and drift only
    connect_ns: int | None = None  # how long connecting took, before `started_ns`
    head_ns: int | None = None  # the response head was read
    status: int | None = None  # None: no response
    ending: Ending = "complete"
    events: list[Event] = field(default_factory=list)
    document: object = None  # parsed JSON of a call that is no generation
    error: str | None = None  # what went wrong below HTTP, or the server's own words
    host: list[HostSample] = field(default_factory=list)  # the machine while it ran
    replayed: bool = False
    silent: bool = False  # given up because no byte came for `Ask.silence_s`: the model hangs
    pauses: list[tuple[int, int]] = field(default_factory=list)  # spans (monotonic ns) in which this process was not let run

    @property
    def ok(self) -> bool:
        """The server answered, said 2xx and finished what it began."""
        return self.status is not None and self.status < 300 and self.ending == "complete" and self.error is None

    @property
    def why(self) -> str:
        """What went wrong, in words and without a full stop: the server's own where it said something."""
        if self.error:
            return self.error.rstrip(".")
        if self.status is None and self.ending == "upstream_truncated":
            return "the server closed the connection without a byte of answer"
        return ENDED.get(self.ending, self.ending)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def thinking(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ThinkingDelta))

    @property
    def calls(self) -> list[ToolCall]:
        return [event for event in self.events if isinstance(event, ToolCall)]

    @property
    def usage(self) -> Usage | None:
        return next((event for event in reversed(self.events) if isinstance(event, Usage)), None)

    @property
    def failed(self) -> Failed | None:
        return next((event for event in self.events if isinstance(event, Failed)), None)

    @property
    def finished(self) -> Finished | None:
        return next((event for event in self.events if isinstance(event, Finished)), None)

    @property
    def cut(self) -> Cut | None:
        return next((event for event in self.events if isinstance(event, Cut)), None)

    @property
    def malformed(self) -> int:
        return sum(isinstance(event, Malformed) for event in self.events)

    @property
    def chunks(self) -> list[Chunk]:
        """Every chunk with its times, in order of arrival."""
        return list(self._chunks())

    def _chunks(self) -> Iterator[Chunk]:
        for event in self.events:
            if not isinstance(event, PAYLOAD) or (isinstance(event, ToolCall) and not event.whole):
                continue
            if isinstance(event, TextDelta):
                yield Chunk(event.t_ns, event.server_ns, "text")
            elif isinstance(event, ThinkingDelta):
                yield Chunk(event.t_ns, event.server_ns, "thinking")
            else:
                yield Chunk(event.t_ns, event.server_ns, "tool")

    def paused_ms(self, start_ns: int, end_ns: int) -> float:
        """How long this process stood still between two instants: what arrived then was read late."""
        return sum(max(0, min(end, end_ns) - max(start, start_ns)) for start, end in self.pauses) / 1e6

    @property
    def input_tokens(self) -> int | None:
        return usage.input_tokens if (usage := self.usage) else None

    @property
    def output_tokens(self) -> int | None:
        return usage.output_tokens if (usage := self.usage) else None

    @property
    def ttft_any_s(self) -> float | None:
        """Request written to the first chunk of any kind."""
        first = next(self._chunks(), None)
        return (first.t_ns - self.started_ns) / 1e9 if first else None

    @property
    def ttft_content_s(self) -> float | None:
        """Request written to the first chunk that is not thinking."""
        first = next((chunk for chunk in self._chunks() if chunk.kind != "thinking"), None)
        return (first.t_ns - self.started_ns) / 1e9 if first else None

    @property
    def total_s(self) -> float:
        return (self.ended_ns - self.started_ns) / 1e9


class Stopped(Exception):
    """Thrown into a probe that must conclude now. `reason` says who stopped it, `detail` in words."""

    def __init__(self, reason: StopReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: StopReason = reason
        self.detail = detail


Probe: TypeAlias = Generator[Step, Answer, T]


def fingerprint(ask: Ask) -> str:
    """A short digest of what was asked, so that a recorded row answers only the question it was recorded for."""
    from hashlib import sha256

    asked = json.dumps([ask.method, ask.path, ask.body], sort_keys=True, separators=(",", ":"))
    return sha256(asked.encode()).hexdigest()[:16]
