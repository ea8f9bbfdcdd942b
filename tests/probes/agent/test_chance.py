from __future__ import annotations

import pytest

from probes.agent.chance import FLOOR_RUNS, blind_run, chance_floor
from probes.agent.tiers import TIERS, Tier
from probes.stats.intervals import lower_limit, upper_limit


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: t.name)
def test_luck_stays_below_the_printed_floor(tier: Tier) -> None:
    """On instances that the floor was not measured on."""
    runs = 80
    passed = sum(blind_run(tier.name, seed) for seed in range(runs))
    floor = chance_floor(tier.name)
    print(f"{tier.name}: luck passes {passed} of {runs}, printed floor {floor:.4f}")
    assert lower_limit(passed, runs, 0.999) <= floor
    assert upper_limit(0, FLOOR_RUNS) <= floor < 0.05
