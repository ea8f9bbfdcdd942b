"""The live sessions and the marks by which they are found: an index with bounds. It finds; measure.stitching decides.

Rules that hold here:

- All marks share one index (chain nodes, answers, lines, prompts, response ids: keyed hashes of different prefixes never
  meet). A mark belongs to the trajectory that had it last; a `Tip`, where something may go on, may belong to several.
- Least recently used sessions go first: beyond `sessions`, beyond `marks`, and after `live_s` of silence. A single endless
  trajectory gives up its own oldest marks, a session its oldest side lines.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from qm_proxy.measure.prefix import Prompt
from qm_proxy.measure.trajectory import Context, EmittedCall, Marker
from qm_proxy.record import Relation

__all__ = ["Known", "Place", "Session", "Tip", "Trajectory", "scope_of"]

LIVE_SESSIONS = 512
LIVE_MARKS = 200_000
LIVE_S = 2 * 3600.0
_OWNED = 20_000  # marks of one trajectory
_LINES = 64  # trajectories of one session
_STANDING = 16  # trajectories remembered at one tip
_PROMPT_LENGTHS = 256
_CALL_ID = 8  # characters: shorter ids (call_0, call_12) are counted, not drawn
_RECALLED = 256  # atoms remembered behind a response id


@dataclass(slots=True, eq=False)
class Trajectory:
    """One line of a session: each request repeats the one before and adds to it."""

    session: Session
    number: int  # 0: the session's main line
    relation: Relation  # how it began
    parent: Trajectory | None = None
    turn: int = 0
    context: Context | None = None
    tools: bool = False
    given: int = 0  # atoms at its start that we did not see come about: few-shot examples, an imported history
    marks: list[int] = field(default_factory=list)  # atoms of the latest request and its answer
    tip: int = 0  # chain at the end of the latest request
    before: int = 0  # chain at the point from which the latest request went on
    expected: int | None = None  # chain behind its answer, as we expect to see it
    answer: frozenset[int] = frozenset()  # atoms of its latest answer
    pending: list[tuple[str, EmittedCall]] = field(default_factory=list)  # its latest answer's calls without a result; exchange
    first_lines: frozenset[int] = frozenset()
    answer_lines: frozenset[int] = frozenset()  # of its latest answer, if that may stand for a history
    pending_lines: frozenset[int] = frozenset()
    prompt: Prompt | None = None  # of the latest request, to compare the next one with
    breaks: int = 0  # how often its prefix broke
    exchange_id: str = ""
    open: int = 0  # exchanges in flight
    failed: bool = False  # the latest one ended without a whole answer
    connection: int = 0
    last_ns: int = 0
    owned: array[int] = field(default_factory=lambda: array("q"))  # its marks in the index, to take out again
    tips: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True, eq=False)
class Session:
    id: str
    scope: str
    client_session: int | None = None  # mark of the client's own id
    trajectories: list[Trajectory] = field(default_factory=list)
    agents: dict[str, Trajectory] = field(default_factory=dict)
    last_ns: int = 0
    next_number: int = 1
    gone: bool = False
    in_flight: int = 0
    covered_ns: int = 0  # until when the session's time is accounted for
    unproven: dict[int, None] = field(default_factory=dict)  # chain nodes that other sessions may have as well

    @property
    def main(self) -> Trajectory | None:
        return next((t for t in self.trajectories if t.number == 0), None)

    def distrust(self, nodes: Iterable[int]) -> None:
        """These beginnings of a history were given to us: to repeat them proves nothing."""
        self.unproven.update(dict.fromkeys(nodes))
        while len(self.unproven) > _OWNED:
            del self.unproven[next(iter(self.unproven))]


class Tip(NamedTuple):
    """A place where a trajectory may go on: behind a request, or behind its answer."""

    trajectory: Trajectory
    exchange_id: str
    turn: int
    answered: bool


class Place(NamedTuple):
    """A stored turn, as a restart brings it back. `t_ns`: when it ended, on this boot's monotonic clock."""

    trajectory: int
    exchange_id: str
    turn: int
    tip: int | None
    expected: int | None
    t_ns: int


def scope_of(client: str, user_agent: str | None) -> str:
    """Within which histories and ids may meet: one client; unknown ones are told apart by what they call themselves."""
    return client if client != "unknown" else f"unknown {user_agent or ''}"


class Known:
    """The index. One thread."""

    def __init__(self, marker: Marker, *, sessions: int = LIVE_SESSIONS, marks: int = LIVE_MARKS, live_s: float = LIVE_S) -> None:
        self.marker = marker
        self._limits = (sessions, marks, int(live_s * 1e9))
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._named: dict[int, Session] = {}
        self._index: dict[int, Trajectory] = {}
        self._tips: dict[int, list[Tip]] = {}
        self._responses: dict[int, tuple[Tip, int, list[int]]] = {}
        self._shared: set[int] = set()
        self._prompt_lengths: OrderedDict[int, None] = OrderedDict()
        self._marks = 0
        self.evicted = 0

    # --- finding ------------------------------------------------------------------------------------------------------

    def owner(self, mark: int) -> Trajectory | None:
        return self._index.get(mark)

    def standing(self, node: int) -> list[Tip]:
        """Who may go on at this point of a history, oldest first."""
        return self._tips.get(node, [])

    def response(self, response_id: str) -> tuple[Tip, int, list[int]] | None:
        """Whose answer had this id, the chain behind it, and the last atoms up to there."""
        return self._responses.get(self.marker.name(f"response\0{response_id}"))

    def caller(self, call_id: str) -> Trajectory | None:
        """Whose answer made the call with this id; None when several sessions made one, or the id is too short to tell."""
        if len(call_id) < _CALL_ID:
            return None
        mark = self.marker.name(f"call\0{call_id}")
        return None if mark in self._shared else self._index.get(mark)

    def name(self, scope: str, client_session: str) -> int:
        return self.marker.name(f"{scope}\0{client_session}")

    def named(self, name: int) -> Session | None:
        return self._named.get(name)

    def shared(self, lines: set[int]) -> set[int]:
        """Those lines that begin several sessions: they tell nobody apart."""
        return lines & self._shared

    @property
    def prompt_lengths(self) -> Iterable[int]:
        """Lengths in bytes of recent prompts without messages."""
        return self._prompt_lengths.keys()

    @property
    def live(self) -> tuple[int, int]:
        """Sessions and marks held."""
        return len(self._sessions), self._marks

    # --- remembering --------------------------------------------------------------------------------------------------

    def add(self, session: Session) -> None:
        self._sessions[session.id] = session

    def touch(self, session: Session, t_ns: int) -> None:
        session.last_ns = t_ns
        self._sessions.move_to_end(session.id)

    def call(self, session: Session, name: int) -> None:
        """The client calls this session by that name."""
        if session.client_session is None:
            session.client_session = name
        self._named[name] = session

    def line(self, session: Session, relation: Relation, parent: Trajectory | None) -> Trajectory:
        """A new trajectory. "start" makes the main one where there is none yet."""
        main = relation == "start" and session.main is None
        number = 0 if main else session.next_number
        session.next_number += not main
        if len(session.trajectories) >= _LINES:
            idle = [t for t in session.trajectories if t.number and not t.open]
            if idle:
                oldest = min(idle, key=lambda t: t.last_ns)
                self._forget_line(oldest)
                session.trajectories.remove(oldest)
                session.agents = {agent: t for agent, t in session.agents.items() if t is not oldest}
        t = Trajectory(session, number, relation, None if main else parent)
        if parent is not None and relation == "fork":
            t.context, t.tools = parent.context, parent.tools
        session.trajectories.append(t)
        return t

    def own(self, t: Trajectory, marks: Iterable[int]) -> None:
        for mark in marks:
            if self._index.get(mark) is not t:
                self._index[mark] = t
                t.owned.append(mark)
                self._marks += 1
        if len(t.owned) > _OWNED:
            old = len(t.owned) - _OWNED // 2
            self._disown(t, t.owned[:old])
            del t.owned[:old]
            old = len(t.tips) // 2
            self._leave(t, t.tips[:old])
            del t.tips[:old]

    def begins_with(self, t: Trajectory, lines: frozenset[int]) -> None:
        """The first message of `t` has these lines."""
        t.first_lines = lines
        self._own_alone(t, lines)

    def called(self, t: Trajectory, call_ids: Iterable[str]) -> None:
        """An answer of `t` made these calls. Some models count their ids from 0 in every session: such tell nobody apart."""
        self._own_alone(t, [self.marker.name(f"call\0{call_id}") for call_id in call_ids if len(call_id) >= _CALL_ID])

    def _own_alone(self, t: Trajectory, marks: Collection[int]) -> None:
        """Own marks that prove something only as long as no other session has them."""
        self._shared |= {mark for mark in marks if (at := self._index.get(mark)) is not None and at.session is not t.session}
        if len(self._shared) > _OWNED:
            self._shared.clear()
        self.own(t, marks)

    def stand(self, t: Trajectory, node: int, exchange_id: str, turn: int, *, answered: bool) -> None:
        tips = [tip for tip in self._tips.get(node, ()) if tip.trajectory is not t][-_STANDING + 1 :]
        tips.append(Tip(t, exchange_id, turn, answered))
        self._tips[node] = tips
        t.tips.append(node)

    def responded(self, response_id: str, tip: Tip, chain: int, marks: list[int]) -> None:
        key = self.marker.name(f"response\0{response_id}")
        self._responses[key] = (tip, chain, marks[-_RECALLED:])
        self.own(tip.trajectory, (key,))

    def prompted(self, length: int) -> None:
        self._prompt_lengths[length] = None
        self._prompt_lengths.move_to_end(length)
        if len(self._prompt_lengths) > _PROMPT_LENGTHS:
            self._prompt_lengths.popitem(last=False)

    def resume(self, session_id: str, scope: str, client_session: str | None, places: Iterable[Place]) -> None:
        """Know a stored session again after a restart: its turns, oldest first."""
        session = Session(session_id, scope)
        self._sessions[session_id] = session
        if client_session is not None:
            self.call(session, self.name(scope, client_session))
        lines: dict[int, Trajectory] = {}
        for place in places:
            t = lines.get(place.trajectory)
            if t is None:
                t = lines[place.trajectory] = Trajectory(session, place.trajectory, "start" if place.trajectory == 0 else "fork")
                session.trajectories.append(t)
                session.next_number = max(session.next_number, place.trajectory + 1)
            t.turn, t.exchange_id, t.last_ns = place.turn, place.exchange_id, place.t_ns
            t.tip, t.expected = place.tip or 0, place.expected
            session.last_ns = max(session.last_ns, place.t_ns)
            for node, answered in ((place.tip, False), (place.expected, True)):
                if node is not None:
                    self.own(t, (node,))
                    self.stand(t, node, place.exchange_id, place.turn, answered=answered)

    # --- forgetting ---------------------------------------------------------------------------------------------------

    def evict(self, now_ns: int) -> None:
        sessions, marks, live_ns = self._limits
        while self._sessions:
            session = next(iter(self._sessions.values()))
            old = now_ns - session.last_ns > live_ns
            if not old and (len(self._sessions) == 1 or (len(self._sessions) <= sessions and self._marks <= marks)):
                return
            self.forget(session)
            self.evicted += 1

    def forget(self, session: Session) -> None:
        """Take everything of this session out of the index."""
        session.gone = True
        self._sessions.pop(session.id, None)
        for name in [name for name, known in self._named.items() if known is session]:
            del self._named[name]
        for t in session.trajectories:
            self._forget_line(t)
        if not session.in_flight and not any(t.open for t in session.trajectories):
            # session and lines hold each other: left alone, thousands of them wait for a collection that hardly ever comes
            session.trajectories.clear()
            session.agents.clear()

    def _forget_line(self, t: Trajectory) -> None:
        self._disown(t, t.owned)
        self._leave(t, t.tips)
        t.owned, t.tips = array("q"), array("q")

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
