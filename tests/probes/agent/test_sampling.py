from __future__ import annotations

from random import Random

import pytest

from probes.agent.sampling import CAP, LEAST, gate_for, goes_on_after_loop, instance_seed
from probes.agent.tiers import TIERS, Tier, tier_named
from probes.stats.intervals import clopper_pearson, lower_limit
from probes.stats.repeats import streak_interval


def _decide(gate: object, p: float, random: Random) -> tuple[str, int, int]:
    passed = n = 0
    while (decision := gate.decide(passed, n)) is None:  # type: ignore[attr-defined]
        n += 1
        passed += random.random() < p
    return decision, passed, n


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
def test_the_gate_errs_as_rarely_as_it_says(tier: Tier) -> None:
    gate, random, paths = gate_for(tier), Random(1), 2000
    wrong = {
        "FAIL": sum(_decide(gate, tier.p1, random)[0] == "FAIL" for _ in range(paths)),
        "CLEAR": sum(_decide(gate, tier.p0, random)[0] == "CLEAR" for _ in range(paths)),
    }
    print(f"{tier.name}: a good model fails {wrong['FAIL']} of {paths}, a bad one clears {wrong['CLEAR']}")
    assert max(wrong.values()) <= 0.06 * paths


@pytest.mark.parametrize("design", [{}, {"strict": True}, {"quick": True}], ids=["sequential", "strict", "quick"])
def test_intervals_cover_on_2000_simulated_models(design: dict[str, bool]) -> None:
    """Each model has a pass rate of its own; the interval of what its gate saw must hold it, however the sample stopped."""
    random, models = Random(2), 2000
    covered = covered_k = 0
    for index in range(models):
        gate = gate_for(TIERS[index % 4], **design)
        p = random.random() if index % 2 else 1 - 0.4 * random.random()
        _, passed, n = _decide(gate, p, random)
        covered += (found := clopper_pearson(passed, n)).lo <= p <= found.hi
        covered_k += (power := streak_interval(passed, n, gate.k)).lo <= p**gate.k <= power.hi
    print(f"{design or 'sequential'}: {covered} and {covered_k} of {models} covered at 95 %")
    for seen in (covered, covered_k):
        assert clopper_pearson(seen, models, 0.99).hi >= 0.95  # not significantly below nominal


def test_a_gate_has_its_floor_and_cap() -> None:
    gate = gate_for(tier_named("hard"))
    assert gate.decide(0, LEAST - 1) is None
    assert gate.decide(0, LEAST) == "FAIL"
    assert gate.decide(12, 12) == "CLEAR"
    assert gate.decide(52, CAP) == "UNDECIDED"
    assert gate_for(tier_named("hard"), quick=True).decide(0, 4) == "FAIL"


def test_strict_k_is_exactly_k() -> None:
    gate = gate_for(tier_named("hard"), strict=True)
    assert [gate.decide(n, n) for n in (15, 16)] == [None, "CLEAR"]
    assert gate.decide(3, 4) is None
    assert gate.decide(15, 16) == "FAIL"
    assert gate_for(tier_named("hard"), strict=True, quick=True).decide(3, 4) == "FAIL"
    assert gate_for(tier_named("hard"), strict=True, k=3).decide(3, 3) == "CLEAR"


def test_all_passed_proves_less_than_it_seems() -> None:
    """Whatever k: with n = k and all passed, the two-sided 95 % lower limit of pass^k is 0.025."""
    for k in (5, 8, 16, 24):
        assert streak_interval(k, k, k).lo == pytest.approx(0.025)
    assert lower_limit(16, 16) == pytest.approx(0.829, abs=1e-3)


def test_instances_are_paired_by_seed_and_differ_by_index() -> None:
    first = [instance_seed(5, "hard", index) for index in range(64)]
    assert first == [instance_seed(5, "hard", index) for index in range(64)]
    assert (
        len({*first, *(instance_seed(6, "hard", i) for i in range(64)), *(instance_seed(5, "easy", i) for i in range(64))}) == 192
    )
    assert all(0 <= seed < 2**31 for seed in first)


def test_a_tenth_goes_on_after_a_loop() -> None:
    share = sum(goes_on_after_loop(1, "hard", index) for index in range(5000)) / 5000
    assert 0.08 < share < 0.12
