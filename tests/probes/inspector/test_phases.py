"""The sequence: its order, what each request carries, what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest

from probes.ask import Answer, Ask, Stopped
from probes.inspector import Seen, inspect, plan_for
from probes.runner import replay
from qm_proxy.errors import UpstreamError
from tests.probes.fakes import FakeModel


def run(model: FakeModel, answer=None, **changes: Any) -> Seen:  # type: ignore[no-untyped-def]
    seen = Seen()
    plan = plan_for(model.name, "http://x", seed=2, **{"quick": True, "advertised_tokens": model.trained, **changes})
    replay(inspect(plan, seen), answer or model.answer)
    return seen


def generations(model: FakeModel) -> list[dict[str, Any]]:
    return [ask.body for ask in model.asked if ask.body and "prompt" in ask.body]


def test_all_options_go_with_every_request_and_prefixes_are_fresh() -> None:
    model = FakeModel()
    run(model)
    bodies = generations(model)
    for body in bodies:
        assert (body["truncate"], body["shift"], body["raw"], body["stream"]) == (False, False, True, True)
        assert {"num_ctx", "num_batch", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "num_predict"} <= set(
            body["options"]
        )
        assert body["options"]["num_batch"] == 512
    starts = [body["prompt"][:10] for body in bodies]
    assert len(starts) - len(set(starts)) == 1  # only the prompt that is sent twice on purpose, for the cached state


def test_the_model_is_unloaded_and_seen_gone_before_the_cold_start() -> None:
    model = FakeModel(loaded=True)
    seen = run(model, quick=False)
    keys = [ask.key for ask in model.asked]
    for repeat in range(3):
        assert keys.index(f"P1/{repeat}/unload/0") < keys.index(f"P2/{repeat}/ps") < keys.index(f"P3/{repeat}")
    assert seen.cold_verified == [True, True, True]


def test_under_compat_one_cold_start_answers_at_length_and_its_prompt_has_the_posts_length() -> None:
    model = FakeModel(per_token=5.62)
    seen = run(model, quick=False, compat="quantamind")
    assert [sample.answer.output_tokens for sample in seen.cold] == [32, 32, 314]
    assert seen.cold[-1].prompt_tokens == 123


def test_a_decode_at_depth_is_one_of_the_prefills_of_that_length() -> None:
    model = FakeModel()
    plan = plan_for(model.name, "http://x", seed=2, advertised_tokens=model.trained)
    seen = Seen()
    section = replay(inspect(plan, seen), model.answer)
    assert plan.depths == (2048, 8192)
    assert {point.tokens for point in section.prefill.points if point.time.n == plan.prefill_repeats} == {
        point.tokens for point in section.prefill.points
    }
    assert len(seen.prefill) + len(seen.deep) == plan.prefill_repeats * len(plan.prefill_lengths)


def test_prompts_have_the_length_that_was_meant() -> None:
    model = FakeModel(per_token=5.3)
    seen = run(model)
    for sample in seen.prefill:
        assert sample.prompt_tokens == pytest.approx(sample.target_tokens, rel=0.03, abs=4)


def test_a_cache_hit_is_thrown_away_and_asked_again() -> None:
    model = FakeModel()

    def sometimes(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.key == "P5/512/1/0":
            usage = made.usage
            assert usage is not None
            usage.cached_tokens = 500  # type: ignore[misc]
        return made

    seen = run(model, sometimes)
    assert seen.discarded == 1
    assert len([s for s in seen.prefill if s.target_tokens == 512]) == 2


def test_a_prefill_that_met_a_load_is_thrown_away_and_asked_again() -> None:
    model = FakeModel()

    def evicted(ask: Ask) -> Answer:
        if ask.key == "P5/512/1/0":
            model.loaded = False
        return model.answer(ask)

    seen = run(model, evicted)
    assert seen.reloaded == 1
    assert len([s for s in seen.prefill if s.target_tokens == 512]) == 2
    assert all((s.load_s or 0) < 0.1 for s in seen.prefill)


def test_apples_runner_is_filled_instead_of_reloaded() -> None:
    model = FakeModel(format="safetensors")
    seen = run(model)
    assert len({held for _, held, _ in seen.memory}) >= 3


def test_a_filling_is_a_cold_start_and_the_first_warm_up() -> None:
    model = FakeModel(format="safetensors", load_ms=2924)
    plan = plan_for(model.name, "http://x", seed=2, advertised_tokens=model.trained, compat="quantamind")
    seen = Seen()
    section = replay(inspect(plan, seen), model.answer)
    keys = [ask.key for ask in model.asked if ask.body and "prompt" in ask.body]
    assert keys[:5] == ["P3/0", "P0/rate", "P3/1", "P8/fill8192", "P4/1"]
    cold = section.cold[0]
    assert cold.verified
    assert cold.load is not None
    assert cold.total is not None
    assert cold.prefill is not None
    assert (cold.load.n, cold.total.n, cold.prefill.n) == (3, 3, 2)
    assert cold.load.value == pytest.approx(2924, abs=1)
    assert [sample.answer.key for sample in seen.deep] == ["P4/1", "P6/8192/1"]


def test_a_restless_warm_up_is_no_decode_at_depth() -> None:
    model = FakeModel()

    def restless(ask: Ask) -> Answer:
        made = model.answer(ask)
        usage = made.usage
        if ask.key.startswith("P4/") and usage is not None and usage.decode_ns is not None:
            usage.decode_ns *= 1 + int(ask.key[3:])  # type: ignore[misc]
        return made

    seen = run(model, restless, quick=False)
    assert all(sample.answer.key.startswith("P6/") for sample in seen.deep)
    assert len(seen.deep) == 2 * 2


def test_a_quick_inspection_takes_a_minute_of_model_time() -> None:
    model = FakeModel(prefill_ms_per_token=1.0, token_ms=1000 / 60, load_ms=3000)
    begun = model.now
    run(model)
    assert (model.now - begun) / 1e9 <= 60


def test_a_hung_model_ends_it_at_once() -> None:
    model = FakeModel()

    def hang(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.key.startswith("P6"):
            made.events, made.ending, made.error, made.silent = [], "upstream_truncated", "no byte for 600 s", True
        return made

    with pytest.raises(UpstreamError, match="--unhang fake:8b"):
        run(model, hang)


def test_three_failures_end_it() -> None:
    with pytest.raises(UpstreamError, match="three times"):
        run(FakeModel(fail=lambda ask: "upstream_truncated" if "prompt" in (ask.body or {}) else None))


def test_a_window_that_differs_is_told() -> None:
    model = FakeModel()

    def smaller(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.path == "/api/ps" and model.loaded:
            made.document["models"][0]["context_length"] = 2048  # type: ignore[index]
        return made

    assert [code for code, _ in run(model, smaller).warnings] == ["window_differs"]


@pytest.mark.parametrize("after", range(1, 60, 7))
def test_stopped_anywhere_it_concludes(after: int) -> None:
    model = FakeModel()
    seen = Seen()
    probe = inspect(plan_for(model.name, "http://x", seed=2, quick=True), seen)
    step = next(probe)
    section = None
    try:
        for _ in range(after):
            step = probe.send(model.answer(step) if isinstance(step, Ask) else Answer(key=""))
        probe.throw(Stopped("interrupted", "by the user"))
    except StopIteration as concluded:
        section = concluded.value
    assert section is not None
    if not section.decode.cells:
        assert "by the user" in section.decode.unmeasured["cells"]
    section.model_dump_json()


def test_disk_cold_is_one_more_start_and_named_only_when_it_was(tmp_path: Any) -> None:
    from probes.inspector import conclude
    from probes.result import Host

    def run_with(resident: float | None) -> tuple[list[str], list[str]]:
        model = FakeModel()

        def answer(ask: Ask) -> Answer:
            if ask.method == "LOCAL":
                share = resident if ask.body and ask.body["evict"] else 1.0
                return Answer(ask.key, status=200, document={"before": 1.0, "evicted": True, "resident": share})
            made = model.answer(ask)
            if ask.path == "/api/show":
                made.document["modelfile"] = "# x\nFROM /models/blobs/sha256-1\n"  # type: ignore[index]
            return made

        seen = Seen()
        plan = plan_for(model.name, "http://x", seed=2, quick=True, evict_page_cache=True, host=Host(local=True))
        replay(inspect(plan, seen), answer)
        states: list[str] = [start.state for start in conclude(plan, seen).cold]
        return states, [code for code, _ in seen.warnings]

    assert run_with(0.0) == (["C1", "C0", "C2", "C3"], [])
    assert run_with(0.7) == (["C1", "C2", "C3"], ["not_evicted"])
    assert run_with(None) == (["C1", "C2", "C3"], ["not_evicted"])
