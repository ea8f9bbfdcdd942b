from __future__ import annotations

import random

import pytest

from qm_proxy.detect.repetition import STEP, Repetition, Verdict


def steps(text: str) -> list[str]:
    return [text[i : i + STEP] for i in range(0, len(text), STEP)]


def first(text: str) -> tuple[int, Verdict] | None:
    repetition = Repetition("text")
    for step in steps(text):
        verdict = repetition.step(step)
        if verdict is not None:
            return repetition.seen, verdict
    return None


def noise(rng: random.Random, n: int) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz    .,") for _ in range(n))


@pytest.mark.parametrize("period", [1, 2, 7, 30, 31, 32, 62, 93, 100, 511, 512, 600, 2000, 4000])
def test_every_period_is_found_primitive_and_at_its_place(period: int) -> None:
    rng = random.Random(period)
    before, unit = noise(rng, 500), noise(rng, period - 1) + "§"
    found = first(before + unit * (20_000 // period + 4))
    assert found is not None
    seen, verdict = found
    assert verdict.form == "exact"
    assert verdict.period == period
    assert len(before) - 1 <= verdict.offset <= len(before)
    assert verdict.characters == seen - verdict.offset >= verdict.needed


def test_a_unit_that_repeats_within_itself() -> None:
    rng = random.Random(1)
    lines = [noise(rng, 20) + " and it was done without any trouble at all.\n" for _ in range(6)]
    found = first(noise(rng, 300) + "".join(lines) * 12)
    assert found is not None
    assert found[1].period == sum(map(len, lines))


def test_what_breaks_a_cycle_ends_it() -> None:
    rng = random.Random(2)
    unit = noise(rng, 120)
    assert first("".join(unit * 2 + noise(rng, 50) for _ in range(12))) is None


def test_numbers_fold_over_the_edge_of_a_step() -> None:
    for shift in range(STEP):
        text = "x" * shift + " " + "".join(f"Attempt {i * 997}: no answer from the server, trying again. " for i in range(60))
        found = first(text)
        assert found is not None
        assert found[1].form == "counter"


def test_the_excerpt_of_a_giant_unit_and_the_window_are_bounded() -> None:
    rng = random.Random(3)
    unit = noise(rng, 7_000)
    repetition = Repetition("text")
    verdicts = [verdict for step in steps(unit * 5) if (verdict := repetition.step(step)) is not None]
    assert verdicts
    assert len(repetition._text) <= 12_288
    assert len(repetition._folded) <= 12_288
    assert len(repetition._unfolded) <= 256
