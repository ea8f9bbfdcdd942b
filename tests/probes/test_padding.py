"""Padding: 200 kB and more of each register without a repeated sentence, the same for the same seed."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.padding import REGISTERS, Register, fill, invented_name, nonce, repetition


@pytest.mark.parametrize("register", REGISTERS)
def test_a_quarter_megabyte_repeats_no_sentence(register: Register) -> None:
    text = "".join(fill(register, 7, 250_000))
    assert len(text.encode()) >= 200_000
    if register == "code":
        sentences = re.findall(r"def \w+\([^)]*\)", text)
    else:
        sentences = [s for s in re.split(r"\n|(?<=\.)\s", text) if len(s) > 25]
    assert len(sentences) > 900
    assert len(sentences) == len(set(sentences))
    assert repetition(text) <= 0.02


def test_looped_padding_would_be_found_out() -> None:
    assert repetition("".join(fill("policy", 1, 2600)) * 15) > 0.9


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(REGISTERS), st.integers(0, 9), st.integers(0, 5000))
def test_fill_has_exactly_the_length_asked_for(register: Register, seed: int, n: int) -> None:
    text = "".join(fill(register, seed, n))
    assert len(text) == n
    assert text == "".join(fill(register, seed, n))


def test_seeds_differ() -> None:
    assert fill("logs", 1, 500) != fill("logs", 2, 500)


def test_names_and_nonces_are_fresh() -> None:
    draw = random.Random(1)
    assert len({invented_name(draw) for _ in range(1000)}) > 950
    assert len({nonce(draw) for _ in range(1000)}) == 1000
    assert repetition("") == 0.0
