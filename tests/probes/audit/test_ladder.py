"""Verdicts on known curves, error rates in process, and every way a rung can be invalid."""

from __future__ import annotations

import random

import pytest

from probes.audit.ladder import AskHeader, AskLate, AskTrial, Design, Ladder
from probes.audit.simulated import LOSS, RUNGS, cliff, climb, coverage, dip, false_loss, flat, slope
from probes.stats.intervals import upper_limit


def drive(design: Design, answer) -> Ladder:  # type: ignore[no-untyped-def]
    ladder = Ladder(design)
    steps = ladder.run()
    try:
        step = next(steps)
        while True:
            step = steps.send(answer(step))
    except StopIteration:
        return ladder


@pytest.mark.parametrize("rate", [0.90, 0.95, 1.0])
@pytest.mark.parametrize("design", [Design.standard(RUNGS), Design.quick(RUNGS)], ids=["standard", "quick"])
def test_false_losses_are_rare(design: Design, rate: float) -> None:
    assert false_loss(design, rate, 400, 3) <= 0.02


def test_claimed_intervals_hold_the_planted_cliff() -> None:
    hits, claimed = coverage(200, 5)
    assert claimed >= 190
    assert upper_limit(hits, claimed) >= 0.95


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (flat(1.0), {"limit not reached"}),
        (cliff(1.0, 0.1, 10_000), {"cliff"}),
        (dip(1.0, 0.1, 6000, 12_000), {"non-monotone"}),
        (slope(0.97, 0.10, 2048, 65536), {"gradual decline", "cliff", "inconclusive"}),
        (flat(0.2), {"unusable baseline"}),
    ],
)
def test_verdicts(truth, expected: set[str]) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(1)
    assert {climb(Design.standard(RUNGS), truth, draw).verdict.kind for _ in range(20)} <= expected


def test_a_gradual_decline_is_mostly_named_so() -> None:
    draw = random.Random(2)
    kinds = [climb(Design.standard(RUNGS), slope(0.97, 0.10, 2048, 65536), draw).verdict.kind for _ in range(150)]
    assert kinds.count("gradual decline") >= 0.35 * len(kinds)


def test_bisection_narrows_the_interval() -> None:
    verdict = climb(Design.standard(RUNGS), cliff(1.0, 0.0, 10_000), random.Random(1)).verdict
    assert verdict.between is not None
    low, high = verdict.between
    assert low <= 10_000 <= high
    assert high / low <= 1.25
    assert verdict.maintained == low


def test_quick_tests_the_top_first_and_says_what_it_assumes() -> None:
    asked: list[int] = []

    def right(step) -> bool:  # type: ignore[no-untyped-def]
        asked.append(step.target)
        return True

    ladder = drive(Design.quick((1024, 8192)), right)
    assert set(asked) == {512, 8192}
    assert asked.count(512) == 12
    assert asked.count(8192) == 7  # six trials and the header
    verdict = ladder.verdict()
    assert (verdict.kind, verdict.assuming_monotone, verdict.maintained) == ("limit not reached", True, 8192)


def test_a_lost_header_with_living_late_facts_is_truncation() -> None:
    def cut(step) -> bool:  # type: ignore[no-untyped-def]
        return step.target <= 2048 or (isinstance(step, AskLate))

    ladder = drive(Design.standard((1024, 2048, 4096)), cut)
    assert ladder.verdict().kind == "invalid"
    assert ladder.rungs[4096].header_lost


def test_a_lost_header_with_dead_late_facts_is_forgetting() -> None:
    ladder = drive(Design.standard((1024, 2048, 4096)), lambda step: step.target <= 2048)
    assert ladder.verdict().kind == "cliff"
    assert not ladder.rungs[4096].header_lost


def test_a_header_found_at_last_clears_the_server() -> None:
    def answer(step) -> bool:  # type: ignore[no-untyped-def]
        if isinstance(step, AskHeader):
            return step.index == 4 or step.target < 4096
        return isinstance(step, AskLate) or step.target < 4096

    assert drive(Design.standard((1024, 2048, 4096)), answer).verdict().kind == "cliff"


def test_invalid_trials_are_no_wrong_answers() -> None:
    ladder = drive(
        Design.standard((1024, 2048)), lambda step: None if step.target == 2048 and isinstance(step, AskTrial) else True
    )
    verdict = ladder.verdict()
    assert (verdict.kind, verdict.maintained) == ("invalid", 1024)
    assert ladder.rungs[2048].n == 0
    baseline = drive(Design.standard((1024,)), lambda step: None)
    assert baseline.verdict().kind == "invalid"


def test_an_undecided_rung_says_how_many_more() -> None:
    flips = iter([True, True, False, True] * 1000)
    ladder = drive(
        Design.standard((4096,)), lambda step: next(flips) if step.target == 4096 and isinstance(step, AskTrial) else True
    )
    verdict = ladder.verdict()
    if verdict.kind == "inconclusive":
        assert verdict.between == (512, 4096)
    assert verdict.kind in ("inconclusive", "cliff")


def test_nothing_asked_yet_is_inconclusive_and_stopping_early_keeps_what_holds() -> None:
    assert Ladder(Design.standard((1024, 2048))).verdict().kind == "inconclusive"
    ladder = Ladder(Design.standard((1024, 2048)))
    steps = ladder.run()
    step = next(steps)
    while not (isinstance(step, AskTrial) and step.target == 2048):
        step = steps.send(True)
    assert (ladder.verdict().kind, ladder.verdict().maintained) in (("inconclusive", 1024), ("maintained", 1024))


def test_no_rungs_above_the_base() -> None:
    verdict = drive(Design.standard(()), lambda step: True).verdict()
    assert (verdict.kind, verdict.maintained) == ("maintained", 512)
    assert drive(Design.quick(()), lambda step: True).verdict().kind == "maintained"


def test_a_paired_design_asks_a_fixed_number_whatever_the_answers() -> None:
    for rate in (0.5, 1.0):
        draw = random.Random(1)
        count = [0]

        def answer(step, rate: float = rate, draw: random.Random = draw, count: list[int] = count) -> bool:  # type: ignore[no-untyped-def]
            count[0] += 1
            return step.target == 512 or draw.random() < rate

        drive(Design.paired((2048, 4096), 512, 10), answer)
        assert count[0] == 30


def test_the_losses_are_verdicts() -> None:
    assert set(LOSS) == {"cliff", "gradual decline", "non-monotone"}
