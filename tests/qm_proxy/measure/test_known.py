from __future__ import annotations

import gc
import sys

import pytest

from qm_proxy.measure.known import Known, Place, Session, Tip, scope_of
from qm_proxy.measure.trajectory import Marker


@pytest.fixture
def known() -> Known:
    return Known(Marker(b"k"), sessions=2, marks=100, live_s=60)


def _session(known: Known, name: str, t_ns: int = 0) -> Session:
    session = Session(name, "client")
    known.add(session)
    known.touch(session, t_ns)
    return session


def test_a_mark_belongs_to_who_had_it_last(known: Known) -> None:
    a, b = (known.line(_session(known, name), "start", None) for name in "ab")
    known.own(a, [1, 2])
    known.own(b, [2, 3])
    assert [known.owner(mark) for mark in (1, 2, 3, 4)] == [a, b, b, None]
    known.forget(b.session)
    assert [known.owner(mark) for mark in (1, 2, 3)] == [a, None, None]
    assert known.live == (1, 2)


def test_several_may_stand_at_one_point_and_each_but_once(known: Known) -> None:
    session = _session(known, "a")
    a, b = known.line(session, "start", None), known.line(session, "fork", None)
    known.stand(a, 7, "e1", 1, answered=False)
    known.stand(b, 7, "e2", 1, answered=False)
    known.stand(a, 7, "e3", 2, answered=True)
    assert known.standing(7) == [Tip(b, "e2", 1, False), Tip(a, "e3", 2, True)]
    known.forget(session)
    assert known.standing(7) == []


def test_lines_are_numbered_and_a_branch_takes_its_parents_context(known: Known) -> None:
    session = _session(known, "a")
    side = known.line(session, "side", None)
    main = known.line(session, "start", side)
    main.tools = True
    fork = known.line(session, "fork", main)
    assert [(t.number, t.parent) for t in (side, main, fork)] == [(1, None), (0, None), (2, main)]
    assert session.main is main
    assert fork.tools
    assert known.line(session, "start", main).number == 3  # there is one main line


def test_what_several_sessions_have_tells_nobody_apart(known: Known) -> None:
    a, b = (known.line(_session(known, name), "start", None) for name in "ab")
    known.begins_with(a, frozenset({1, 2}))
    assert known.shared({1, 2, 3}) == set()
    known.begins_with(b, frozenset({2, 3}))
    assert known.shared({1, 2, 3}) == {2}
    known.called(a, ["call_0", "call_abcdefgh"])
    assert known.caller("call_0") is None
    assert known.caller("call_abcdefgh") is a
    known.called(b, ["call_abcdefgh"])
    assert known.caller("call_abcdefgh") is None


def test_names_and_responses(known: Known) -> None:
    session = _session(known, "a")
    t = known.line(session, "start", None)
    name = known.name("client", "ses_1")
    known.call(session, name)
    known.responded("resp_1", Tip(t, "e1", 1, True), 42, list(range(1000)))
    assert known.named(name) is session
    assert known.name("client", "ses_1") != known.name("other", "ses_1")
    found = known.response("resp_1")
    assert found is not None
    assert (found[1], len(found[2])) == (42, 256)
    known.forget(session)
    assert known.named(name) is None
    assert known.response("resp_1") is None


def test_least_recently_used_sessions_go_first(known: Known) -> None:
    a, b, c = (_session(known, name, t_ns=i) for i, name in enumerate("abc"))
    known.touch(a, 5)
    known.evict(6)
    assert [s.gone for s in (a, b, c)] == [False, True, False]
    t = known.line(c, "start", None)
    known.own(t, range(200))
    known.evict(7)
    assert [s.gone for s in (a, c)] == [False, True]  # too many marks: the oldest goes, and with it its own
    known.evict(61 * 10**9)
    assert (a.gone, known.live, known.evicted) == (True, (0, 0), 3)


def test_what_is_forgotten_needs_no_collector(known: Known) -> None:
    """Session and lines name each other; a line that is still in flight keeps its session whole."""
    idle, busy = _session(known, "a"), _session(known, "b")
    line, open_one = known.line(idle, "start", None), known.line(busy, "start", None)
    open_one.open = 1
    gc.disable()
    try:
        held = sys.getrefcount(line)
        known.forget(idle)
        assert sys.getrefcount(line) == held - 1
    finally:
        gc.enable()
    known.forget(busy)
    assert busy.trajectories == [open_one]
    assert open_one.session.gone


def test_the_only_session_stays_however_large(known: Known) -> None:
    a = _session(known, "a")
    known.own(known.line(a, "start", None), range(500))
    known.evict(1)
    assert not a.gone


def test_what_is_distrusted_is_bounded(monkeypatch: pytest.MonkeyPatch, known: Known) -> None:
    monkeypatch.setattr("qm_proxy.measure.known._OWNED", 10)
    session = _session(known, "a")
    session.distrust(range(25))
    assert list(session.unproven) == list(range(15, 25))


def test_prompt_lengths_are_the_recent_ones(known: Known) -> None:
    for length in (*range(300), 5):
        known.prompted(length)
    lengths = list(known.prompt_lengths)
    assert len(lengths) == 256
    assert lengths[-1] == 5
    assert 44 not in lengths


def test_stored_places_of_several_lines_are_kept_apart(known: Known) -> None:
    known.resume("s", "c", "ses_1", [Place(0, "e1", 1, 11, 12, 5), Place(2, "e2", 1, 21, None, 6), Place(0, "e3", 2, 13, 14, 7)])
    session = known.named(known.name("c", "ses_1"))
    assert session is not None
    assert [(t.number, t.turn, t.tip, t.expected, t.exchange_id) for t in session.trajectories] == [
        (0, 2, 13, 14, "e3"),
        (2, 1, 21, None, "e2"),
    ]
    assert (session.next_number, session.last_ns) == (3, 7)
    assert [tip.answered for node in (11, 12, 13, 14, 21) for tip in known.standing(node)] == [False, True, False, True, False]


def test_scopes() -> None:
    assert scope_of("opencode", "opencode/1") == scope_of("opencode", "opencode/2")
    assert scope_of("unknown", "a") != scope_of("unknown", "b")
