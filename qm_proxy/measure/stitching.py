"""Which session does a request belong to? Explicit ids first, then what its history proves. Decides; measures nothing.

Rules that hold here (in the order in which they are tried):

1. `previous_response_id`: the session whose answer had that id.
2. The chain of its atoms: the deepest point of a known history that it repeats. At that history's end it goes on ("next");
   inside it is a branch, a rewritten history, or a request made again.
3. An answer that one of our sessions gave stands in its history, elsewhere than expected: the client rewrote or shortened it.
4. The client's own id: another line of that session.
5. It quotes a session: its first message (a title, a topic check), its last answer (a summary took the history's place), or
   the arguments of a call that is still out (a sub-agent's prompt).
6. Else it starts a session.

A prompt alone proves nothing: parallel sessions of one client share system prompts, few-shot examples and often the first
message. Proof is something that the model said *in that session* after we first saw it. An explicit id narrows (a session
with another id never fits), and the histories of different clients never meet. Bounded: least recently used sessions go first.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from qm_proxy.events import Asked
from qm_proxy.measure.prefix import Prompt
from qm_proxy.measure.trajectory import Answer, EmittedCall, History, Marker
from qm_proxy.record import Opened, Relation, SessionSource

__all__ = ["ClientIds", "Match", "Session", "Stitcher", "Trajectory", "scope_of"]

LIVE_SESSIONS = 512
LIVE_MARKS = 200_000
LIVE_S = 2 * 3600.0
_RETRY_NS = 120 * 10**9
_SIDE_NS = 120 * 10**9
_PROVING_BYTES = 64  # an answer of this length is not given twice by chance; two shorter ones neither
_TELLING_BYTES = 24
_KEPT = 0.6  # share of a history that must be found again for it to be the same one
_SIDE_MESSAGES = 4
_PROMPT_LENGTHS = 256
_PROMPT_BYTES = 48
_SUMMARY_BYTES = 200  # an answer shorter than this does not take the place of a history
_ASKED_OF_AGENT = 0.5  # share of a first message that stands in the arguments of a call: then that call started this agent
_OWNED = 20_000  # marks of one trajectory; beyond, its oldest are given up
_LINES = 64  # trajectories of one session
_RECALLED = 256  # atoms remembered behind a response id
_TITLE = re.compile(r"\b(title|topic)\b", re.IGNORECASE)
_SIDE = re.compile(r"\b(title|summar(y|ise|ize)|topic|follow-?up questions?|tags?)\b", re.IGNORECASE)


class ClientIds(NamedTuple):
    """What the client itself says about its session. All optional."""

    session: str | None = None
    source: SessionSource = "header"
    agent: str | None = None  # a sub-agent's own id within the session
    parent_session: str | None = None  # a sub-agent has a session id of its own and names this one


class Tip(NamedTuple):
    """A place where a trajectory may go on: behind a request, or behind its answer."""

    trajectory: Trajectory
    exchange_id: str
    turn: int
    answered: bool


@dataclass(slots=True, eq=False)
class Trajectory:
    """One line of a session: each request repeats the one before and adds to it."""

    session: Session
    number: int
    relation: Relation
    parent: Trajectory | None = None
    turn: int = 0
    context: int = 0
    tools: bool = False
    first_length: int = 0  # atoms of the first request: given to us, proved by nothing
    marks: list[int] = field(default_factory=list)  # atoms of the latest request and its answer
    tip: int = 0  # chain at the end of the latest request
    before: int = 0  # chain at the point from which the latest request went on
    expected: int | None = None  # chain behind its answer, as we expect to see it
    said: set[int] = field(default_factory=set)  # marks of its latest answer that are long enough to tell
    pending: list[tuple[str, EmittedCall]] = field(default_factory=list)  # its latest answer's calls without a result; exchange
    first_lines: frozenset[int] = frozenset()
    answer_lines: frozenset[int] = frozenset()
    pending_lines: set[int] = field(default_factory=set)
    prompt: Prompt | None = None  # of the latest request, to compare the next one with
    breaks: int = 0  # how often its prefix broke
    exchange_id: str = ""
    open: int = 0  # exchanges in flight
    failed: bool = False  # the latest one ended without a whole answer
    connection: int = 0
    last_ns: int = 0
    owned: array[int] = field(default_factory=lambda: array("q"))  # its keys in the index, to take out again
    tips: array[int] = field(default_factory=lambda: array("q"))
    prompt_bytes: int = 0  # for prompts without messages


@dataclass(slots=True, eq=False)
class Session:
    id: str
    client: str
    client_session: int | None = None  # mark of the client's own id
    trajectories: list[Trajectory] = field(default_factory=list)
    agents: dict[str, Trajectory] = field(default_factory=dict)
    last_ns: int = 0
    next_number: int = 1
    gone: bool = False
    in_flight: int = 0
    covered_ns: int = 0  # until when the session's time is accounted for

    @property
    def main(self) -> Trajectory | None:
        return next((t for t in self.trajectories if t.number == 0), None)


@dataclass(slots=True)
class Match:
    """The decision about one request, and what is needed when its answer comes."""

    trajectory: Trajectory
    relation: Relation
    source: SessionSource
    turn: int
    previous_exchange_id: str | None
    history: History
    base: int  # chain and atoms before this request's own messages (previous_response_id), else the seed and nothing
    base_marks: list[int]
    common: int  # atoms that were known
    context: int

    @property
    def tip(self) -> int:
        return self.history.chain[-1] if self.history.chain else self.base


class _Found(NamedTuple):
    trajectory: Trajectory
    relation: Relation
    source: SessionSource
    common: int
    tip: Tip | None = None
    new_line: bool = False


class Stitcher:
    """Owns the live sessions. One thread; times are those of the exchanges."""

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
        self._limits = (sessions, marks, int(live_s * 1e9))
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._by_client_id: dict[int, Session] = {}
        self._index: dict[int, Trajectory] = {}  # chain nodes, answers, lines, prompts: their marks never meet
        self._tips: dict[int, list[Tip]] = {}
        self._responses: dict[int, tuple[Tip, int, list[int]]] = {}
        self._prompt_lengths: OrderedDict[int, int] = OrderedDict()
        self._marks = 0
        self.evicted = 0

    # --- the decision -------------------------------------------------------------------------------------------------

    def place(self, opened: Opened, asked: Asked, ids: ClientIds) -> Match:
        """Find or make the trajectory of this request and move it on."""
        now = opened.t_ns
        self._evict(now)
        scope = scope_of(opened.client, opened.user_agent)
        seed = self._marker.seed(scope)
        if ids.parent_session is not None and ids.parent_session != ids.session:
            ids = ClientIds(ids.parent_session, ids.source, ids.agent or ids.session)
        client_id = None if ids.session is None else self._marker.name(f"{scope}\0{ids.session}")
        named = None if client_id is None else self._by_client_id.get(client_id)
        base, base_marks = seed, list[int]()
        found: _Found | None = None
        if asked.operation == "text_completion":
            history, found = self._by_prompt(asked, seed, now)
        else:
            if asked.previous_response_id is not None:
                known = self._responses.get(self._marker.name(f"response\0{asked.previous_response_id}"))
                if known is not None and self._fits(known[0].trajectory, client_id):
                    tip, base, base_marks = known
                    found = self._from_response(tip, base)
            history = self._marker.history(asked.messages, base)
        context = self._marker.context(asked)
        if found is None:
            found = self._search(opened, asked, ids, history, context, client_id, named)
        match = self._enter(opened, asked, ids, found, history, context, client_id, scope)
        match.base, match.base_marks = base, base_marks
        self._move(match, opened, asked)
        return match

    def _search(
        self, opened: Opened, asked: Asked, ids: ClientIds, h: History, context: int, client_id: int | None, named: Session | None
    ) -> _Found | None:
        if ids.agent is not None and named is not None and (own := named.agents.get(ids.agent)) is not None:
            if (known := self._by_chain(opened, asked, h, context, client_id, within=own)) is not None:
                return known._replace(source=ids.source)
            if not asked.tools and len(asked.messages) <= _SIDE_MESSAGES and _side_question(asked):
                return _Found(own, "side", ids.source, 0, None, True)
            return _Found(own, "compaction", ids.source, 0)
        found = self._by_chain(opened, asked, h, context, client_id)
        if found is None:
            found = self._by_answers(h, client_id)
        if found is None and named is not None and named.trajectories:
            found = self._by_name(opened, asked, ids, h, context, named)
        if found is None:
            found = self._by_quotes(opened, asked, context, client_id, None)
        if found is not None and client_id is not None and found.trajectory.session.client_session == client_id:
            return found._replace(source=ids.source)
        return found

    def _fits(self, trajectory: Trajectory, client_id: int | None) -> bool:
        session = trajectory.session
        if session.gone or client_id is None:
            return not session.gone
        if session.client_session is None:
            return client_id not in self._by_client_id
        return session.client_session == client_id

    def _from_response(self, tip: Tip, base: int) -> _Found:
        t = tip.trajectory
        if t.expected == base:
            return _Found(t, "next", "responses", 0, tip)
        return _Found(t, "retry" if t.failed and t.before == base else "fork", "responses", 0, tip, not t.failed)

    def _by_chain(
        self,
        opened: Opened,
        asked: Asked,
        h: History,
        context: int,
        client_id: int | None,
        within: Trajectory | None = None,
    ) -> _Found | None:
        for i in range(len(h.chain) - 1, -1, -1):
            node = h.chain[i]
            tips = [
                tip
                for tip in self._tips.get(node, ())
                if self._fits(tip.trajectory, client_id) and within in (None, tip.trajectory)
            ]
            tips.sort(key=lambda tip: self._likeness(tip, h, i, opened, context, client_id), reverse=True)
            for tip in tips:
                if (found := self._at_tip(tip, node, h, i, opened, asked, context, client_id)) is not None:
                    return found
            t = self._index.get(node)
            if t is None or not self._fits(t, client_id) or within not in (None, t):
                continue
            if self._proven(t, i, client_id):
                return self._inside(t, h, i, self._last_tip(h, i, t))
        return None

    def _likeness(
        self, tip: Tip, h: History, i: int, opened: Opened, context: int, client_id: int | None
    ) -> tuple[bool, bool, bool, bool, bool, bool, int]:
        """Among trajectories that stand at the same point: the one whose call is answered, whose answer fits, which waits."""
        t = tip.trajectory
        awaited = {call.call_id for _, call in t.pending if call.call_id}
        return (
            client_id is not None and t.session.client_session == client_id,
            not awaited.isdisjoint(h.call_ids),
            tip.answered or not self._contradicted(t, h, i),
            h.chain[i] in (t.tip, t.expected),
            t.context == context,
            t.connection == opened.connection,
            t.last_ns,
        )

    def _contradicted(self, t: Trajectory, h: History, i: int) -> bool:
        """The request puts words into the assistant's mouth that this trajectory did not say (or not yet)."""
        return i + 1 < len(h.marks) and h.kinds[i + 1] in ("say", "call") and (t.open > 0 or t.expected is not None)

    def _proven(self, t: Trajectory, i: int, client_id: int | None) -> bool:
        return i >= t.first_length or (client_id is not None and t.session.client_session == client_id)

    def _at_tip(
        self, tip: Tip, node: int, h: History, i: int, opened: Opened, asked: Asked, context: int, client_id: int | None
    ) -> _Found | None:
        t = tip.trajectory
        proven = self._proven(t, i, client_id)
        if i + 1 == len(h.marks) and not tip.answered:  # the very same request
            if node != t.tip:
                return _Found(t, "fork", "prefix", i + 1, tip, True) if proven else None
            if t.failed and opened.t_ns - t.last_ns <= _RETRY_NS:
                return _Found(t, "retry", "prefix", i + 1, tip)
            if t.open:
                return _Found(t, "fork", "prefix", i + 1, tip, True) if proven else None
            written = sum(weight >= _TELLING_BYTES for weight in h.weights)
            return _Found(t, "retry", "prefix", i + 1, tip) if proven or written > 1 else None
        if node == t.expected or (node == t.tip and not (t.open and self._contradicted(t, h, i))):
            if not tip.answered and self._contradicted(t, h, i) and not proven and not self._believable(t, context, node):
                return None
            if t.tools and not asked.tools and t.context != context and len(h.marks) - i <= 2:
                return _Found(t, "side", "prefix", i + 1, tip, True)
            return _Found(t, "next", "prefix", i + 1, tip)
        return self._inside(t, h, i, tip) if proven else None

    def _believable(self, t: Trajectory, context: int, node: int) -> bool:
        """A first answer that came back changed: the only session that stands there, of the same kind, not gone on yet."""
        return t.turn <= 1 and t.context == context and sum(tip.trajectory.tip == node for tip in self._tips[node]) == 1

    def _last_tip(self, h: History, i: int, t: Trajectory) -> Tip | None:
        for j in range(i, -1, -1):
            for tip in self._tips.get(h.chain[j], ()):
                if tip.trajectory is t:
                    return tip
        return None

    def _inside(self, t: Trajectory, h: History, i: int, tip: Tip | None) -> _Found:
        """It leaves the trajectory at atom `i`. What follows tells whether it is a branch or the same line, rewritten."""
        later = set(h.marks[i + 1 :])
        left = t.marks[i + 1 :]
        if (t.said and t.said <= later) or (len(left) > 2 and sum(m in later for m in left) >= _KEPT * len(left)):
            return _Found(t, "rewrite", "prefix", i + 1)
        if t.failed and not t.open and h.chain[i] == t.before:
            return _Found(t, "retry", "prefix", i + 1, tip)
        return _Found(t, "fork", "prefix", i + 1, tip, True)

    def _by_answers(self, h: History, client_id: int | None) -> _Found | None:
        """Answers of ours in a history that does not begin as it did: the latest of them tells the trajectory."""
        bytes_of: dict[int, int] = {}
        for j in range(len(h.marks) - 1, -1, -1):
            if h.weights[j] < _TELLING_BYTES or h.kinds[j] == "result":
                continue
            t = self._index.get(h.marks[j])
            if t is None or not self._fits(t, client_id):
                continue
            seen = bytes_of.get(id(t), 0)
            bytes_of[id(t)] = seen + h.weights[j]
            if h.weights[j] >= _PROVING_BYTES or seen:
                return self._shortened(t, h)
        return None

    def _shortened(self, t: Trajectory, h: History) -> _Found:
        mine, now = t.marks, set(h.marks)
        kept = sum(mark in now for mark in mine)
        if kept >= _KEPT * len(mine):
            return _Found(t, "rewrite", "prefix", kept)
        if t.said and not t.said <= now and t.open:
            return _Found(t, "fork", "prefix", kept, None, True)
        return _Found(t, "compaction", "prefix", kept)

    def _by_name(self, opened: Opened, asked: Asked, ids: ClientIds, h: History, context: int, session: Session) -> _Found:
        """The client says which session, and nothing else does: which line of it?"""
        main = session.main or session.trajectories[0]
        if ids.agent is not None:
            return _Found(main, "subagent", ids.source, 0, None, True)
        if (quoted := self._by_quotes(opened, asked, context, session.client_session, session)) is not None:
            return quoted._replace(source=ids.source)
        if not asked.tools and len(asked.messages) <= _SIDE_MESSAGES and (main.tools or _side_question(asked)):
            return _Found(main, "side", ids.source, 0, None, True)
        if session.main is None:
            return _Found(main, "start", ids.source, 0, None, True)
        if context == main.context:
            if main.open:
                return _Found(main, "fork", ids.source, 0, None, True)
            return _Found(main, "compaction", ids.source, 0)
        return _Found(main, "subagent", ids.source, 0, None, True)

    def _by_quotes(
        self, opened: Opened, asked: Asked, context: int, client_id: int | None, session: Session | None
    ) -> _Found | None:
        """Whom does this request quote?"""
        lines = set(self._marker.lines(m.text for m in asked.messages if m.role != "tool"))
        asks = set(self._marker.lines(m.text for m in asked.messages if m.role == "user"))
        hits: dict[int, tuple[int, Trajectory]] = {}
        for line in lines:
            t = self._index.get(line)
            if t is not None and self._fits(t, client_id) and session in (None, t.session):
                hits[id(t)] = (hits.get(id(t), (0, t))[0] + 1, t)
        for _, t in sorted(hits.values(), key=lambda hit: (hit[0], hit[1].last_ns), reverse=True):
            whole = t if t.relation != "side" or t.parent is None else t.parent
            if t.pending and len(t.pending_lines & asks) >= max(1.0, _ASKED_OF_AGENT * len(asks)):
                return _Found(whole, "subagent", "prefix", 0, None, True)
            answer = len(t.answer_lines & lines)
            if answer and answer >= _KEPT * len(t.answer_lines) and not whole.open and context in (whole.context, t.context):
                return _Found(whole, "compaction", "prefix", 0)
            recent = opened.t_ns - t.last_ns <= _SIDE_NS or t.open
            if not recent or context == t.context:
                continue
            if not asked.tools and len(asked.messages) <= _SIDE_MESSAGES and (t.tools or _side_question(asked)):
                return _Found(whole, "side", "prefix", 0, None, True)
            if t.session.main is None and t.first_lines & lines:
                return _Found(t, "start", "prefix", 0, None, True)
        return None

    def _by_prompt(self, asked: Asked, seed: int, now: int) -> tuple[History, _Found | None]:
        """A prompt without messages goes on where a known prompt, or that prompt with its answer, is its beginning."""
        text = "\n".join(message.text for message in asked.messages)
        marks, whole = self._marker.completion(text, self._prompt_lengths, seed)
        history = History([whole], [whole], ["user"], [0], [], [], [0])
        if (same := self._index.get(whole)) is not None and same.failed and now - same.last_ns <= _RETRY_NS:
            return history, _Found(same, "retry", "prefix", 1)
        size = len(text.encode("utf-8", "surrogatepass"))
        for length in sorted(marks, reverse=True):
            t = self._index.get(marks[length])
            if t is not None and _PROMPT_BYTES <= length < size and not t.session.gone and not t.open:
                current = marks[length] in (t.tip, t.expected)
                return history, _Found(t, "next" if current else "fork", "prefix", 1, None, not current)
        return history, None

    # --- the consequences ---------------------------------------------------------------------------------------------

    def _enter(
        self,
        opened: Opened,
        asked: Asked,
        ids: ClientIds,
        found: _Found | None,
        history: History,
        context: int,
        client_id: int | None,
        scope: str,
    ) -> Match:
        if found is None:
            session = Session(self._new_id(opened.id), scope)
            self._sessions[session.id] = session
            brief = not asked.tools and len(asked.messages) <= _SIDE_MESSAGES
            lonely = brief and _side_question(asked, _TITLE if client_id is None else _SIDE)
            relation: Relation = "side" if lonely else "start"
            t = self._line(session, relation, None)
            found = _Found(t, relation, ids.source if client_id is not None else "new", 0)
        else:
            session = found.trajectory.session
            t = found.trajectory
            if found.new_line:
                t = self._line(session, found.relation, found.trajectory)
                t.turn = 0 if found.relation in ("side", "subagent", "start") or found.tip is None else found.tip.turn
                t.first_length = found.common if found.relation == "fork" else 0
        if client_id is not None:
            if session.client_session is None:
                session.client_session = client_id
            self._by_client_id[client_id] = session
        if ids.agent is not None and ids.agent not in session.agents:
            session.agents[ids.agent] = t
        self._sessions.move_to_end(session.id)
        session.last_ns = opened.t_ns
        previous = found.tip.exchange_id if found.tip is not None else (found.trajectory.exchange_id or None)
        if found.relation != "retry" or t.turn == 0:
            t.turn += 1
        return Match(t, found.relation, found.source, t.turn, previous, history, 0, [], found.common, context)

    def _line(self, session: Session, relation: Relation, parent: Trajectory | None) -> Trajectory:
        main = relation == "start" and session.main is None
        number = 0 if main else session.next_number
        session.next_number += not main
        if len(session.trajectories) >= _LINES:
            oldest = min((t for t in session.trajectories if t.number and not t.open), key=lambda t: t.last_ns, default=None)
            if oldest is not None:
                self._forget_line(oldest)
                session.trajectories.remove(oldest)
                session.agents = {agent: t for agent, t in session.agents.items() if t is not oldest}
        t = Trajectory(session, number, relation, None if main else parent)
        session.trajectories.append(t)
        return t

    def _move(self, match: Match, opened: Opened, asked: Asked) -> None:
        """The trajectory now stands at the end of this request."""
        t, h = match.trajectory, match.history
        beginning = not t.marks
        if (beginning and match.relation != "fork") or match.relation == "compaction":
            t.first_length = len(h.marks)
        if not t.tools or asked.tools:
            t.context, t.tools = match.context, bool(asked.tools)
        t.before = h.chain[match.common - 1] if 0 < match.common <= len(h.chain) else match.base
        t.marks = match.base_marks + h.marks
        t.tip = match.tip
        t.expected = None
        t.said = set()
        t.failed = False
        t.open += 1
        t.exchange_id = opened.id
        t.connection = opened.connection
        t.last_ns = opened.t_ns
        for node in h.chain[max(0, match.common - 1) :]:
            self._own(t, node)
        self._stand(t, match.tip, opened.id, match.turn, answered=False)
        if asked.operation == "text_completion":
            self._remember_prompt(sum(len(m.text.encode("utf-8", "surrogatepass")) for m in asked.messages))
        elif beginning:
            lines = self._marker.lines((m.text for m in asked.messages if m.role == "user"), limit=64)
            t.first_lines = frozenset(lines)
            for line in t.first_lines:
                self._own(t, line)

    def _remember_prompt(self, length: int) -> None:
        self._prompt_lengths[length] = 0
        self._prompt_lengths.move_to_end(length)
        if len(self._prompt_lengths) > _PROMPT_LENGTHS:
            self._prompt_lengths.popitem(last=False)

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
        expected = match.tip
        for mark in marks:
            expected = self._marker.link(expected, mark)
            self._own(t, expected)
        self._stand(t, expected, exchange_id, match.turn, answered=True)
        text = answer.text
        long_enough = [marks[0]] if len(text) >= _TELLING_BYTES and len(marks) > len(answer.calls) else []
        for mark in (*long_enough, *(call.mark for call in answer.calls)):
            self._own(t, mark)
        if answer.response_id:
            place = Tip(t, exchange_id, match.turn, True)
            key = self._marker.name(f"response\0{answer.response_id}")
            self._responses[key] = (place, expected, (match.base_marks + match.history.marks + marks)[-_RECALLED:])
            t.owned.append(key)
            self._marks += 1
        if latest:
            t.expected = expected
            t.marks = match.base_marks + match.history.marks + marks
            t.said = set(long_enough)
            summary = [text] if not answer.calls and len(text) >= _SUMMARY_BYTES else []
            t.answer_lines = frozenset(self._marker.lines(summary, limit=64))
            t.pending_lines = {line for call in answer.calls for line in call.lines}
            for line in (*t.answer_lines, *t.pending_lines):
                self._own(t, line)
        return expected

    def _own(self, t: Trajectory, mark: int) -> None:
        if self._index.get(mark) is not t:
            self._index[mark] = t
            t.owned.append(mark)
            self._marks += 1
            if len(t.owned) > _OWNED:
                self._disown(t, t.owned[: _OWNED // 2])
                del t.owned[: _OWNED // 2]
                self._leave(t, t.tips[: len(t.tips) // 2])
                del t.tips[: len(t.tips) // 2]

    def _disown(self, t: Trajectory, marks: Iterable[int]) -> None:
        for mark in marks:
            self._marks -= 1
            if self._index.get(mark) is t:
                del self._index[mark]
            self._responses.pop(mark, None)

    def _leave(self, t: Trajectory, nodes: Iterable[int]) -> None:
        for node in nodes:
            rest = [tip for tip in self._tips.get(node, ()) if tip.trajectory is not t]
            if rest:
                self._tips[node] = rest
            else:
                self._tips.pop(node, None)

    def _forget_line(self, t: Trajectory) -> None:
        self._disown(t, t.owned)
        self._leave(t, t.tips)

    def _stand(self, t: Trajectory, node: int, exchange_id: str, turn: int, *, answered: bool) -> None:
        tips = [tip for tip in self._tips.get(node, ()) if tip.trajectory is not t][-15:]
        tips.append(Tip(t, exchange_id, turn, answered))
        self._tips[node] = tips
        t.tips.append(node)

    # --- bounds -------------------------------------------------------------------------------------------------------

    def _evict(self, now: int) -> None:
        sessions, marks, live_ns = self._limits
        while self._sessions:
            session = next(iter(self._sessions.values()))
            over = len(self._sessions) > sessions or self._marks > marks
            if not over and now - session.last_ns <= live_ns:
                return
            if len(self._sessions) == 1 and now - session.last_ns <= live_ns:
                return
            self.forget(session)
            self.evicted += 1

    def forget(self, session: Session) -> None:
        """Take everything of this session out of the index."""
        session.gone = True
        self._sessions.pop(session.id, None)
        for key in [key for key, known in self._by_client_id.items() if known is session]:
            del self._by_client_id[key]
        for t in session.trajectories:
            self._forget_line(t)

    def resume(
        self,
        session_id: str,
        scope: str,
        client_session: str | None,
        places: Iterable[tuple[int, str, int, int | None, int | None, int]],
    ) -> None:
        """Know a stored session again after a restart: (trajectory, exchange id, turn, tip, expected, t_ns) of its turns."""
        session = Session(session_id, scope)
        self._sessions[session_id] = session
        if client_session is not None:
            session.client_session = self._marker.name(f"{scope}\0{client_session}")
            self._by_client_id[session.client_session] = session
        lines: dict[int, Trajectory] = {}
        for number, exchange_id, turn, tip, expected, t_ns in places:
            t = lines.get(number)
            if t is None:
                t = lines[number] = Trajectory(session, number, "start" if number == 0 else "fork")
                session.trajectories.append(t)
                session.next_number = max(session.next_number, number + 1)
            t.turn, t.exchange_id, t.last_ns, t.tip, t.expected = turn, exchange_id, t_ns, tip or 0, expected
            session.last_ns = max(session.last_ns, t_ns)
            for node, answered in ((tip, False), (expected, True)):
                if node is not None:
                    self._own(t, node)
                    self._stand(t, node, exchange_id, turn, answered=answered)

    @property
    def live(self) -> tuple[int, int]:
        """Sessions and marks held."""
        return len(self._sessions), self._marks


def scope_of(client: str, user_agent: str | None) -> str:
    """Within which histories and ids may meet: one client; unknown ones are told apart by what they call themselves."""
    return client if client != "unknown" else f"unknown {user_agent or ''}"


def _side_question(asked: Asked, words: re.Pattern[str] = _SIDE) -> bool:
    """It reads like a request for a title, a summary or tags: said in its system prompt, or at the start of its message."""
    return any(words.search(message.text[:600]) for message in asked.messages if message.role != "assistant")
