"""The plan follows the window, the memory and the wish, whichever is least; its cost is known beforehand."""

from __future__ import annotations

import pytest

from probes.audit.plan import AuditPlan, audit_cost, audit_plan
from probes.pace import Pace
from qm_proxy.errors import InvalidMeasurement


def plan(**changes) -> AuditPlan:  # type: ignore[no-untyped-def]
    return audit_plan("m", "http://x", seed=1, **changes)


def test_rungs_double_to_the_top() -> None:
    made = plan(max_tokens=20_000, advertised_tokens=131072)
    assert made.design.rungs == (1024, 2048, 4096, 8192, 16384, 20000)
    assert made.window_tokens == 21_024


def test_a_window_without_room_for_an_audit_is_refused_in_words() -> None:
    with pytest.raises(InvalidMeasurement, match=r"prompts of 192 tokens here: a window of 320 less 128.*An audit needs 300"):
        plan(advertised_tokens=320)


@pytest.mark.parametrize(("window", "base", "top"), [(512, 256, 384), (1024, 384, 768), (2048, 512, 1536), (4096, 512, 3072)])
def test_a_small_window_is_audited_as_far_as_it_goes(window: int, base: int, top: int) -> None:
    made = plan(advertised_tokens=window)
    assert (made.design.base_tokens, made.design.rungs[-1], made.window_tokens) == (base, top, window)
    assert top + 2 * made.answer_budget <= window


def test_the_brief_design_asks_the_standard_questions_at_the_top() -> None:
    made, standard = plan(max_tokens=8192, brief=True), plan(max_tokens=8192)
    assert (made.families, made.design.rungs) == (standard.families, standard.design.rungs)
    assert made.design.top_first
    assert audit_cost(made).prompt_tokens < audit_cost(standard).prompt_tokens


@pytest.mark.parametrize(
    ("changes", "top"), [({"advertised_tokens": 8192}, 7168), ({"affordable_tokens": 5000}, 3976), ({}, 32768)]
)
def test_the_least_limit_binds(changes: dict[str, int], top: int) -> None:
    assert plan(**changes).design.rungs[-1] == top


def test_a_tiny_window_still_has_a_plan() -> None:
    made = plan(advertised_tokens=2048)
    assert made.design.rungs == (1024, 1536)
    assert plan(advertised_tokens=900).design.base_tokens < 512


def test_thinking_gets_a_budget() -> None:
    assert plan(think=True).answer_budget > 2000
    assert plan(think=False).answer_budget == 64
    assert plan(think=True).window_tokens - plan(think=True).design.rungs[-1] >= 4096


def test_quick_to_8k_fits_its_time() -> None:
    made = plan(profile="quick", max_tokens=8192, advertised_tokens=131072)
    assert audit_cost(made, Pace(150, 60)).seconds <= 8 * 60
    assert audit_cost(made, Pace(1000, 60)).seconds <= 90


def test_cost_names_what_it_assumes() -> None:
    assert "assumed" in audit_cost(plan()).assumed
    assert audit_cost(plan(), Pace(10)).assumed == "measured: 10 prompt tokens/s; assumed: 60 output tokens/s"
    assert audit_cost(plan()).most_prompt_tokens > audit_cost(plan()).prompt_tokens


def test_what_is_over_is_not_priced_again() -> None:
    made, pace = plan(profile="quick", max_tokens=8192, advertised_tokens=131072), Pace(150, 60)
    whole, rest = audit_cost(made, pace), audit_cost(made, pace, {512: 12})
    assert rest.seconds == pytest.approx(pace.seconds(6 * 8192, 7 * 16))
    assert whole.seconds > rest.seconds
    assert audit_cost(made, pace, {512: 12, 8192: 6}).seconds == 0


def test_a_paired_audit_asks_every_rung_so_often() -> None:
    made = plan(paired=24, max_tokens=8192)
    assert audit_cost(made).requests == 24 * 4 + 2 * len(made.registers)
