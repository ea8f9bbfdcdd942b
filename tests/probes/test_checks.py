"""What counts as within, and how it is told to a person and to a program."""

from __future__ import annotations

from collections.abc import Callable

from probes.checks import SelfTest


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


def test_a_line_says_expected_found_and_error() -> None:
    test = SelfTest()
    test.number("load", 640.0, 641.6, "ms")
    test.word("verdict", "cliff", "maintained")
    test.bound("false cliffs", 0.02, 0.03, "share")
    test.share("intervals that hold", 0.95, 199, 200)
    assert [check.words for check in test.checks] == [
        "ok  load: planted 640, found 641.6 ms, error +1.6 (+0.25%)",
        "OUT verdict: planted cliff, found maintained",
        "OUT false cliffs: at most 0.02, found 0.03 share",
        "ok  intervals that hold (199 of 200): at least 0.95, found 0.995 share",
    ]


def test_the_json_is_contracts() -> None:
    test = SelfTest()
    test.number("a", 100.0, 101.0, "ms")
    assert test.as_json() == [{"name": "a", "planted": 100.0, "found": 101.0, "error": 1.0, "unit": "ms", "within": True}]
