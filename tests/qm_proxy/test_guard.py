from __future__ import annotations

import pytest

from qm_proxy.detect.token_loop import CutPoint, TokenLoop
from qm_proxy.events import Began, Dialect, Event, Nanoseconds, TextDelta, ThinkingDelta, ToolArguments, ToolCall
from qm_proxy.guard import CUTS, PERIOD_NS, Guard, GuardWatch


def at(n: int) -> Nanoseconds:
    return Nanoseconds(n)


class Orders:
    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.given: list[tuple[str, str]] = []

    def __call__(self, exchange_id: str, said: str) -> bool:
        self.given.append((exchange_id, said))
        return self.answer


class Watched:
    """A watch behind a TokenLoop that is told, not computed, to have found its loop: `loops()`."""

    def __init__(self, dialect: Dialect = "ollama", orders: Orders | None = None, guard: Guard | None = None) -> None:
        self.orders = orders or Orders()
        self.guard = guard or Guard(self.orders)
        self.loop = TokenLoop()
        self.watch = GuardWatch(self.guard, self.loop, "x1", "m", dialect)

    def see(self, *events: Event) -> None:
        for event in events:
            assert list(self.watch.see(event)) == []

    def loops(self) -> None:
        self.loop.cut = CutPoint(5, "text", 2.0)


def test_a_proven_loop_is_ended_once() -> None:
    w = Watched()
    w.see(Began(at(1), "m", None), TextDelta(at(2), "la "))
    assert w.orders.given == []
    w.loops()
    w.see(TextDelta(at(3), "la "), TextDelta(at(4), "la "))
    assert w.orders.given == [("x1", "")]
    assert w.guard.status() == {"cuts": 1, "refused": 0, "held_back": 0}


def test_with_its_real_loop_detector() -> None:
    w = Watched()
    for n in range(3000):
        delta = TextDelta(at(n), "I will now check the file again. ")
        list(w.loop.see(delta))
        w.see(delta)
        if w.orders.given:
            break
    assert w.orders.given == [("x1", "")]
    assert w.loop.cut is not None


def test_thinking_counts_as_well() -> None:
    w = Watched()
    w.loops()
    w.see(ThinkingDelta(at(3), "hm "))
    assert len(w.orders.given) == 1


def test_only_the_dialect_whose_end_repeats_it_keeps_what_was_said() -> None:
    w = Watched("openai-responses")
    w.see(TextDelta(at(2), "once "), ThinkingDelta(at(2), "and "))
    w.loops()
    w.see(TextDelta(at(3), "again"))
    assert w.orders.given == [("x1", "once and again")]


def test_an_answer_too_long_to_repeat_is_let_run() -> None:
    w = Watched("openai-responses")
    w.see(TextDelta(at(2), "x" * (1024 * 1024 + 1)))
    w.loops()
    w.see(TextDelta(at(3), "again"))
    assert w.orders.given == []


@pytest.mark.parametrize(
    "event",
    [
        Began(at(1), "m", None, "ollama.example"),
        ToolCall(at(1), 0, "c", "bash", "{}"),
        ToolArguments(at(1), 0, "{"),
    ],
)
def test_never_from_the_cloud_and_never_with_a_call(event: Event) -> None:
    w = Watched()
    w.see(event)
    w.loops()
    w.see(TextDelta(at(2), "la "))
    assert w.orders.given == []


def test_a_model_has_so_many_cuts_in_a_period() -> None:
    orders = Orders()
    guard = Guard(orders)
    for n in range(CUTS + 2):
        guard.cut(f"x{n}", "m", "", at(n))
    assert (guard.cuts, guard.held_back, len(orders.given)) == (CUTS, 2, CUTS)
    assert not guard.may_cut("m", at(PERIOD_NS))
    assert guard.may_cut("other", at(10))
    assert guard.may_cut("m", at(PERIOD_NS + 1))
    guard.cut("y", "m", "", at(PERIOD_NS + 1))
    assert guard.cuts == CUTS + 1


def test_a_loop_that_is_let_run_is_told_with_the_remedy() -> None:
    orders = Orders()
    guard = Guard(orders)
    for n in range(CUTS):
        assert guard.cut(f"x{n}", "m", "", at(n))
    w = Watched(orders=orders, guard=guard)
    w.loops()
    (finding,) = w.watch.see(TextDelta(at(CUTS), "la "))
    assert (finding.kind, finding.severity, finding.evidence["held_back"]) == ("loop.token", "info", True)
    assert "qm-proxy doctor --unhang m" in finding.summary
    assert list(w.watch.see(TextDelta(at(CUTS + 1), "la "))) == [], "once for an answer"
    assert len(orders.given) == CUTS


def test_an_order_that_could_not_be_given_is_no_cut() -> None:
    guard = Guard(Orders(answer=False))
    for n in range(CUTS + 2):
        guard.cut("x", "m", "", at(n))
    assert guard.status() == {"cuts": 0, "refused": CUTS + 2, "held_back": 0}
