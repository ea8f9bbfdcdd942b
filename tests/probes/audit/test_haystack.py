"""Prompts have the length asked for, the facts at their depths, the question last; the law of tokens is learned."""

from __future__ import annotations

import random

import pytest

from probes.audit.facts import FAMILIES, make_trial
from probes.audit.haystack import Calibration, build
from probes.audit.solver import NOT_STATED, solve
from probes.padding import REGISTERS

HEADER = "2222-333"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("instruction", "header")])
@pytest.mark.parametrize("register", REGISTERS)
def test_every_family_is_solvable_from_its_prompt_alone(family, register) -> None:  # type: ignore[no-untyped-def]
    for seed in range(6):
        trial = make_trial(family, seed)
        prompt = build(trial, register, 9000, seed, header=HEADER, stratum=seed % 5)
        assert len(prompt.text) == 9000
        assert prompt.text.rstrip().endswith("Answer:")
        key = solve(prompt.text)
        assert key is not None
        assert key.answer == (trial.answer or NOT_STATED)
        assert key.header == HEADER
        assert set(key.others) | set(key.stale) >= set(trial.distractors) | set(trial.stale)


@pytest.mark.parametrize("stratum", range(5))
def test_the_fact_lies_in_its_stratum(stratum: int) -> None:
    trial = make_trial("literal", 1)
    for seed in range(8):
        text = build(trial, "policy", 20_000, seed, header=HEADER, stratum=stratum).text
        place = text.index(trial.answer) / len(text)
        assert stratum / 5 - 0.03 <= place <= (stratum + 1) / 5 + 0.05


def test_a_revision_comes_after_what_it_revises() -> None:
    for seed in range(10):
        trial = make_trial("conflict", seed)
        text = build(trial, "logs", 12_000, seed, header=HEADER, stratum=seed % 5).text
        assert text.index(trial.stale[0]) < text.index(trial.answer)


def test_a_chain_is_spread_out() -> None:
    trial = make_trial("chain", 4)
    text = build(trial, "ledger", 30_000, 4, header=HEADER).text
    places = sorted(text.index(needle.text) for needle in trial.needles)
    assert places[-1] - places[0] > 3000


def test_facts_longer_than_the_wanted_length_are_kept_whole() -> None:
    trial = make_trial("multikey", 2)
    text = build(trial, "policy", 100, 2, header=HEADER).text
    assert all(needle.text in text for needle in trial.needles)


def test_the_instruction_stands_in_the_padding_and_is_solvable() -> None:
    trial = make_trial("instruction", 9)
    key = solve(build(trial, "policy", 4000, 9, header=HEADER, depth=0.5).text)
    assert key is not None
    assert trial.answer in key.answer
    assert solve("What is the capital of France?") is None


def test_calibration_learns_an_affine_law_and_hits_one_percent() -> None:
    draw = random.Random(3)
    law = Calibration()
    assert law.law("policy") == (0.0, 0.25)

    def count(characters: int) -> int:
        return round(37 + characters / 4.7 * draw.gauss(1, 0.002))

    for characters in (1000, 4000):
        law.learn("policy", characters, count(characters))
    for target in (512, 8192, 65536):
        characters = law.characters("policy", target)
        tokens = count(characters)
        assert abs(tokens - target) <= max(16, 0.01 * target)
        law.learn("policy", characters, tokens)
    assert law.expected("logs", 1000) == pytest.approx(37 + 1000 / 4.7, rel=0.05)


def test_one_size_gives_a_rate_and_many_points_are_bounded() -> None:
    law = Calibration()
    for _ in range(100):
        law.learn("code", 1000, 300)
    assert list(law.law("code")) == pytest.approx([0.0, 0.3])
    assert len(law.points["code"]) == 40
    assert law.tolerance("code", 100) == 16.0
