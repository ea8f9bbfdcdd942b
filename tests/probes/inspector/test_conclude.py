"""Known laws in, the same numbers out; what could not be measured is named, never zero."""

from __future__ import annotations

from typing import Any

import pytest

from probes.ask import Answer, Ask
from probes.hardware import describe
from probes.inspector import Seen, conclude, inspect, plan_for
from probes.result import InspectorSection
from probes.runner import replay
from qm_proxy.events import TextDelta
from tests.probes.fakes import FakeModel


def run(model: FakeModel, hardware: str = "nvidia:24GiB+64GiB", **changes: Any) -> InspectorSection:
    options = {"quick": False, "advertised_tokens": model.trained, "host": describe(hardware), **changes}
    return replay(inspect(plan_for(model.name, "http://x", seed=2, **options)), model.answer)


def test_load_prefill_and_decode_come_back_within_two_percent() -> None:
    model = FakeModel(load_ms=2924, prefill_fixed_ms=20, prefill_ms_per_token=0.8, token_ms=16.5, jitter=0.03)
    section = run(model)
    cold = section.cold[0]
    assert cold.load is not None
    assert cold.load.value == pytest.approx(2924, abs=1)
    assert cold.verified
    assert section.prefill.slope is not None
    assert section.prefill.slope.value == pytest.approx(0.8, rel=0.02)
    assert section.prefill.fixed is not None
    assert section.prefill.fixed.value == pytest.approx(20, abs=1)
    cell = section.decode.cells[0]
    assert cell.server_ms_per_token.value == pytest.approx(16.5, rel=0.02)
    assert cell.client_ms_per_token.value == pytest.approx(16.5, rel=0.02)
    assert all(check.agree is not False for check in section.checks), [c for c in section.checks if c.agree is False]


def test_a_model_that_sends_no_text_is_measured_no_speed() -> None:
    model = FakeModel()

    def mute(ask: Ask) -> Answer:
        made = model.answer(ask)
        made.events = [event for event in made.events if not isinstance(event, TextDelta)]
        return made

    plan = plan_for(model.name, "http://x", seed=2, advertised_tokens=model.trained, host=describe("cpu:64GiB"))
    section = replay(inspect(plan), mute)
    assert not section.valid
    assert section.spikes is None
    assert "came without any text" in section.unmeasured["ttft_any"]
    assert section.prefill.slope is not None


def test_attention_and_depth_are_seen() -> None:
    model = FakeModel(prefill_ms_per_token2=0.8 / 32768, prefill_ms_per_token=0.8, depth_us_per_1k=400, jitter=0.01)
    section = run(model, window_tokens=40_000)
    assert section.prefill.doubling_tokens is not None
    assert section.prefill.doubling_tokens.value == pytest.approx(32768, rel=0.05)
    assert section.decode.slope is not None
    assert section.decode.slope.value == pytest.approx(400, rel=0.10)
    assert section.decode.half_speed_tokens is not None
    assert section.decode.half_speed_tokens.value == pytest.approx(16 / 0.4 * 1000, rel=0.15)


def test_a_lazy_load_is_paid_for_in_the_cold_total() -> None:
    section = run(FakeModel(load_ms=500, first_touch_ms=750, weights=30_000_000_000))
    cold = section.cold[0]
    assert cold.total is not None
    assert cold.total.value == pytest.approx(1250, rel=0.03)
    assert cold.note is not None
    assert "page cache" in cold.note


def test_the_memory_slope_is_measured_and_confirmed() -> None:
    section = run(FakeModel())
    memory = section.memory
    assert memory.measured_bytes_per_token is not None
    assert memory.measured_bytes_per_token.value == pytest.approx(131072 + 1024, rel=0.01)
    assert memory.cache_bytes_per_token is not None
    assert memory.cache_bytes_per_token.value == pytest.approx(131072, rel=0.01)
    assert memory.agreement is not None
    assert memory.agreement.startswith("confirmed: f16")
    spill = memory.ceilings.spill_tokens
    assert spill is not None
    assert spill.value == pytest.approx((24 * 1024**3 * 0.95 - 5.3e9) / 132096, rel=0.01)
    assert memory.ceilings.oom_tokens is not None
    assert memory.ceilings.oom_tokens.value > spill.value
    assert memory.ceilings.binding == "advertised window" if spill.value > 131072 else "memory"


@pytest.mark.parametrize(
    ("kv", "words"), [(131072 * 4, "4 parallel slots"), (int(131072 * 34 / 64), "q8_0"), (777, "not confirmed")]
)
def test_what_the_slope_says_about_slots_and_cache_type(kv: int, words: str) -> None:
    assert words in (run(FakeModel(kv_bytes=kv)).memory.agreement or "")


def test_a_size_that_never_changes_is_no_slope() -> None:
    section = run(FakeModel(kv_bytes=-1024))
    assert section.memory.measured_bytes_per_token is None
    assert "fell back" in section.memory.unmeasured["measured_bytes_per_token"]
    assert "fell back" in section.memory.ceilings.unmeasured["spill_tokens"]


def test_without_a_known_machine_there_is_no_share_and_no_ceiling() -> None:
    from probes.result import Host

    section = run(FakeModel(), host=Host())
    assert section.memory.share is None
    assert "--hardware" in section.memory.unmeasured["share"]
    assert "--hardware" in section.memory.ceilings.unmeasured["spill_tokens"]


def test_stalls_are_counted_with_what_chance_would_give() -> None:
    section = run(FakeModel(stalls={60: 80.0, 200: 80.0}))
    spikes = section.spikes
    assert spikes is not None
    # five answers, the repeat, and two each at two depths: 128 tokens hold one stall, the 256 of the last warm-up two
    assert spikes.count == 5 * 2 + 2 + 3 * 1 + 2
    assert spikes.expected_false is not None
    assert spikes.expected_false < 1
    assert {item.cause for item in spikes.items} == {"deterministic"}
    assert section.waterfall is not None
    assert sum(section.waterfall.spike) == 2


def test_nothing_seen_says_why_everywhere() -> None:
    section = conclude(plan_for("m", "http://x", seed=1), Seen())
    assert {"cold", "ttft_any", "ttft_content", "spikes"} <= set(section.unmeasured)
    assert section.memory.size_bytes is None
    assert section.prefill.slope is None
    assert section.prefill.unmeasured["slope"]
    assert section.gaps.unmeasured["p50"]


def test_few_gaps_do_not_bound_the_99th_percentile() -> None:
    section = run(FakeModel(), quick=True, window_tokens=2048)
    if section.gaps.n < 500:
        assert "500 can" in section.gaps.unmeasured["p99"]
    else:
        assert section.gaps.p99 is not None


def test_a_pause_of_ours_while_the_server_reads_is_no_disagreement() -> None:
    model = FakeModel()

    def paused(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.key.startswith("P5/2048"):  # 2 s of prefill: a pause of 200 ms in the middle of it delays nothing
            made.pauses = [(made.started_ns + 500_000_000, made.started_ns + 700_000_000)]
        return made

    section = replay(inspect(plan_for(model.name, "http://x", seed=2, quick=True), None), paused)
    assert {check.quantity: check.agree for check in section.checks}["prefill"] is True


def test_repeats_at_one_depth_are_one_cell_of_gaps() -> None:
    section = run(FakeModel())
    shallow, middle, deep = section.gaps.by_depth
    assert shallow.n == pytest.approx(6 * 255, abs=6)
    assert 30 <= shallow.depth_tokens <= 60 < 2000 < middle.depth_tokens < 2200 < 8000 < deep.depth_tokens < 8400
