from __future__ import annotations

import pytest

from probes.agent.plan import cost, plan_for
from qm_proxy.errors import SettingsError


def test_flags_become_a_plan() -> None:
    plan = plan_for("m", "u", tiers=" Hard,easy ", k=4, strict_k=True, both=True, seed=3)
    assert [tier.name for tier in plan.tiers] == ["easy", "hard"]
    assert (plan.k, plan.strict_k, plan.path, plan.seed) == (4, True, "both", 3)
    assert len(plan_for("m", "u").tiers) == 4


def test_wrong_flags_say_what_there_is() -> None:
    with pytest.raises(SettingsError, match="easy, medium, hard, extreme"):
        plan_for("m", "u", tiers="easy,heavy")
    with pytest.raises(SettingsError, match="at least 1"):
        plan_for("m", "u", k=0)


def test_the_cost_is_a_span_that_holds() -> None:
    easy = cost(plan_for("m", "u", tiers="easy"))
    assert (easy.runs_least, easy.runs_most, easy.turns_most) == (8, 64, 512)
    assert easy.seconds_most == 3 * 512
    strict = cost(plan_for("m", "u", tiers="hard", strict_k=True), seconds_per_turn=1)
    assert (strict.runs_least, strict.runs_most) == (16, 16)
    assert cost(plan_for("m", "u", both=True)).runs_most == 2 * 4 * 64
    compat = cost(plan_for("m", "u", tiers="easy", compat="quantamind"))
    assert compat.runs_most == 64 + 89
    assert cost(plan_for("m", "u", quick=True)).runs_most == 4 * 16


def test_a_first_failure_ends_the_ladder_unless_all_tiers_are_asked_for() -> None:
    assert cost(plan_for("m", "u", tiers="easy,hard")).runs_least == 8
    assert cost(plan_for("m", "u", tiers="easy,hard", all_tiers=True)).runs_least == 16
