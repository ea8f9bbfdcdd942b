"""The owner of what spans exchanges: which session each belongs to, what its turn adds, and what that cost.

    sinks.opened ─▶ Sessions.opened ─▶ opened.placed          first in wiring's list: every later sink finds it set
    exchange     ─▶ Sessions.watch  ─▶ a Detector             gathers the answer, finds what only its whole history shows
    sinks.closed ─▶ Sessions.closed ─▶ placed, completed

Rules that hold here:

- A session is decided when an exchange opens, before anything is answered, and completed when it closes. Fed in the order in
  which things happen; no clock, no I/O, never waits.
- A session's wall time is split without rest or overlap: model while any of its exchanges is in flight; else tools when the
  next request brings results, user when it brings a user's words. Sub-agents work inside their parent's wait: model time.
- Memory is bounded: sessions and marks by `measure.known`, former prompts by `PROMPT_CHARACTERS`, exchanges in flight by count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qm_proxy.events import Asked, Cut, Event, Failed, Finished, Nanoseconds, TextDelta, ThinkingDelta, Usage
from qm_proxy.findings import Finding, Severity
from qm_proxy.measure.known import LIVE_S, LIVE_SESSIONS, Place, Trajectory, scope_of
from qm_proxy.measure.prefix import Prompt, compare, price
from qm_proxy.measure.stitching import ClientIds, Match, Stitcher
from qm_proxy.measure.trajectory import Answer, EmittedCall, History, Marker, ReturnedResult
from qm_proxy.record import Opened, Placed, Prefix, Record, Turnaround
from qm_proxy.sinks import unheard

__all__ = ["Sessions", "Watch", "client_ids"]

PROMPT_CHARACTERS = 32 * 1024 * 1024
"""Former requests' text held to find the first difference; beyond, only the message that differs is known."""
_PROMPTS = 1024
_GENERATIONS = ("chat", "text_completion")
_IN_FLIGHT = 10_000
_BROKEN_CHARACTERS = 2000  # some 500 tokens: less is noise beside the new turn itself
_BROKEN_SHARE = 0.1
_COSTLY_S = 1.0

_SESSION_HEADERS = (
    "x-claude-code-session-id",
    "session-id",
    "session_id",
    "conversation_id",
    "x-opencode-session",
    "x-session-id",
    "x-session-affinity",
    "x-task-id",
    "x-amp-thread-id",
    "x-qwen-code-session-id",
    "x-conversation-id",
)
_SESSION_BODY = ("metadata.user_id", "metadata.session_id", "client_metadata.session_id", "conversation")
_KEYED_BY_SESSION = ("codex", "opencode")  # whose `prompt_cache_key` is their session id; others share one among all requests
_AGENT_HEADERS = ("x-claude-code-agent-id", "thread-id")


def client_ids(client: str, hints: Mapping[str, str]) -> ClientIds:
    """A client's own ids from what it sent (wire.clients names the keys; detectors.md 2.3 says whose they are)."""
    header = next((hints[name] for name in _SESSION_HEADERS if name in hints), None)
    body = next((hints[name] for name in _SESSION_BODY if name in hints), None)
    if body is None and client in _KEYED_BY_SESSION:
        body = hints.get("prompt_cache_key")
    session = header if header is not None else body
    agent = next((hints[name] for name in _AGENT_HEADERS if name in hints), None)
    return ClientIds(
        session,
        "header" if header is not None else "metadata",
        agent if agent != session else None,
        hints.get("x-parent-session-id"),
    )


@dataclass(slots=True)
class _InFlight:
    t_ns: Nanoseconds
    placed: Placed
    match: Match
    answer: Answer


class Sessions:
    """Gives every generation its session, trajectory and turn. A Sink, to be the first of them.

    `key`: the installation's secret; `new_id`: the opening exchange's id → the id of a session.
    """

    def __init__(
        self,
        *,
        key: bytes,
        new_id: Callable[[str], str],
        excerpts: bool = True,
        prompt_characters: int = PROMPT_CHARACTERS,
        sessions: int = LIVE_SESSIONS,
        live_s: float = LIVE_S,
    ) -> None:
        self.marker = Marker(key)
        self.stitcher = Stitcher(self.marker, new_id, sessions=sessions, live_s=live_s)
        self._excerpts = excerpts
        self._in_flight: OrderedDict[str, _InFlight] = OrderedDict()
        self._prompts: OrderedDict[Trajectory, int] = OrderedDict()
        self._held = 0
        self._prompt_characters = prompt_characters
        self.abandoned = 0  # exchanges that never closed

    # --- when an exchange opens ---------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        """Place it: sets `opened.placed` (None: no generation, or its request could not be read)."""
        asked = opened.asked
        if asked is None or asked.operation not in _GENERATIONS or not (asked.messages or asked.previous_response_id):
            return
        if asked.operation == "text_completion" and (asked.options or {}).get("suffix"):
            return  # an editor's completion between two texts: thousands a day, none of which goes on
        ids = client_ids(opened.client, {**(asked.hints or {}), **opened.hints})
        match = self.stitcher.place(opened, asked, ids)
        t = match.trajectory
        opened.placed = placed = Placed(
            session_id=t.session.id,
            source=match.source,
            relation=match.relation,
            trajectory=t.number,
            turn=match.turn,
            parent_trajectory=None if t.parent is None else t.parent.number,
            previous_exchange_id=match.previous_exchange_id,
            client_session=ids.parent_session or ids.session,
            new_messages=self._new_messages(match, asked),
            tip=match.tip,
        )
        placed.results = self._returned(match, opened)
        self._wait(match, placed, opened.t_ns)
        placed.prefix = self._prefix(match, asked)
        self._in_flight[opened.id] = _InFlight(opened.t_ns, placed, match, Answer(self.marker))
        if len(self._in_flight) > _IN_FLIGHT:
            _, lost = self._in_flight.popitem(last=False)
            lost.match.trajectory.open -= 1
            lost.match.trajectory.session.in_flight -= 1
            self.abandoned += 1

    def watch(self, exchange_id: str) -> Watch | None:
        """The detector that this exchange's answer must pass; None when it belongs to no session."""
        entry = self._in_flight.get(exchange_id)
        return None if entry is None else Watch(entry)

    progress = unheard  # nothing spans a stream in flight

    def found(self, finding: Finding) -> None:
        """What others found belongs to their exchange."""

    @staticmethod
    def _new_messages(match: Match, asked: Asked) -> int:
        starts = match.history.starts
        if match.common == 0:
            return len(asked.messages)
        return len(asked.messages) - starts[match.common] if match.common < len(starts) else 0

    def _returned(self, match: Match, opened: Opened) -> list[Turnaround]:
        """Pair the results that this request adds with the calls that wait for one: by id, else by name and order."""
        t = match.trajectory
        waiting = t.pending if t.pending or t.parent is None or match.relation != "fork" else list(t.parent.pending)
        found: list[Turnaround] = []
        for result in match.history.results:
            if result.atom < match.common and match.relation not in ("rewrite", "compaction"):
                continue
            at = _waiting_for(result, waiting)
            if at is None:
                continue
            exchange_id, call = waiting.pop(at)
            found.append(Turnaround(exchange_id, call.place, call.call_id, call.name, call.t_ns, opened.t_ns, result.is_error))
        return found

    def _wait(self, match: Match, placed: Placed, t_ns: Nanoseconds) -> None:
        session = match.trajectory.session
        if session.in_flight == 0:
            if session.covered_ns and t_ns >= session.covered_ns:
                placed.wait_s = (t_ns - session.covered_ns) / 1e9
                placed.waited_for = "tools" if placed.results or _brings_results(match.history, match.common) else "user"
            session.covered_ns = t_ns
        session.in_flight += 1

    def _prefix(self, match: Match, asked: Asked) -> Prefix | None:
        """Compare with the turn before, and hold this prompt in its place."""
        t = match.trajectory
        if asked.previous_response_id is not None:
            return None
        before = t.prompt
        if before is None and match.relation == "fork" and t.parent is not None:
            before = t.parent.prompt
        now = Prompt.of(asked)
        t.prompt = now
        self._held += now.held - self._prompts.pop(t, 0)
        self._prompts[t] = now.held
        while self._held > self._prompt_characters or len(self._prompts) > _PROMPTS:
            oldest, held = self._prompts.popitem(last=False)
            self._held -= held
            if oldest.prompt is not None:
                oldest.prompt.forget_text()
        return None if before is None else compare(before, now, excerpts=self._excerpts)

    # --- when it closes -----------------------------------------------------------------------------------------------

    def closed(self, record: Record) -> None:
        """Complete its `Placed`, and expect the request that will follow."""
        entry = self._in_flight.pop(record.id, None)
        if entry is None:
            return
        placed, match = entry.placed, entry.match
        session, t = match.trajectory.session, match.trajectory
        ended_ns = entry.t_ns + round(record.total_s * 1e9)
        session.in_flight -= 1
        placed.model_s = max(0, ended_ns - session.covered_ns) / 1e9
        session.covered_ns = max(session.covered_ns, ended_ns)
        whole = record.ending == "complete"
        placed.expected = self.stitcher.answered(match, record.id, entry.answer, whole=whole, ended_ns=ended_ns)
        if t.exchange_id == record.id:
            t.pending = [(record.id, call) for call in entry.answer.calls]
        if placed.prefix is not None:
            price(placed.prefix, input_tokens=record.input_tokens, prefill_s=record.prefill_s)

    # --- after a restart ----------------------------------------------------------------------------------------------

    def resume(self, turns: list[dict[str, Any]], now_ns: Nanoseconds, now_unix_s: float) -> int:
        """Know stored sessions again. `turns`: rows of store.sqlite.recent_turns, oldest first; answers with their number.
        The wall clock is needed once, to give stored times a place on this boot's monotonic clock."""
        grouped: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        for row in turns:
            grouped.setdefault(row["session_id"], []).append(row)
            grouped.move_to_end(row["session_id"])
        for session_id, rows in grouped.items():
            last = rows[-1]
            places = [
                Place(
                    row["trajectory"],
                    row["exchange_id"],
                    row["turn"],
                    row["tip"],
                    row["expected"],
                    now_ns - round((now_unix_s - row["ended_unix_s"]) * 1e9),
                )
                for row in rows
            ]
            self.stitcher.known.resume(session_id, scope_of(last["client"], last["user_agent"]), last["client_session"], places)
        return len(grouped)

    def status(self) -> dict[str, int]:
        live, marks = self.stitcher.known.live
        return {
            "live": live,
            "marks": marks,
            "evicted": self.stitcher.known.evicted,
            "in_flight": len(self._in_flight),
            "held_characters": self._held,
            "abandoned": self.abandoned,
        }


class Watch:
    """Sees one exchange's answer for its session. A Detector: bounded, no clock, never raises."""

    def __init__(self, entry: _InFlight) -> None:
        self._entry = entry
        self._answer = entry.answer
        self._usage: Usage | None = None

    def see(self, event: Event) -> Iterable[Finding]:
        match event:
            case Usage():
                self._usage = event
            case Finished() | Cut() | Failed():
                return self._over(event.t_ns, failed=isinstance(event, Failed))
            case _:
                self._answer.see(event)
        return ()

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        if kind is TextDelta:
            self._answer.said(pieces)

    def _over(self, t_ns: Nanoseconds, *, failed: bool) -> Iterable[Finding]:
        """The answer is over: whether the client's own changes made the server work again, and how much."""
        placed = self._entry.placed
        prefix = placed.prefix
        if prefix is None or failed or not _broke(placed, prefix):
            return ()
        usage = self._usage
        input_tokens = None if usage is None or usage.estimated else usage.input_tokens
        price(
            prefix,
            input_tokens=input_tokens,
            prefill_s=None if usage is None or usage.prefill_ns is None else usage.prefill_ns / 1e9,
        )
        t = self._entry.match.trajectory
        t.breaks += 1
        if t.breaks & (t.breaks - 1):  # told at the first, second, fourth, eighth …; every turn keeps its own numbers
            return ()
        severity: Severity = "suspect" if prefix.lost_s is not None and prefix.lost_s >= _COSTLY_S else "info"
        evidence: dict[str, object] = {
            "where": prefix.broken_at,
            "message": prefix.message,
            "role": prefix.role,
            "character": prefix.character,
            "common_messages": prefix.common_messages,
            "previous_messages": prefix.previous_messages,
            "reused_share": round(prefix.common_characters / prefix.previous_characters, 4),
            "lost_characters": _lost(prefix),
            "lost_s": None if prefix.lost_s is None else round(prefix.lost_s, 6),
            "cached_tokens": None if usage is None else usage.cached_tokens,
            "times": t.breaks,
        }
        summary = _broken_summary(placed, prefix)
        return (Finding("cache.broken", severity, summary, t_ns, evidence, tokens_wasted=prefix.lost_tokens),)


def _lost(prefix: Prefix) -> int:
    """Characters that the previous prompt had, that this one has too or has changed, and that could not be reused."""
    return min(prefix.previous_characters, prefix.characters) - prefix.common_characters


def _broke(placed: Placed, prefix: Prefix) -> bool:
    """The client changed what it had sent before, on a turn that should only have added to it, and that is worth telling."""
    return (
        prefix.broken_at is not None
        and placed.relation in ("next", "rewrite", "retry")
        and _lost(prefix) >= max(_BROKEN_CHARACTERS, _BROKEN_SHARE * prefix.previous_characters)
    )


def _waiting_for(result: ReturnedResult, waiting: list[tuple[str, EmittedCall]]) -> int | None:
    if result.call_id:
        by_id = next((i for i, (_, call) in enumerate(waiting) if call.call_id == result.call_id), None)
        if by_id is not None:
            return by_id
    by_name = (i for i, (_, call) in enumerate(waiting) if result.name in ("", call.name))
    return next(by_name, None) if not result.call_id or all(not call.call_id for _, call in waiting) else None


def _brings_results(history: History, common: int) -> bool:
    return any(result.atom >= common for result in history.results)


def _broken_summary(placed: Placed, prefix: Prefix) -> str:
    place = "its tools" if prefix.broken_at == "tools" else f"message {prefix.message} ({prefix.role})"
    if prefix.broken_at == "message" and prefix.character is not None:
        place += f" at character {prefix.character}"
    share = prefix.common_characters / prefix.previous_characters
    told = f"Turn {placed.turn} repeats only {share:.0%} of the prompt before it: the client changed {place}"
    if prefix.lost_tokens is None:
        return f"{told}."
    cost = "" if prefix.lost_s is None else f" in {prefix.lost_s:.1f} s"
    return f"{told}; about {prefix.lost_tokens} tokens were evaluated again{cost}."
