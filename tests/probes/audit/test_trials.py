"""The whole audit against a model in process: guard, classes, sizes, retries, refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from probes.ask import Answer, Ask, Note
from probes.audit import Trials, audit, audit_plan
from probes.audit.ladder import Ladder
from probes.result import AuditSection
from probes.runner import replay
from qm_proxy.errors import InvalidMeasurement, UpstreamError, UpstreamRefused
from tests.probes.fakes import FakeModel


def text_of(ask: Ask) -> str:
    messages: Any = (ask.body or {})["messages"]
    return str(messages[1]["content"])


def options_of(ask: Ask) -> Any:
    return (ask.body or {})["options"]


def run(model: FakeModel, answer: Callable[[Ask], Answer] | None = None, **changes) -> AuditSection:  # type: ignore[no-untyped-def]
    changes = {"profile": "quick", "max_tokens": 4096, "advertised_tokens": model.trained, **changes}
    return replay(audit(audit_plan(model.name, "http://x", seed=3, **changes)), answer or model.answer)


def test_a_perfect_reader_keeps_its_accuracy() -> None:
    section = run(FakeModel())
    assert section.verdict == "limit not reached"
    assert section.maintained_tokens == pytest.approx(4096, rel=0.01)
    assert "assuming monotone" in section.sentence
    assert section.guard["passed"] == 18
    assert section.baseline is not None
    assert (section.baseline.n, section.baseline.value) == (12, 1.0)


@pytest.mark.parametrize("per_token", [2.5, 3.1, 5.62])
@pytest.mark.parametrize("overhead", [0, 100])
def test_lengths_are_hit_to_one_percent_whatever_the_tokenizer(per_token: float, overhead: int) -> None:
    section = run(FakeModel(per_token=per_token, overhead_tokens=overhead), profile="standard")
    for rung in section.rungs:
        assert rung.measured_tokens == pytest.approx(rung.target_tokens, rel=0.01, abs=16)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [("confabulate", "confabulated"), ("refuse", "refused"), ("malformed", "malformed"), ("empty", "no_answer")],
)
def test_wrong_answers_are_named(wrong: str, named: str) -> None:
    section = run(FakeModel(wrong=wrong, accuracy=lambda n: 1.0 if n < 700 else 0.0))
    beyond = [rung for rung in section.rungs if rung.target_tokens > 700]
    assert beyond
    assert all(set(rung.classes) == {named} for rung in beyond)
    assert section.verdict == "cliff"


def test_distractors_and_stale_values_are_named() -> None:
    section = run(FakeModel(wrong="distractor", accuracy=lambda n: 1.0 if n < 700 else 0.0), profile="deep")
    seen = {name for rung in section.rungs if rung.target_tokens > 700 for name in rung.classes}
    assert "distractor" in seen
    stale = run(FakeModel(wrong="stale", accuracy=lambda n: 1.0 if n < 700 else 0.0), profile="deep")
    assert "stale" in {name for rung in stale.rungs if rung.target_tokens > 700 for name in rung.classes}


@pytest.mark.parametrize("changes", [{"cuts_at": 2000}, {"reads": 1500}])
@pytest.mark.parametrize("profile", ["quick", "standard"])
def test_a_truncating_server_is_invalid_never_a_cliff(changes: dict[str, int], profile: str) -> None:
    section = run(FakeModel(**changes), profile=profile)  # type: ignore[arg-type]
    assert section.verdict == "invalid"
    assert "truncation by the server" in section.sentence
    assert section.cliff_between is None


def test_a_thinking_model_is_given_room() -> None:
    model = FakeModel(capabilities=("completion", "thinking"), thinking_tokens=500)
    section = run(model, think=True)
    assert section.verdict == "limit not reached"
    assert section.thinking is True
    assert all(ask.body["think"] is True for ask in model.asked if ask.path == "/api/chat" and ask.body)


def test_a_budget_that_ends_in_thought_is_its_own_class_and_tried_twice() -> None:
    model = FakeModel(capabilities=("completion", "thinking"), endless_thinking=True)
    section = run(model, think=True)
    assert section.verdict == "unusable baseline"
    assert section.rungs[0].classes == {"exhausted": 12}
    assert any(ask.key.endswith("/longer") for ask in model.asked)


def test_every_request_carries_the_same_launch_options() -> None:
    model = FakeModel()
    run(model, profile="standard")
    bodies = [ask.body for ask in model.asked if ask.path == "/api/chat" and ask.body]
    assert {(b["truncate"], b["shift"]) for b in bodies} == {(False, False)}
    sent = [options_of(ask) for ask in model.asked if ask.path == "/api/chat"]
    assert len({(options["num_ctx"], options["num_batch"]) for options in sent}) == 1
    firsts = [text_of(ask)[:40] for ask in model.asked if ask.path == "/api/chat" and not ask.key.startswith("header/")]
    assert len(set(firsts)) == len(firsts)


def test_the_first_line_is_asked_of_the_material_that_was_judged_last() -> None:
    model = FakeModel()
    run(model, profile="quick")
    asked = [ask for ask in model.asked if ask.path == "/api/chat"]
    place = next(index for index, ask in enumerate(asked) if ask.key.startswith("header/"))
    before, header = (text_of(ask).rsplit("\n\nQuestion: ", 1) for ask in asked[place - 1 : place + 1])
    assert header[0] == before[0]
    assert header[1] == "What is the header tag in the first line of the material?\nAnswer:"


def test_a_smaller_window_than_asked_for_is_refused_with_the_remedy() -> None:
    model = FakeModel()

    def small(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.path == "/api/ps" and model.loaded:
            made.document["models"][0]["context_length"] = 2048  # type: ignore[index]
        return made

    with pytest.raises(InvalidMeasurement, match=r"2048.*--max-tokens"):
        run(model, small)


def test_a_server_without_counts_cannot_be_audited() -> None:
    model = FakeModel()

    def uncounted(ask: Ask) -> Answer:
        made = model.answer(ask)
        for event in made.events:
            if hasattr(event, "input_tokens"):
                event.input_tokens = None  # type: ignore[misc]
        return made

    with pytest.raises(InvalidMeasurement, match="prompt_eval_count"):
        run(model, uncounted)


@pytest.mark.parametrize(("per_second", "limit_s"), [(150, 480), (1000, 90)])
def test_a_quick_audit_to_8k_keeps_its_time(per_second: float, limit_s: float) -> None:
    """In the model's own computed time, on a healthy model at 60 tokens/s."""
    model = FakeModel(prefill_ms_per_token=1000 / per_second, token_ms=1000 / 60)
    begun = model.now
    run(model, max_tokens=8192)
    assert (model.now - begun) / 1e9 <= limit_s


def test_a_hung_model_is_told_at_once_with_the_remedy() -> None:
    model = FakeModel()

    def hang(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.key.startswith("trial/512/3"):
            made.events, made.ending, made.error, made.silent = [], "upstream_truncated", "no byte for 600 s", True
        return made

    with pytest.raises(UpstreamError, match="--unhang fake:8b"):
        run(model, hang)
    assert sum(ask.key.startswith("trial/512/3") for ask in model.asked) == 1


def test_a_refusal_is_told_with_the_servers_words() -> None:
    model = FakeModel()

    def refuse(ask: Ask) -> Answer:
        if ask.path != "/api/chat":
            return model.answer(ask)
        return Answer(ask.key, status=400, ending="upstream_error", error="does not support chat")

    with pytest.raises(UpstreamRefused, match="does not support chat"):
        run(model, refuse)


def test_a_flaky_server_is_asked_again_and_a_dead_one_ends_the_run() -> None:
    failing = iter([*[False] * 9, True, True, *[False] * 500])
    model = FakeModel(fail=lambda ask: "upstream_truncated" if ask.path == "/api/chat" and next(failing) else None)
    assert run(model).verdict == "limit not reached"
    count = [0]

    def die(ask: Ask) -> str | None:
        count[0] += ask.path == "/api/chat"
        return "upstream_truncated" if count[0] > 20 and ask.path == "/api/chat" else None

    section = run(FakeModel(fail=die), profile="standard")
    assert "six requests in a row failed" in section.sentence
    assert section.baseline is not None


def test_the_same_seed_asks_two_models_the_same() -> None:
    first, second = FakeModel(), FakeModel(accuracy=lambda n: 0.9)
    run(first)
    run(second)
    prompts = [{ask.key: text_of(ask) for ask in model.asked if ask.key.startswith("trial/")} for model in (first, second)]
    shared = prompts[0].keys() & prompts[1].keys()
    assert len(shared) >= 18
    assert all(prompts[0][key] == prompts[1][key] for key in shared)


def test_depths_and_families_are_balanced() -> None:
    section = run(FakeModel(), profile="standard")
    base = [depth.n for depth in section.depths if depth.target_tokens == 512]
    assert base == [8, 8, 8, 8, 8]
    families = {score.family: score.n for score in section.families if score.target_tokens == 512}
    assert families == {"literal": 12, "paraphrase": 12, "code": 12, "absent": 4}


def test_the_plan_is_said_again_with_the_pace_that_was_measured() -> None:
    model = FakeModel(prefill_ms_per_token=1000 / 150)
    plan = audit_plan(model.name, "http://x", seed=3, profile="quick", max_tokens=8192, advertised_tokens=model.trained)
    trials = Trials(plan, Ladder(plan.design))
    probe = trials.climb()
    said: list[str] = []
    step = next(probe)
    with contextlib.suppress(StopIteration):
        while True:
            if isinstance(step, Note):
                said += [step.text] if step.lasting else []
                step = probe.send(Answer(key="note"))
            else:
                step = probe.send(model.answer(step) if isinstance(step, Ask) else Answer(key="wait"))
    assert len(said) == 1
    assert said[0].startswith("audit: 7 min in all if it stays good, ")
    assert "(measured: 150 prompt tokens/s; assumed: 60 output tokens/s" in said[0]
    canary = 8192 / 150  # this model keeps no prefix, so it reads the material of the header's question again
    assert trials.planned_s == pytest.approx(trials.seconds - canary, rel=0.05)
