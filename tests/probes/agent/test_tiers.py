from __future__ import annotations

import pytest

from probes.agent.tiers import MIN_SLACK, TIERS, tier_named


def test_the_published_table() -> None:
    table = {tier.name: (tier.k, tier.horizon, tier.goals, tier.chains, tier.decoys, tier.traps) for tier in TIERS}
    assert table == {
        "easy": (5, 8, 1, (0,), 1, 0),
        "medium": (8, 16, 1, (2,), 4, 1),
        "hard": (16, 28, 2, (3, 1), 8, 3),
        "extreme": (24, 48, 3, (4, 3, 1), 14, 5),
    }
    assert [tier.hidden for tier in TIERS] == [0, 2, 4, 8]
    assert [tier.referenced for tier in TIERS] == [0, 1, 2, 4]


def test_the_longest_oracle_leaves_slack() -> None:
    for tier in TIERS:
        assert tier.horizon / tier.max_oracle_steps >= MIN_SLACK
        assert tier.horizon / (tier.max_oracle_steps + 1) < MIN_SLACK


def test_a_tier_by_name() -> None:
    assert tier_named(" Hard ").name == "hard"
    with pytest.raises(KeyError, match="easy, medium, hard, extreme"):
        tier_named("nightmare")
