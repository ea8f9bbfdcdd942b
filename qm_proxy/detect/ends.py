"""Flags answers that ended without their terminal record, or with an error that the client may never have seen.

Rules that hold here (what Ollama 0.33 does; research/ollama-wire.md 3.3 and 3.4, ollama-live-facts.md B):

- An error after the 200 is a record of its own on the native routes and a chunk with an empty model on two `/v1` routes; on
  `/v1/responses` and `/v1/messages` it is swallowed, and the stream just ends.
- More than 30 equal pieces in a row make a rendered model's runner stop without error and without terminal record; 31 of them
  reach the client. A whole answer then says 200 and lacks its reason and counts.
- A client that closes its sending side (FIN) while it still reads makes Ollama cancel: the body ends cleanly and early.
- A client that leaves is no finding, and neither is an error that was properly answered before the stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from qm_proxy.events import Cut, Dialect, Event, Failed, Finished, TextDelta, ThinkingDelta, ToolCall, Usage
from qm_proxy.findings import EXCERPT_CHARACTERS, Finding, Severity

__all__ = ["REPEAT_LIMIT", "Ends", "How"]

REPEAT_LIMIT = 31
"""Equal pieces that reach the client before the runner gives up."""

_TAIL = 2_048
_SWALLOWING = ("openai-responses", "anthropic")
_CRASH = re.compile(r"unexpected EOF|unexpectedly stopped|connection re(?:set|fused)|broken pipe|terminated|signal|EOF", re.I)
_OTHERS_BUSINESS = re.compile(r"tool[ _-]?call|repeat limit|context (?:size|length)|exceeds", re.I)


class How(NamedTuple):
    """What the connection knows about the end. `clean`: by HTTP framing."""

    clean: bool | None = None
    client_half_closed: bool = False


class Ends:
    """One answer's end. `how` is asked only when something is wrong."""

    def __init__(self, dialect: Dialect, how: Callable[[], How] | None = None) -> None:
        self._dialect = dialect
        self._how = how
        self._tail = ""
        self._last = ""  # the latest piece, and how many equal ones in a row it ends
        self._equal = 0
        self._chunks = 0
        self._called = False
        self._counted = False
        self._told = False

    def see(self, event: Event) -> Iterable[Finding]:
        match event:
            case TextDelta() | ThinkingDelta():
                self.said(type(event), [event.text])
            case ToolCall():
                self._called = True
                self._tail, self._equal = "", 0
            case Usage():
                self._counted |= bool(event.output_tokens)
            case Failed():
                return self._failed(event)
            case Finished() if self._chunks and not self._counted and event.reason not in ("tool_calls", "tool_use"):
                return self._cut_short(event)
            case Cut() if event.ending == "upstream_truncated":
                return self._ended(event)
            case Cut() if event.ending == "client_disconnect" and self._how is not None and self._how().client_half_closed:
                says = "The client closed its sending side while it was still reading, and Ollama takes that for a cancellation."
                return self._tell(event, "client_half_close", "info", says, {})
        return ()

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        size = len(pieces)
        self._chunks += size
        self._tail = (self._tail + "".join(pieces))[-_TAIL:]
        last, equal = pieces[-1].strip(), 1
        while equal < size and pieces[-1 - equal].strip() == last:
            equal += 1
        self._equal = self._equal + equal if equal == size and last == self._last else equal
        self._last = last

    def _failed(self, event: Failed) -> list[Finding]:
        crashed = _CRASH.search(event.message) is not None and not 400 <= event.status < 500
        if _OTHERS_BUSINESS.search(event.message) or (event.status != 200 and not crashed):
            return []
        evidence: dict[str, object] = {"status": event.status, "message": event.message[:EXCERPT_CHARACTERS], "code": event.code}
        if not event.message:
            says = "Ollama failed in the middle of the answer; this route hides the error, and the client sees a short answer."
            return self._tell(event, "crash", "violation", says, {**evidence, "swallowed": True})
        if crashed:
            says = "The model's runner died" + (
                " in the middle of the answer." if event.status == 200 else " before it answered."
            )
            return self._tell(event, "crash", "violation", says, evidence)
        return self._tell(event, "error", "violation", "Ollama broke the answer off with an error.", evidence)

    def _ended(self, event: Cut) -> list[Finding]:
        how = self._how() if self._how is not None else How()
        evidence: dict[str, object] = {"clean": how.clean}
        repeats = self._repeats()
        if repeats >= REPEAT_LIMIT:
            says = f"Ollama stopped the answer without a word because one piece came {repeats} times in a row."
            return self._tell(event, "repeat_limit", "violation", says, {**evidence, "repeats": repeats})
        if how.client_half_closed:
            says = "The client closed its sending side while it was still reading, and Ollama takes that for a cancellation."
            return self._tell(event, "client_half_close", "info", says, evidence)
        if how.clean is False:
            says = "The connection to Ollama broke before the answer was complete: Ollama stopped or was restarted."
            return self._tell(event, "connection_lost", "violation", says, evidence)
        if not self._chunks and not self._called:
            return self._tell(event, "no_answer", "violation", "Ollama ended the answer before it began.", evidence)
        says = "The answer ended without its terminal record"
        says += ": this route swallows errors after the first byte." if self._dialect in _SWALLOWING else "."
        return self._tell(event, "unknown", "suspect", says, evidence)

    def _cut_short(self, event: Finished) -> list[Finding]:
        """An answer that counts no tokens of its own and ends in a row of equal pieces."""
        repeats = self._repeats()
        if repeats < REPEAT_LIMIT:
            return []
        says = f"Ollama cut the answer short without a word because one piece came {repeats} times in a row."
        return self._tell(event, "repeat_limit", "violation", says, {"repeats": repeats})

    def _repeats(self) -> int:
        """How many equal pieces the answer ends with, however it was cut into chunks."""
        count = self._equal
        tail = "".join(self._tail.split())
        for size in range(1, len(tail) // REPEAT_LIMIT + 1):
            unit = tail[-size:]
            if count < REPEAT_LIMIT and tail.endswith(unit * REPEAT_LIMIT):
                count = (len(tail) - len(tail.rstrip(unit))) if size == 1 else tail.count(unit)
        return count

    def _tell(self, event: Event, cause: str, severity: Severity, summary: str, evidence: dict[str, object]) -> list[Finding]:
        if self._told:
            return []
        self._told = True
        self._tail = ""
        return [Finding("upstream.aborted", severity, summary, event.t_ns, {"cause": cause, "chunks": self._chunks, **evidence})]
