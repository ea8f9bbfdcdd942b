"""Which session does a request belong to? Explicit ids first, then what its history proves. Decides; measures nothing.

Tried in this order:

1. `previous_response_id`: the session whose answer had that id.
2. The chain of its atoms: the deepest point of a known history that it repeats. At that history's end it goes on ("next");
   inside it is a branch, a rewritten history, or a request made again.
3. An answer that one of our sessions gave stands in its history, elsewhere than expected: the client rewrote or shortened it.
4. The client's own id: another line of that session.
5. It quotes a session: its first message (a title, a topic check), its last answer (a summary took the history's place), or
   the arguments of a call that is still out (a sub-agent's prompt).
6. Else it starts a session.

A prompt alone proves nothing: parallel sessions of one client share system prompts, few-shot examples and often the first
message. Proof is something that the model said *in that session* while we looked on (`Trajectory.given`). An explicit id
narrows (a session with another id never fits), and the histories of different clients never meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from qm_proxy.events import Asked
from qm_proxy.measure.known import LIVE_MARKS, LIVE_S, LIVE_SESSIONS, Known, Session, Tip, Trajectory, scope_of
from qm_proxy.measure.trajectory import Answer, Context, History, Marker
from qm_proxy.record import Opened, Relation, SessionSource

__all__ = ["ClientIds", "Match", "Stitcher"]

_RETRY_NS = 120 * 10**9
_SIDE_NS = 120 * 10**9
_PROVING_BYTES = 64  # an answer of this length is not given twice by chance; two shorter ones neither
_TELLING_BYTES = 24
_KEPT = 0.6  # share of a history that must be found again for it to be the same one
_LONG = 6  # atoms of a history that is worth summarising: some three turns
_TOGETHER = 3  # atoms in a row that are no chance, when answers are among them
_SUMMARY_BYTES = 200  # an answer shorter than this does not take the place of a history
_ASKED_OF_AGENT = 0.5  # share of a first message that stands in the arguments of a call: then that call started this agent
_BRIEF_MESSAGES = 4
_PROMPT_BYTES = 48  # a prompt without messages that is shorter may begin another one by chance
_TITLE = re.compile(r"\b(title|topic|follow-?up questions?|tags?)\b", re.IGNORECASE)
_SIDE = re.compile(r"\b(title|summar(y|ise|ize)|topic|follow-?up questions?|tags?)\b", re.IGNORECASE)


class ClientIds(NamedTuple):
    """What the client itself says about its session. All optional."""

    session: str | None = None
    source: SessionSource = "header"
    agent: str | None = None  # a sub-agent's own id within the session
    parent_session: str | None = None  # a sub-agent has a session id of its own and names this one


@dataclass(slots=True)
class Match:
    """The decision about one request, and what is needed when its answer comes."""

    trajectory: Trajectory
    relation: Relation
    source: SessionSource
    turn: int
    previous_exchange_id: str | None
    history: History
    common: int  # atoms of the history that were known
    base: int  # the chain before them
    base_marks: list[int]  # the last atoms before them: what previous_response_id stands for

    @property
    def tip(self) -> int:
        return self.history.chain[-1] if self.history.chain else self.base


@dataclass(slots=True)
class _Request:
    """Everything that is known about a request before it is decided."""

    opened: Opened
    asked: Asked
    ids: ClientIds
    scope: str
    name: int | None  # mark of the client's own session id
    context: Context
    history: History = field(default_factory=History)
    base: int = 0
    base_marks: list[int] = field(default_factory=list)

    @property
    def brief(self) -> bool:
        return not self.asked.tools and len(self.asked.messages) <= _BRIEF_MESSAGES

    def reads_like(self, words: re.Pattern[str]) -> bool:
        """Said in its system prompt, or at the start of its message."""
        return any(words.search(message.text[:600]) for message in self.asked.messages if message.role != "assistant")


class _Found(NamedTuple):
    trajectory: Trajectory
    relation: Relation
    source: SessionSource = "prefix"
    common: int = 0
    tip: Tip | None = None
    branches: bool = False  # it gets a trajectory of its own


class Stitcher:
    """Places requests and learns from their answers. `new_id`: the exchange's id → a session id. One thread, no clock."""

    def __init__(
        self,
        marker: Marker,
        new_id: Callable[[str], str],
        *,
        sessions: int = LIVE_SESSIONS,
        marks: int = LIVE_MARKS,
        live_s: float = LIVE_S,
    ) -> None:
        self._marker = marker
        self._new_id = new_id
        self.known = Known(marker, sessions=sessions, marks=marks, live_s=live_s)

    def place(self, opened: Opened, asked: Asked, ids: ClientIds) -> Match:
        """Find or make the trajectory of this request and move it on."""
        self.known.evict(opened.t_ns)
        scope = scope_of(opened.client, opened.user_agent)
        if ids.parent_session is not None and ids.parent_session != ids.session:
            ids = ClientIds(ids.parent_session, ids.source, ids.agent or ids.session)
        name = None if ids.session is None else self.known.name(scope, ids.session)
        request = _Request(opened, asked, ids, scope, name, self._marker.context(asked))
        request.base = self._marker.seed(scope)
        found = self._by_prompt(request) if asked.operation == "text_completion" else self._by_response(request)
        if found is None:
            found = self._search(request)
        return self._enter(request, found)

    # --- the decision -------------------------------------------------------------------------------------------------

    def _search(self, r: _Request) -> _Found | None:
        named = None if r.name is None else self.known.named(r.name)
        if r.ids.agent is not None and named is not None and (own := named.agents.get(r.ids.agent)) is not None:
            return self._of_agent(r, own)
        found = self._by_chain(r) or self._by_answers(r)
        if found is None and named is not None and named.trajectories:
            found = self._by_name(r, named)
        if found is None:
            found = self._by_quotes(r, None)
        if found is not None and r.name is not None and found.trajectory.session.client_session == r.name:
            return found._replace(source=r.ids.source)
        return found

    def _fits(self, t: Trajectory, r: _Request) -> bool:
        session = t.session
        if session.gone or session.scope != r.scope:
            return False
        if r.name is None:
            return True
        return self.known.named(r.name) is None if session.client_session is None else session.client_session == r.name

    def _proven(self, t: Trajectory, i: int, r: _Request) -> bool:
        known = r.name is not None and t.session.client_session == r.name
        return known or r.history.chain[i] not in t.session.unproven

    def _of_agent(self, r: _Request, own: Trajectory) -> _Found:
        """The client names the very agent."""
        if (found := self._by_chain(r, within=own)) is not None:
            return found._replace(source=r.ids.source)
        if r.brief and r.reads_like(_SIDE):
            return _Found(own, "side", r.ids.source, branches=True)
        return self._anew(own, r)

    def _by_response(self, r: _Request) -> _Found | None:
        if r.asked.previous_response_id is not None:
            known = self.known.response(r.asked.previous_response_id)
            if known is not None and self._fits(known[0].trajectory, r):
                tip, r.base, r.base_marks = known
                t = tip.trajectory
                r.history = self._marker.history(r.asked.messages, r.base)
                again = t.before == r.base and (t.failed or r.history.chain[-1:] == [t.tip])
                if t.expected == r.base:
                    return _Found(t, "next", "responses", 0, tip)
                return _Found(t, "retry" if again else "fork", "responses", 0, tip, not again)
        r.history = self._marker.history(r.asked.messages, r.base)
        return None

    def _by_prompt(self, r: _Request) -> _Found | None:
        """A prompt without messages goes on where a known prompt is its beginning."""
        text = "\n".join(message.text for message in r.asked.messages)
        size = len(text.encode("utf-8", "surrogatepass"))
        marks, whole = self._marker.completion(text, self.known.prompt_lengths, r.base)
        r.history = History([whole], [whole], ["user"], [size], [], [], [0])
        self.known.prompted(size)
        same = self.known.owner(whole)
        if same is not None and same.failed and self._fits(same, r) and r.opened.t_ns - same.last_ns <= _RETRY_NS:
            return _Found(same, "retry", common=1)
        for length in sorted(marks, reverse=True):
            t = self.known.owner(marks[length])
            if t is not None and _PROMPT_BYTES <= length < size and not t.open and self._fits(t, r):
                branches = marks[length] != t.tip
                return _Found(t, "fork" if branches else "next", branches=branches)
        return None

    def _by_chain(self, r: _Request, within: Trajectory | None = None) -> _Found | None:
        h = r.history
        for i in range(len(h.chain) - 1, -1, -1):
            node = h.chain[i]
            tips = [
                tip for tip in self.known.standing(node) if within in (None, tip.trajectory) and self._fits(tip.trajectory, r)
            ]
            tips.sort(key=lambda tip: self._likeness(tip, r, i), reverse=True)
            for tip in tips:
                if (found := self._at_tip(tip, r, i)) is not None:
                    return found
            t = self.known.owner(node)
            if t is not None and within in (None, t) and self._fits(t, r) and self._proven(t, i, r):
                return self._inside(t, h, i, self._last_tip(h, i, t))
        return None

    def _likeness(self, tip: Tip, r: _Request, i: int) -> tuple[bool, bool, bool, bool, bool, bool, int]:
        """Among trajectories that stand at the same point: the one whose call is answered, whose answer fits, which waits."""
        t, h = tip.trajectory, r.history
        awaited = {call.call_id for _, call in t.pending if call.call_id}
        return (
            r.name is not None and t.session.client_session == r.name,
            not awaited.isdisjoint(h.call_ids),
            tip.answered or not self._contradicts(t, h, i),
            h.chain[i] in (t.tip, t.expected),
            r.context.like(t.context),
            t.connection == r.opened.connection,
            t.last_ns,
        )

    @staticmethod
    def _contradicts(t: Trajectory, h: History, i: int) -> bool:
        """The request puts words into the assistant's mouth that this trajectory did not say (or not yet)."""
        return i + 1 < len(h.marks) and h.kinds[i + 1] in ("say", "call") and (t.open > 0 or t.expected is not None)

    def _at_tip(self, tip: Tip, r: _Request, i: int) -> _Found | None:
        """The request repeats a history up to a point where `tip` stood."""
        t, h = tip.trajectory, r.history
        node, known = h.chain[i], i + 1
        proven = self._proven(t, i, r)
        if known == len(h.marks) and not tip.answered:  # the very same request
            if node == t.tip and t.failed and r.opened.t_ns - t.last_ns <= _RETRY_NS:
                return _Found(t, "retry", common=known, tip=tip)
            if not proven:
                return None
            again = node == t.tip and not t.open
            return _Found(t, "retry" if again else "fork", common=known, tip=tip, branches=not again)
        changed = not tip.answered and self._contradicts(t, h, i)
        if node == t.expected or (node == t.tip and not (t.open and changed)):
            if changed and not proven and not self._alone(t, node, r):
                return None
            if t.tools and not r.asked.tools and not r.context.like(t.context) and len(h.marks) - i <= 2:
                return _Found(t, "side", common=known, tip=tip, branches=True)
            return _Found(t, "next", common=known, tip=tip)
        return self._inside(t, h, i, tip) if proven else None

    def _alone(self, t: Trajectory, node: int, r: _Request) -> bool:
        """A first answer that came back changed: the only session that stands there, of the same kind, not gone on yet."""
        others = sum(tip.trajectory.tip == node for tip in self.known.standing(node))
        return t.turn <= 1 and others == 1 and r.context.like(t.context)

    def _last_tip(self, h: History, i: int, t: Trajectory) -> Tip | None:
        tips = (tip for node in reversed(h.chain[: i + 1]) for tip in self.known.standing(node))
        return next((tip for tip in tips if tip.trajectory is t), None)

    @staticmethod
    def _inside(t: Trajectory, h: History, i: int, tip: Tip | None) -> _Found:
        """It leaves the trajectory behind atom `i`. What follows tells a branch from the same line, rewritten."""
        later = set(h.marks[i + 1 :])
        gone_on = [line for line in t.session.trajectories if line.answer and line.answer <= later]
        if gone_on:
            return _Found(max(gone_on, key=lambda line: (len(line.answer & later), line.last_ns)), "rewrite", common=i + 1)
        left = t.marks[i + 1 :]
        if len(left) > 2 and sum(mark in later for mark in left) >= _KEPT * len(left):
            return _Found(t, "rewrite", common=i + 1)
        if t.failed and not t.open and h.chain[i] == t.before:
            return _Found(t, "retry", common=i + 1, tip=tip)
        return _Found(t, "fork", common=i + 1, tip=tip, branches=True)

    def _by_answers(self, r: _Request) -> _Found | None:
        """Answers of ours in a history that does not begin as it did: the latest of them tells the trajectory."""
        h = r.history
        for call_id in reversed(h.call_ids):
            t = self.known.caller(call_id)
            if t is not None and self._fits(t, r):
                return self._shortened(t, h)
        seen: set[int] = set()
        for j in range(len(h.marks) - 1, -1, -1):
            if h.sizes[j] < _TELLING_BYTES or h.kinds[j] == "result":
                continue
            t = self.known.owner(h.marks[j])
            if t is None or not self._fits(t, r):
                continue
            if h.kinds[j] == "user":
                if self._goes_on(t, h):
                    return self._shortened(t, h)
            elif h.sizes[j] >= _PROVING_BYTES or id(t) in seen:
                return self._shortened(t, h)
            else:
                seen.add(id(t))
        return None

    @staticmethod
    def _goes_on(t: Trajectory, h: History) -> bool:
        """All but the new messages at its end stood together in this trajectory, in that order, answers among them."""
        known = set(t.marks)
        n = next((i + 1 for i in range(len(h.marks) - 1, -1, -1) if h.marks[i] in known), 0)
        own = set(t.marks[t.given :])
        answers = sum(h.kinds[i] in ("say", "call") and h.marks[i] in own for i in range(n))
        return n >= _TOGETHER and answers > 0 and _contains(t.marks, h.marks[:n])

    @staticmethod
    def _shortened(t: Trajectory, h: History) -> _Found:
        now = set(h.marks)
        if sum(mark in now for mark in t.marks) >= _KEPT * len(t.marks):
            return _Found(t, "rewrite")
        return _Found(t, "fork", branches=True) if t.open else _Found(t, "compaction")

    def _by_name(self, r: _Request, session: Session) -> _Found:
        """The client says which session, and nothing else does: which line of it?"""
        main = session.main or session.trajectories[0]
        source = r.ids.source
        if r.ids.agent is not None:
            return _Found(main, "subagent", source, branches=True)
        if (quoted := self._by_quotes(r, session)) is not None:
            return quoted
        # the same kind of agent that speaks of a summary goes on from one
        if r.brief and (main.tools or r.reads_like(_TITLE if r.context.like(main.context) else _SIDE)):
            return _Found(main, "side", source, branches=True)
        if session.main is None:
            return _Found(main, "start", source, branches=True)
        if not r.context.like(main.context):
            return _Found(main, "subagent", source, branches=True)
        return self._anew(main, r)

    @staticmethod
    def _anew(t: Trajectory, r: _Request) -> _Found:
        """The line it must be, and nothing of its history: a long one was summarised; a short one was given up for another."""
        if t.open or len(t.marks) < _LONG:
            return _Found(t, "fork", r.ids.source, branches=True)
        return _Found(t, "compaction", r.ids.source)

    def _by_quotes(self, r: _Request, session: Session | None) -> _Found | None:
        """Whom does this request quote? Lines that only one session has come first."""
        lines = set(self._marker.lines(m.text for m in r.asked.messages if m.role != "tool"))
        asks = set(self._marker.lines(m.text for m in r.asked.messages if m.role == "user"))
        shared = self.known.shared(lines)
        for some in (lines - shared, shared):
            hits: dict[int, tuple[int, int, Trajectory]] = {}
            for line in some:
                t = self.known.owner(line)
                if t is not None and self._fits(t, r) and session in (None, t.session):
                    hits[id(t)] = (hits.get(id(t), (0,))[0] + 1, t.last_ns, t)
            for _, _, t in sorted(hits.values(), key=lambda hit: hit[:2], reverse=True):
                if (found := self._quoting(t, r, some, asks, unique=some is not shared)) is not None:
                    return found
        return None

    def _quoting(self, t: Trajectory, r: _Request, lines: set[int], asks: set[int], *, unique: bool) -> _Found | None:
        whole = t if t.relation != "side" or t.parent is None else t.parent
        if t.pending and len(t.pending_lines & asks) >= max(1.0, _ASKED_OF_AGENT * len(asks)):
            return _Found(whole, "subagent", branches=True)
        answer = len(t.answer_lines & lines)
        if answer and answer >= _KEPT * len(t.answer_lines) and not whole.open and r.context.like(whole.context):
            return _Found(whole, "compaction")
        first = bool(t.first_lines & lines)
        if r.context.like(t.context):
            # its first message came back changed (a note that the client puts behind the latest one), its answer as it was
            telling = unique or any(self.known.owner(mark) is t for mark in t.answer)
            again = telling and first and t.turn == 1 and not t.open and bool(t.answer) and t.answer <= set(r.history.marks)
            return _Found(t, "rewrite") if again else None
        if not t.open and r.opened.t_ns - t.last_ns > _SIDE_NS:
            return None
        if r.brief and (t.tools or r.reads_like(_SIDE)):
            return _Found(whole, "side", branches=True)
        return _Found(t, "start", branches=True) if t.session.main is None and first else None

    # --- the consequences ---------------------------------------------------------------------------------------------

    def _enter(self, r: _Request, found: _Found | None) -> Match:
        if found is None:
            session = Session(self._new_id(r.opened.id), r.scope)
            self.known.add(session)
            lonely = r.brief and r.reads_like(_TITLE if r.name is None else _SIDE)
            t = self.known.line(session, "side" if lonely else "start", None)
            found = _Found(t, t.relation, "new" if r.name is None else r.ids.source)
        else:
            t, session = found.trajectory, found.trajectory.session
            if found.branches:
                t = self.known.line(session, found.relation, found.trajectory)
                if found.relation == "fork":
                    t.turn, t.given = (0 if found.tip is None else found.tip.turn), found.trajectory.given
        if r.name is not None:
            self.known.call(session, r.name)
        if r.ids.agent is not None:
            latest = found.branches and found.relation != "side"
            session.agents[r.ids.agent] = t if latest else session.agents.get(r.ids.agent, t)
        self.known.touch(session, r.opened.t_ns)
        previous = found.tip.exchange_id if found.tip is not None else (found.trajectory.exchange_id or None)
        if found.relation != "retry" or t.turn == 0:
            t.turn += 1
        match = Match(
            t, found.relation, found.source, t.turn, previous, r.history, found.common, r.base, r.base_marks
        )  # fmt: skip
        self._move(match, r)
        return match

    def _move(self, match: Match, r: _Request) -> None:
        """The trajectory now stands at the end of this request."""
        t, h = match.trajectory, match.history
        beginning = not t.marks
        if match.common == 0 and match.relation in ("compaction", "rewrite") and not match.base_marks:
            t.given = self._given(t, r)
            t.session.distrust(h.chain[: t.given])
        elif beginning and match.relation != "fork":
            t.given = len(h.marks)
            t.session.distrust(h.chain)
        self._learn_context(t, r)
        t.before = h.chain[match.common - 1] if 0 < match.common <= len(h.chain) else match.base
        t.marks = match.base_marks + h.marks
        t.tip = match.tip
        t.expected = None
        t.answer = frozenset()
        t.failed = False
        t.open += 1
        t.exchange_id = r.opened.id
        t.connection = r.opened.connection
        t.last_ns = r.opened.t_ns
        self.known.own(t, h.chain[max(0, match.common - 1) :])
        new = range(match.common, len(h.marks))
        self.known.own(t, (h.marks[i] for i in new if h.kinds[i] == "user" and h.sizes[i] >= _TELLING_BYTES))
        self.known.stand(t, match.tip, r.opened.id, match.turn, answered=False)
        if beginning and r.asked.operation != "text_completion":
            lines = self._marker.lines((m.text for m in r.asked.messages if m.role == "user"), limit=64)
            self.known.begins_with(t, frozenset(lines))

    def _given(self, t: Trajectory, r: _Request) -> int:
        """How much of a history with a new beginning proves nothing: up to the first piece that this trajectory wrote, be it
        inside a user's message."""
        own, h = set(t.marks[t.given :]) - set(t.marks[: t.given]), r.history
        for i, mark in enumerate(h.marks):
            if h.kinds[i] != "user":
                if mark in own:
                    return i
            elif t.answer_lines and not t.answer_lines.isdisjoint(self._marker.lines([r.asked.messages[h.starts[i]].text])):
                return i
        return len(h.marks)

    @staticmethod
    def _learn_context(t: Trajectory, r: _Request) -> None:
        """A request that continues a stored response need not repeat its system prompt: then the former one holds."""
        told = r.asked.previous_response_id is None or any(m.role in ("system", "developer") for m in r.asked.messages)
        if t.context is None or (told and (r.asked.tools or not t.tools)):
            t.context = r.context
        t.tools = t.tools or bool(r.asked.tools)

    def answered(self, match: Match, exchange_id: str, answer: Answer, *, whole: bool, ended_ns: int) -> int | None:
        """The answer is there: from here on its session is known by it too. Answers with the chain behind it, if known."""
        t = match.trajectory
        t.open -= 1
        t.last_ns = max(t.last_ns, ended_ns)
        latest = t.exchange_id == exchange_id
        if latest:
            t.failed = not whole
        marks = answer.marks()
        if t.session.gone or not marks:
            return None
        chain = [match.tip]
        for mark in marks:
            chain.append(self._marker.link(chain[-1], mark))
        expected = chain[-1]
        text = answer.text
        said = marks[0] if len(marks) > len(answer.calls) and len(text) >= _TELLING_BYTES else None
        self.known.own(t, chain[1:])
        self.known.own(t, (call.mark for call in answer.calls))
        self.known.called(t, (call.call_id for call in answer.calls))
        self.known.own(t, () if said is None else (said,))
        self.known.stand(t, expected, exchange_id, match.turn, answered=True)
        if answer.response_id:
            tip = Tip(t, exchange_id, match.turn, True)
            self.known.responded(answer.response_id, tip, expected, match.base_marks + match.history.marks + marks)
        if latest:
            t.expected = expected
            t.marks = match.base_marks + match.history.marks + marks
            t.answer = frozenset(marks)
            summary = [text] if not answer.calls and len(text) >= _SUMMARY_BYTES else []
            t.answer_lines = frozenset(self._marker.lines(summary, limit=64))
            t.pending_lines = frozenset(line for call in answer.calls for line in call.lines)
            self.known.own(t, t.answer_lines)
            self.known.own(t, t.pending_lines)
        return expected


def _contains(whole: list[int], part: list[int]) -> bool:
    """Does `part` stand in `whole`, without a gap?"""
    first, n = part[0], len(part)
    return any(whole[i] == first and whole[i : i + n] == part for i in range(len(whole) - n + 1))
