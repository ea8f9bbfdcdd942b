"""The ruler's own bookkeeping; the whole selftest is a command that CI runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from probes.selftest import SelfTest, _audit, _cliff_check, _coverage, _rates, _reader, _word_of
from probes.stats.intervals import clopper_pearson


def test_within_and_exit_code() -> None:
    test = SelfTest()
    assert (test.ok, test.exit_code) == (False, 1)
    test.number("a", 100.0, 101.9, "ms")
    test.number("b", 0.5, 1.4, "ms", floor=1.0)
    test.word("c", "x", "x")
    test.bound("d", 0.02, 0.01, "share")
    assert (test.ok, test.exit_code) == (True, 0)
    spoils: tuple[Callable[[SelfTest], None], ...] = (
        lambda t: t.number("a", 100.0, 102.1, "ms"),
        lambda t: t.number("a", 100.0, None, "ms"),
        lambda t: t.word("c", "x", "y"),
        lambda t: t.word("c", "x", None),
        lambda t: t.bound("d", 0.02, 0.03, "share"),
    )
    for spoil in spoils:
        worse = SelfTest(checks=list(test.checks))
        spoil(worse)
        assert (worse.ok, worse.exit_code) == (False, 1)


def test_the_json_is_contracts() -> None:
    test = SelfTest()
    test.number("a", 100.0, 101.0, "ms")
    assert test.as_json() == [{"name": "a", "planted": 100.0, "found": 101.0, "error": 1.0, "unit": "ms", "within": True}]


def test_error_rates_hold_in_process() -> None:
    test = SelfTest()
    _rates(test, 1, 200)
    assert test.ok, [check for check in test.checks if not check.within]


def test_a_planted_cliff_is_checked_over_sockets() -> None:
    test = SelfTest()
    result = asyncio.run(_audit(_reader("m", law="cliff", base=1.0, floor=0.0, at=3000), 2))
    _cliff_check(test, "cliff", 3000, result)
    _cliff_check(test, "elsewhere", 6000, result)
    _word_of(test, "verdict", "cliff", result)
    assert [check.within for check in test.checks] == [True, False, True]


def test_exact_coverage_is_exact() -> None:
    assert _coverage(clopper_pearson, 1, 0.5) == pytest.approx(1.0)
