from __future__ import annotations

import random

import pytest

from qm_proxy.detect.repetition import STEP, Repetition, Told, Verdict
from qm_proxy.findings import Finding


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


def test_of_many_candidates_the_longest_are_followed() -> None:
    """Lines that share their ends give a new candidate at every step; the true cycle must not be lost among them."""
    rng = random.Random(4)
    lines = [f"{noise(rng, 40 + i)} and so it went on as it had always done before\n" for i in range(24)]
    found = first(noise(rng, 200) + "".join(lines) * 10)
    assert found is not None
    assert found[1].period == sum(map(len, lines))


def test_probable_wants_prose_words_and_half_a_bar() -> None:
    rng = random.Random(5)
    sentence = "I will now open the file and look at the second function again. "

    def probable(text: str) -> bool:
        repetition = Repetition("text")
        for step in steps(text):
            repetition.step(step)
        return repetition.probable() is not None

    assert probable(noise(rng, 300) + sentence * 3)
    assert not probable(noise(rng, 300) + sentence * 2)
    assert not probable("```python\n" + "total = total + row[1]\n" * 6)
    assert not probable("-" * 500)


def test_a_near_loop_is_settled_with_what_was_new_in_it() -> None:
    rng = random.Random(6)
    words = [noise(rng, 6).replace(" ", "x") for _ in range(12)]
    repetition = Repetition("text")
    pairs = ((rng.choice(words), rng.choice(words)) for _ in range(120))
    text = "".join(f"The colour of the {a} house at the end of the street is {b}. " for a, b in pairs)
    finding = Finding("loop.token", "suspect", "x", 1, {})
    for step in steps(text):
        verdict = repetition.step(step)
        if verdict is not None and repetition.is_news(verdict):
            assert verdict.form == "near"
            repetition.told.append(Told(finding, verdict, repetition.seen))
    repetition.settle(0.25, None, 0)
    assert finding.tokens_wasted is not None
    assert len(text) * 0.25 * 0.6 < finding.tokens_wasted < len(text) * 0.25
