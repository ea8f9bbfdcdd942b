"""Vectors: unit length, a function of the text alone, nearer when words are shared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from probes.sim.embed import inputs_of, vector


def near(a: str, b: str) -> float:
    return sum(x * y for x, y in zip(vector(a, 256), vector(b, 256), strict=True))


def test_unit_length_and_repeatable() -> None:
    for text in ("a", "one two three", ""):
        assert math.hypot(*vector(text, 64)) == pytest.approx(1, abs=1e-6)
        assert vector(text, 64) == vector(text, 64)


def test_shared_words_are_near() -> None:
    assert near("the cat sat", "the cat ran") > near("the cat sat", "my port is closed") + 0.2


@pytest.mark.parametrize(
    ("value", "texts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ("", []), (None, []), ([], []), (3, None), ([3], None), ({}, None)],
)
def test_inputs(value: Any, texts: list[str] | None) -> None:
    assert inputs_of(value) == texts
