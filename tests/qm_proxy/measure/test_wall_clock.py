from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.measure.wall_clock import WallClock, iso, unix_ns_of_iso

SECOND = 1_000_000_000


def test_follows_drift_and_tells_a_sleep_and_a_clock_that_was_set() -> None:
    clock = WallClock(100 * SECOND, 5_000 * SECOND)
    assert clock.unix_ns(101 * SECOND) == 5_001 * SECOND
    assert clock.look(101 * SECOND, 5_001 * SECOND + 400_000) == 0
    assert clock.unix_ns(101 * SECOND) == 5_001 * SECOND + 400_000
    assert clock.look(102 * SECOND, 8_602 * SECOND + 400_000) == 3_600 * SECOND
    assert clock.look(103 * SECOND, 8_603 * SECOND + 400_000) == 0
    assert clock.look(104 * SECOND, 8_504 * SECOND + 400_000) == -100 * SECOND


def test_an_instant_is_utc_with_six_decimals() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000000Z"
    assert iso(1_795_521_600_123_456_789) == "2026-11-24T12:00:00.123456Z"


@given(st.integers(0, 4_000_000_000_000_000))
def test_instants_come_back(microseconds: int) -> None:
    assert unix_ns_of_iso(iso(microseconds * 1000)) == microseconds * 1000


@given(st.lists(st.integers(0, 2**61), min_size=2, max_size=2))
def test_instants_sort_as_text(pair: list[int]) -> None:
    assert (iso(pair[0]) <= iso(pair[1])) == (pair[0] // 1000 <= pair[1] // 1000)


@pytest.mark.parametrize("text", ["2026-11-24T13:00:00+01:00", "2026-11-24T12:00:00", " 2026-11-24T12:00:00Z "])
def test_reads_what_people_write(text: str) -> None:
    assert unix_ns_of_iso(text) == 1_795_521_600 * SECOND


@pytest.mark.parametrize("text", ["", "yesterday", "1795521600.5", "2026-13-01"])
def test_refuses_what_is_no_instant(text: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        unix_ns_of_iso(text)
