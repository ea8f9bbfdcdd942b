"""The simulated curves are what they say."""

from __future__ import annotations

import random

import pytest

from probes.audit.ladder import Design
from probes.audit.simulated import cliff, climb, dip, flat, slope


def test_curves() -> None:
    assert (cliff(1, 0, 10)(10), cliff(1, 0, 10)(11)) == (1, 0)
    assert (dip(1, 0, 5, 9)(4), dip(1, 0, 5, 9)(5), dip(1, 0, 5, 9)(10)) == (1, 0, 1)
    assert slope(1, 0, 1000, 4000)(2000) == pytest.approx(0.5)
    assert slope(1, 0, 1000, 4000)(8000) == 0
    assert flat(0.3)(9) == 0.3


def test_a_climb_counts_what_it_spends() -> None:
    made = climb(Design.quick((4096,)), flat(1.0), random.Random(1))
    assert (made.trials, made.tokens) == (12 + 7, 12 * 512 + 7 * 4096)
