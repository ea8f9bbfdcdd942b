from __future__ import annotations

import random
import zlib
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qm_proxy.measure import series
from qm_proxy.measure.series import (
    RESOLUTION_NS,
    UNKNOWN,
    Arrivals,
    Lags,
    coalesced,
    pack,
    pack_lags,
    resolution_ns,
    unpack,
    unpack_lags,
    written,
)

GAPS = st.lists(st.one_of(st.just(0), st.integers(0, 50_000), st.integers(0, 2_000_000_000), st.integers(0, 10**14)), max_size=80)
LAGS = st.lists(st.one_of(st.just(UNKNOWN), st.integers(0, 100_000), st.integers(0, 10**13)), max_size=80)
RESOLUTIONS = st.sampled_from([1_000, 20_000, 50_000, 100_000])


def summed(first: int, gaps: list[int]) -> list[int]:
    times = [first]
    for gap in gaps:
        times.append(times[-1] + gap)
    return times


@given(st.integers(0, 10**13), st.integers(0, 10**12), GAPS, RESOLUTIONS)
def test_every_time_comes_back_within_half_a_step(zero: int, first: int, gaps: list[int], resolution: int) -> None:
    times = summed(zero + first, gaps)
    blob = pack(times, zero_ns=zero, resolution_ns=resolution)
    found = unpack(blob)
    assert len(found) == len(times)
    assert all(abs(f - (t - zero)) <= resolution // 2 for f, t in zip(found, times, strict=True))
    assert resolution_ns(blob) == resolution
    assert list(coalesced(blob)) == [i for i, (a, b) in enumerate(pairwise(times), 1) if a == b]


@given(GAPS, st.lists(st.integers(0, 30), max_size=20))
def test_it_does_not_matter_in_what_portions_the_times_came(gaps: list[int], sizes: list[int]) -> None:
    times = summed(5, gaps)
    portioned, told, at = Arrivals(), [], 0
    for size in [*sizes, len(times)]:
        told += portioned.extend(times[at : at + size])
        at += size
    assert portioned.n == len(times)
    assert portioned.blob() == pack(times)
    assert told == gaps
    assert list(portioned.coalesced()) == list(coalesced(pack(times)))


@given(LAGS, st.integers(0, 80), RESOLUTIONS)
def test_lags_come_back_and_the_unknown_stays_unknown(lags: list[int], cut: int, resolution: int) -> None:
    portioned = Lags(resolution)
    portioned.extend(lags[:cut])
    portioned.extend(lags[cut:])
    assert portioned.blob() == pack_lags(lags, resolution_ns=resolution)
    for found, lag in zip(unpack_lags(portioned.blob()), lags, strict=True):
        assert (found is None) == (lag == UNKNOWN)
        assert found is None or abs(found - lag) <= resolution // 2


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=60), st.integers(-(10**6), 10**6), st.integers(1, 60))
def test_times_that_run_back_are_held_and_never_break_it(times: list[int], zero: int, cut: int) -> None:
    held, floor = [], zero
    for t in times:
        floor = max(floor, t)
        held.append(floor)
    arrivals = Arrivals(zero)
    arrivals.extend(times[:cut])
    arrivals.extend(times[cut:])
    found = unpack(arrivals.blob())
    assert all(abs(f - (h - zero)) <= RESOLUTION_NS // 2 for f, h in zip(found, held, strict=True))


def test_the_error_does_not_add_up() -> None:
    times = [i * 16_666_667 for i in range(20_000)]
    assert abs(unpack(pack(times))[-1] - times[-1]) <= RESOLUTION_NS // 2


def test_written_is_arrival_plus_lag() -> None:
    arrival, lags = pack([40_000, 60_000, 60_000]), pack_lags([20_000, UNKNOWN, 0])
    assert written(arrival, lags) == [60_000, None, 60_000]
    with pytest.raises(ValueError, match="as many lags"):
        written(arrival, pack_lags([1]))


@pytest.mark.parametrize("rate", [20, 60, 200])
@pytest.mark.parametrize("jitter", [0.02, 0.05, 0.15])
def test_costs_no_more_than_two_bytes_a_token_at_ordinary_rates(rate: int, jitter: float) -> None:
    chance = random.Random(7)
    times = summed(400_000_000, [int(1e9 / rate * chance.lognormvariate(0, jitter)) for _ in range(999)])
    lags = [int(chance.lognormvariate(10.4, 0.5)) for _ in times]
    assert len(pack(times)) <= 2 * len(times)
    assert len(pack_lags(lags)) <= len(times)


def test_any_negative_lag_is_unknown() -> None:
    assert unpack_lags(pack_lags([-1, -(10**6), 20_000])) == [None, None, 20_000]


def test_the_bytes_are_the_same_on_every_machine() -> None:
    times = [0, 20_000, 40_000, 40_000, 40_000 + 20_000 * 0x1234, 10**12]
    little = pack(times)
    assert little == bytes.fromhex("0100140600" + "0101fe34ff" + "0000ff12ff" + "cabceb17")
    plain = unpack(little)
    with mock.patch.object(series, "_BIG_ENDIAN", True):  # codes come out swapped here, and are swapped back on the way in
        swapped = pack(times)
        assert swapped[5:15] == little[10:15] + little[5:10]
        assert unpack(swapped) == plain


def test_empty_and_single_series_are_a_few_bytes() -> None:
    assert unpack(pack([])) == []
    assert unpack_lags(pack_lags([])) == []
    assert list(coalesced(pack([]))) == []
    assert Arrivals().extend([]) == []
    assert len(pack([])) == 4
    assert unpack(pack([3_600_000_000_000])) == [3_600_000_000_000]
    assert len(pack([3_600_000_000_000])) <= 8


@pytest.mark.parametrize("step", [0xFFFD, 0xFFFE, 0xFFFF, 0x10000])
def test_the_longest_codes_and_the_shortest_escapes(step: int) -> None:
    times = [0, step * RESOLUTION_NS, step * RESOLUTION_NS + 1]
    assert unpack(pack(times)) == [0, step * RESOLUTION_NS, step * RESOLUTION_NS]
    assert list(coalesced(pack(times))) == []
    assert unpack_lags(pack_lags([step * RESOLUTION_NS])) == [step * RESOLUTION_NS]


@example(b"\x00" + b"\x80" * 8 + b"\x0b")  # a number of chunks beyond what any machine counts to
@given(st.binary(max_size=60))
def test_garbage_raises_nothing_but_value_errors(garbage: bytes) -> None:
    for reading in (unpack, unpack_lags, coalesced, resolution_ns):
        for blob in (garbage, b"\x01\x00" + garbage, b"\x01\x01" + garbage, b"\x01\x02" + garbage, b"\x01\x03" + garbage):
            try:
                reading(blob)
            except ValueError as exc:
                assert str(exc).startswith("Expected")  # noqa: PT017


def test_a_blob_of_another_version_or_kind_is_refused() -> None:
    for blob, reading in (
        (b"\x02" + pack([1, 2])[1:], unpack),
        (pack_lags([1]), unpack),
        (pack([1]), unpack_lags),
        (pack([0, 40_000, 99_000])[:-1], unpack),
        (pack([0, 40_000, 99_000]) + b"\x01", unpack),
        (pack([0, 10**13])[:-1], unpack),
        (pack([0, 10**13]) + b"\x00", unpack),
        (pack(range(0, 10**9, 10**6))[:-2], unpack),
        (b"\x01\x00\x80\x80", unpack),
    ):
        with pytest.raises(ValueError, match="Expected"):
            reading(blob)


def test_a_small_blob_cannot_unfold_into_a_large_one() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b"\x00" * 50_000_000) + packer.flush()
    with pytest.raises(ValueError, match="end of a deflated"):
        unpack(b"\x01\x01\x14\x05\x00" + bomb)


@pytest.mark.parametrize("resolution", [0, -1000, 500, 1500, 200_000])
def test_a_resolution_must_be_whole_microseconds_up_to_100(resolution: int) -> None:
    for build in (Arrivals, Lags):
        with pytest.raises(ValueError, match="microseconds"):
            build(resolution_ns=resolution)
