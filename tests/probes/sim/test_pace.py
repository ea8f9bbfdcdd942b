"""The laws of time keep their stated means, spreads and rates."""

from __future__ import annotations

import math
import statistics
from itertools import islice
from random import Random

import pytest
from pydantic import ValidationError

from probes.sim.pace import MS, Coalesce, Decode, Gap, Load, Prefill, Speculative, Stalls


def gaps(decode: Decode, n: int, *, depth: int = 0, slower: float = 1.0) -> list[Gap]:
    return list(islice(decode.gaps(Random(1), depth, slower=slower), n))


def test_prefill_law() -> None:
    law = Prefill(fixed_ms=10, tokens_per_s=1000, curve_ms_per_kilotoken2=2)
    assert law.ms(1000, 0) == pytest.approx(10 + 1000 + 2)
    assert law.ms(4000, 0) == pytest.approx(10 + 4000 + 32)
    assert law.ms(4000, 3000) == pytest.approx(10 + 1000 + 2 * (16 - 9))
    assert law.ms(100, 100) == pytest.approx(10)
    noisy = [Prefill(fixed_ms=10, jitter=0.1).ms(1000, 0, Random(n)) for n in range(2000)]
    assert statistics.fmean(noisy) == pytest.approx(Prefill(fixed_ms=10).ms(1000, 0), rel=0.01)
    assert statistics.stdev(noisy) / statistics.fmean(noisy) == pytest.approx(0.1, rel=0.1)


def test_reload_takes_the_cold_time_unless_stated() -> None:
    assert Load(cold_ms=300).reload == 300
    assert Load(cold_ms=300, reload_ms=120).reload == 120


@pytest.mark.parametrize(
    "decode",
    [
        Decode(token_ms=10),
        Decode(token_ms=10, jitter="lognormal", spread=0.3),
        Decode(token_ms=10, jitter="gamma", spread=0.5),
        Decode(token_ms=10, jitter="even", spread=0.28),
        Decode(token_ms=10, speculative=Speculative(drafted=4, accepted=0.7)),
        Decode(token_ms=10, speculative=Speculative(drafted=3, accepted=1.0)),
        Decode(token_ms=10, jitter="lognormal", spread=0.2, coalesce=Coalesce(share=0.3)),
    ],
)
def test_the_stated_mean_is_kept(decode: Decode) -> None:
    found = [g.ns / MS for g in gaps(decode, 40_000)]
    assert statistics.fmean(found) == pytest.approx(10, rel=0.02)
    if decode.spread and not decode.speculative.drafted:
        assert statistics.stdev(found) / 10 == pytest.approx(decode.spread, rel=0.05)


def test_depth_and_spilling_slow_down() -> None:
    deep = Decode(token_ms=10, per_1k_depth_ms=0.5)
    assert gaps(deep, 1, depth=8000)[0].ns == pytest.approx(14 * MS)
    assert gaps(deep, 1001)[1000].ns == pytest.approx(10.5 * MS)
    assert gaps(Decode(token_ms=10), 1, slower=6)[0].ns == pytest.approx(60 * MS)


def test_stalls_at_places_periods_and_rates() -> None:
    placed = gaps(Decode(token_ms=10, stalls=Stalls(at=(3,), every=5, ms=100)), 12)
    assert [n for n, g in enumerate(placed) if g.stall_ns] == [3, 5, 10]
    assert placed[3].ns == pytest.approx(110 * MS)
    random = gaps(Decode(token_ms=10, stalls=Stalls(per_1000=10, ms=50, ms_to=150)), 50_000)
    hits = [g.stall_ns / MS for g in random if g.stall_ns]
    assert len(hits) == pytest.approx(500, rel=0.15)
    assert 50 <= min(hits) < max(hits) <= 150
    assert statistics.fmean(hits) == pytest.approx(100, rel=0.05)


def test_coalescing_is_bounded() -> None:
    held = [g.hold for g in gaps(Decode(coalesce=Coalesce(share=0.9, most=3)), 5000)]
    runs = "".join("h" if h else "." for h in held).split(".")
    assert max(map(len, runs)) == 2
    assert sum(held) > 2500


def test_even_jitter_has_its_mean_in_any_run_and_no_tail() -> None:
    found = [g.ns / MS for g in gaps(Decode(token_ms=10, jitter="even", spread=0.28), 3000)]
    for start in range(0, 2600, 97):
        assert abs(sum(found[start : start + 313]) - 3130) <= 10 * 0.28 * math.sqrt(3) * 2
    assert 5 < min(found) < max(found) < 15


def test_jitter_must_be_named() -> None:
    with pytest.raises(ValidationError, match="at most"):
        Decode(jitter="even", spread=0.6)
    with pytest.raises(ValidationError, match="spread needs jitter"):
        Decode(spread=0.1)
