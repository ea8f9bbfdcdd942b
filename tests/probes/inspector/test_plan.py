"""The plan fits the window and its cost is known before the start."""

from __future__ import annotations

import pytest

from probes.inspector.plan import cost, plan_for
from probes.pace import Pace


@pytest.mark.parametrize("advertised", [512, 1024, 2048, 4096, 32768, 500_000, None])
@pytest.mark.parametrize("quick", [True, False])
def test_every_length_fits_the_window(advertised: int | None, quick: bool) -> None:
    plan = plan_for("m", "http://x", seed=1, quick=quick, advertised_tokens=advertised)
    assert len(set(plan.prefill_lengths)) >= 3
    assert max(plan.prefill_lengths) < plan.window_tokens
    assert all(depth < plan.window_tokens for depth in plan.depths)
    assert plan.window_tokens <= (advertised or 10**9)
    assert plan.options["num_ctx"] == plan.window_tokens
    assert plan.options["num_batch"] == 512


def test_quick_takes_a_minute_of_model_time() -> None:
    priced = cost(plan_for("m", "http://x", seed=1, quick=True, advertised_tokens=131072), Pace(1000, 60))
    assert priced.seconds <= 60
    assert priced.assumed == "measured: 1000 prompt tokens/s, 60 output tokens/s; assumed: 3 s a load"


def test_compat_asks_for_what_the_post_had() -> None:
    plan = plan_for("m", "http://x", seed=1, compat="quantamind")
    assert (plan.cold_prompt, plan.last_cold_tokens) == (123, 314)


def test_a_full_run_costs_more() -> None:
    quick, full = (cost(plan_for("m", "http://x", seed=1, quick=q)) for q in (True, False))
    assert full.requests > quick.requests
    assert full.prompt_tokens > quick.prompt_tokens
    assert "assumed" in full.assumed
