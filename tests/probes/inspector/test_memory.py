"""KV bytes of known architectures, and budgets and ceilings by hand."""

from __future__ import annotations

from typing import Any

import pytest

from probes.hardware import describe
from probes.inspector import Seen, plan_for
from probes.inspector.footprint import _agreement, _beyond_the_window, footprint
from probes.inspector.memory import Cache, budget, cache_of, ceiling, everything
from probes.result import Gpu, Host, Target
from probes.stats.fits import Fit, line
from probes.survey import Resident, Survey

GIB = 1024**3


def info(**keys: Any) -> dict[str, Any]:
    return {"general.architecture": "a", **{f"a.{name.replace('__', '.')}": value for name, value in keys.items()}}


LLAMA = info(block_count=32, attention__head_count=32, attention__head_count_kv=8, embedding_length=4096)


def test_grouped_query_attention() -> None:
    cache = cache_of(LLAMA)
    assert cache is not None
    assert cache.slope() == 128 * 1024
    assert cache.bytes_at(131072) == 16 * GIB
    assert cache.slope(34 / 32) == pytest.approx(68 * 1024)
    assert cache.slope(18 / 32) == pytest.approx(36 * 1024)


def test_explicit_head_sizes_win_over_embedding_over_heads() -> None:
    cache = cache_of({**LLAMA, "a.attention.key_length": 256, "a.attention.value_length": 128})
    assert cache is not None
    assert cache.full == 32 * 8 * 384


def test_no_kv_heads_means_as_many_as_heads() -> None:
    cache = cache_of({key: value for key, value in LLAMA.items() if "head_count_kv" not in key})
    assert cache is not None
    assert cache.slope() == 4 * 128 * 1024


def test_latent_attention_keeps_one_small_vector() -> None:
    cache = cache_of(
        info(
            block_count=61,
            attention__head_count=128,
            attention__head_count_kv=1,
            embedding_length=7168,
            attention__kv_lora_rank=512,
            rope__dimension_count=64,
            attention__key_length=576,
            attention__value_length=512,
        )
    )
    assert cache is not None
    assert cache.slope() == 61 * 576 * 2


def test_sliding_windows_stop_growing() -> None:
    common = {"block_count": 6, "attention__head_count": 8, "attention__head_count_kv": 4, "embedding_length": 1024}
    one_in_six = cache_of(info(**common, attention__sliding_window=1024, attention__sliding_window_pattern=6))
    assert one_in_six is not None
    assert one_in_six.full == 4 * 256
    assert one_in_six.windowed == 5 * 4 * 256
    assert one_in_six.bytes_at(100_000) == 2 * (1024 * 100_000 + 5120 * 1024)
    assert one_in_six.slope(beyond=10) == 2 * 6144
    by_layer = cache_of(info(**common, attention__sliding_window=1024, attention__sliding_window_pattern=[True] * 5 + [False]))
    assert by_layer == one_in_six
    every = cache_of(info(**common, attention__sliding_window=1024))
    assert every is not None
    assert every.full == 0


def test_hybrids_count_only_attending_layers_and_their_state_is_constant() -> None:
    cache = cache_of(
        info(
            block_count=48,
            attention__head_count=16,
            attention__head_count_kv=2,
            embedding_length=2048,
            full_attention_interval=4,
            ssm__conv_kernel=4,
            ssm__inner_size=4096,
            ssm__state_size=128,
            ssm__group_count=16,
        )
    )
    assert cache is not None
    assert cache.full == 12 * 2 * 256
    assert cache.constant == 4 * 36 * (3 * (4096 + 2 * 16 * 128) + 4096 * 128)
    zeros = cache_of(info(block_count=4, attention__head_count=16, attention__head_count_kv=[0, 0, 0, 2], embedding_length=2048))
    assert zeros is not None
    assert zeros.full == 2 * 256


def test_shared_layers_keep_nothing() -> None:
    cache = cache_of({**LLAMA, "a.attention.shared_kv_layers": 12})
    assert cache is not None
    assert cache.slope() == 20 * 8 * 256 * 2


@pytest.mark.parametrize("keys", [{}, {"block_count": 0}, {"block_count": 4}, {"block_count": 4, "attention__head_count": 4}])
def test_too_little_is_none_not_a_guess(keys: dict[str, Any]) -> None:
    assert cache_of(info(**keys)) is None


def test_budgets_follow_the_machine() -> None:
    apple, small, card, cpu = (
        budget(describe(text)) for text in ("apple:64GiB", "apple:16GiB", "nvidia:24GiB+64GiB", "cpu:32GiB")
    )
    assert apple is not None
    assert apple.bytes == 48 * GIB
    assert small is not None
    assert small.bytes == pytest.approx(16 * GIB * 2 / 3, abs=1)
    assert card is not None
    assert card.bytes == int(24 * GIB * 0.95)
    assert cpu is not None
    assert cpu.bytes == pytest.approx(28.8 * GIB, abs=2)
    assert budget(Host()) is None
    elsewhere = budget(describe("nvidia:24GiB"), GIB)
    assert elsewhere is not None
    assert elsewhere.bytes == int(24 * GIB * 0.95) - GIB


def test_ceilings() -> None:
    assert ceiling(10.0, 4.0, 2.0) == 3.0
    assert ceiling(10.0, 12.0, 2.0) is None
    assert ceiling(10.0, 4.0, 0.0) is None


def test_two_points_inside_a_sliding_window_see_its_layers_grow() -> None:
    cache = Cache(full=1024, windowed=5120, window=4096, constant=0.0, described="")
    assert cache.mean_slope(1024, 4096) == 2 * 6144
    assert cache.mean_slope(2048, 8192) == pytest.approx(2 * (1024 + 5120 / 3))
    assert cache.mean_slope(8192, 16384) == cache.slope() == 2 * 1024


def line_through(cache: Cache, one: int, two: int) -> Fit:
    sizes = [10 * GIB + cache.bytes_at(tokens) for tokens in (one, two)]
    found = line([float(one), float(two)], sizes)
    assert found is not None
    return found


@pytest.mark.parametrize("points", [(1024, 4096), (2048, 8192), (8192, 16384), (1024, 2048)])
def test_ceilings_of_a_sliding_model_come_out_wherever_it_was_measured(points: tuple[int, int]) -> None:
    cache = Cache(full=1024, windowed=5120, window=4096, constant=0.0, described="")
    bent = _beyond_the_window(line_through(cache, *points), cache, [float(n) for n in points])
    truth = (20 * GIB - 10 * GIB - 2 * 5120 * 4096) / 2048
    assert ceiling(20 * GIB, bent.fixed.value, bent.slope.value) == pytest.approx(truth, rel=1e-6)


def test_the_nearest_cache_is_named_and_the_others_are_not_hidden() -> None:
    cache = cache_of({**LLAMA, "a.block_count": 28})
    assert cache is not None
    assert cache.slope() == 114688
    text = _agreement(cache, 121856.0, (1024, 4096))
    assert text is not None
    assert text.startswith("confirmed: q8_0 cache, 2 parallel slots, 0.0% from the architecture's 121856 bytes/token")
    assert "f16 (6% off)" in text
    assert (_agreement(cache, 777.0, (1024, 4096)) or "").startswith("not confirmed")


def test_what_fails_for_good_by_hand() -> None:
    def limit(host: Host) -> int | None:
        allowed = budget(host)
        assert allowed is not None
        return everything(host, allowed)

    assert limit(describe("apple:64GiB")) == int(0.9 * 64 * GIB)
    assert limit(describe("nvidia:24GiB+64GiB")) == int(0.9 * 88 * GIB)
    assert limit(describe("nvidia:24GiB")) is None  # what spills goes to a RAM that nobody told
    assert limit(describe("cpu:32GiB")) == int(32 * GIB - 0.1 * 32 * GIB)
    read = Host(memory_bytes=32 * GIB, available_bytes=20 * GIB, gpus=[Gpu(name="x", vendor="nvidia", memory_bytes=8 * GIB)])
    assert limit(read) == int(0.9 * 28 * GIB)
    assert budget(Host(memory_bytes=32 * GIB, available_bytes=10 * GIB), 0, 6 * GIB) == budget(
        Host(memory_bytes=32 * GIB, available_bytes=16 * GIB)
    )


def seen_on(vram: int, loaded: list[Resident]) -> Seen:
    seen = Seen(survey=Survey(Target(endpoint="u", name="m", advertised_context_tokens=131072), LLAMA, loaded))
    seen.resident = Resident("m", "", 5 * GIB, vram, 4096)
    for window in (1024, 4096):
        size = 5 * GIB + window * (131072 + 1024)
        seen.memory.append((window, 100, Resident("m", "", size, size if vram else 0, window)))
    return seen


def test_a_device_that_cannot_be_read_gives_no_ceiling() -> None:
    plan = plan_for("m", "u", seed=1, quick=True, host=Host(memory_bytes=32 * GIB, local=True))
    on_device, on_cpu = footprint(plan, seen_on(5 * GIB, []), ""), footprint(plan, seen_on(0, []), "")
    assert (on_device.share, on_device.ceilings.spill_tokens, on_device.ceilings.oom_tokens) == (None, None, None)
    assert "--hardware" in on_device.ceilings.unmeasured["oom_tokens"]
    assert on_cpu.share == pytest.approx(5 / 32)
    assert on_cpu.ceilings.oom_tokens is not None


def test_what_others_hold_on_the_device_is_no_ones_budget() -> None:
    card = Gpu(name="x", vendor="nvidia", memory_bytes=24 * GIB, used_bytes=8 * GIB)
    plan = plan_for("m", "u", seed=1, quick=True, host=Host(memory_bytes=64 * GIB, gpus=[card], local=True))
    found = footprint(plan, seen_on(5 * GIB, [Resident("m", "", 5 * GIB, 5 * GIB, 4096)]), "")
    assert found.budget_bytes == int(24 * GIB * 0.95) - 3 * GIB  # 8 used, 5 of them by the model itself
    assert found.ceilings.spill_tokens is not None
    assert found.ceilings.spill_tokens.value == (found.budget_bytes - 5 * GIB) // (131072 + 1024)
