"""Facts are fresh, hard to guess, and the paraphrase shares no content word with its question."""

from __future__ import annotations

import math

import pytest

from probes.audit.facts import CODE_FORM, FAMILIES, NUMBER_FORM, make_trial, secret_code, shared_words
from probes.padding import REGISTERS, fill


@pytest.mark.parametrize("family", FAMILIES)
def test_an_instance_is_a_function_of_its_seed(family) -> None:  # type: ignore[no-untyped-def]
    assert make_trial(family, 1) == make_trial(family, 1)
    assert make_trial(family, 1) != make_trial(family, 2)


def test_codes_have_more_than_twenty_bits_and_their_form() -> None:
    import random

    draw = random.Random(1)
    codes = {secret_code(draw) for _ in range(2000)}
    assert len(codes) == 2000
    assert all(CODE_FORM.fullmatch(code) for code in codes)
    assert math.log2(26**7) > 20
    assert math.log2(9_000_000) > 20


@pytest.mark.parametrize("seed", range(60))
def test_a_paraphrase_shares_no_content_word_with_its_fact(seed: int) -> None:
    trial = make_trial("paraphrase", seed)
    for needle in trial.needles:
        assert not shared_words(needle.text, trial.question), needle.text


def test_a_literal_question_does_share_words() -> None:
    trial = make_trial("literal", 1)
    assert {"rollback", "service"} <= shared_words(trial.needles[0].text, trial.question)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("absent", "header")])
def test_the_answer_stands_in_the_needles_and_nothing_wrong_equals_it(family) -> None:  # type: ignore[no-untyped-def]
    for seed in range(20):
        trial = make_trial(family, seed)
        assert any(trial.answer in needle.text for needle in trial.needles)
        assert trial.answer not in (*trial.distractors, *trial.stale)
        assert trial.form.fullmatch(trial.answer)


def test_an_absent_fact_is_absent() -> None:
    trial = make_trial("absent", 3)
    assert trial.answer == ""
    asked = trial.question.split()[-1].rstrip("?")
    assert all(asked not in needle.text for needle in trial.needles)
    assert len(trial.distractors) == 4


@pytest.mark.parametrize("register", REGISTERS)
def test_padding_contains_nothing_of_a_secrets_form(register) -> None:  # type: ignore[no-untyped-def]
    text = "".join(fill(register, 5, 200_000))
    assert not CODE_FORM.search(text.upper())
    assert not NUMBER_FORM.search(text)
