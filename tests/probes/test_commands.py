"""The probes as the command line calls them: results, files, exit codes, resume, dry run, partial results."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from probes.ask import Answer, Ask
from probes.commands import Options, Session, audit_context, inspect_model, report_model
from probes.result import Result, schema
from probes.runner import Progress
from qm_proxy.errors import InvalidMeasurement, SettingsError, StoreError, UpstreamUnreachable
from qm_proxy.events import HostSample, Nanoseconds
from tests.probes.fakes import FakeModel


def options(**changes: Any) -> Options:
    base: dict[str, Any] = {"model": "fake:8b", "hardware": "cpu:64GiB", "seed": 7, "quick": True, "max_tokens": 2048}
    return Options(**{**base, **changes})


def falling() -> FakeModel:
    return FakeModel(accuracy=lambda n: 1.0 if n < 1200 else 0.1)


def run(kind: str, opts: Options, model: FakeModel | None = None, ask: Any = None) -> Result:
    work = {"inspect": inspect_model, "audit": audit_context, "report": report_model}[kind]
    fake = model or FakeModel()
    session = Session(kind, opts, ask or fake.ask)  # type: ignore[arg-type]
    session.runner.retry_s = 0.0
    return asyncio.run(work(opts, session))


@pytest.mark.parametrize("kind", ["inspect", "audit"])
def test_a_result_fits_the_published_schema_and_is_saved(tmp_path: Path, kind: str) -> None:
    result = run(kind, options(out=tmp_path))
    document = json.loads((tmp_path / "result.json").read_text())
    jsonschema_rs.validator_for(schema()).validate(document)
    assert Result.from_json((tmp_path / "result.json").read_text()).run.id == result.run.id
    assert (result.run.state, result.run.exit_code, result.run.seed) == ("complete", 0, 7)
    assert result.run.cost["seconds"] > 0
    assert len((tmp_path / "rows.jsonl").read_bytes().splitlines()) >= 20
    assert result.joint is not None
    assert result.unmeasured["agent"] == "not asked for"


def test_the_seed_is_drawn_and_recorded_when_none_is_given() -> None:
    assert run("audit", options(seed=None)).run.seed > 0


def test_cost_is_told_before_the_first_generation() -> None:
    told: list[Progress] = []
    model = FakeModel()
    before: list[int] = []

    def listen(progress: Progress) -> None:
        told.append(progress)
        if progress.lasting:
            before.append(sum("prompt" in (ask.body or {}) for ask in model.asked))

    run("inspect", options(on_progress=listen), model)
    cost, again = [progress.text for progress in told if progress.lasting]
    assert before == [0, 3]  # assumed before the first, measured after the cold start and two warm-ups
    assert "(assumed: 1000 prompt" in cost
    assert "(measured: " in again


def test_the_cost_stands_on_the_result_that_lies_there(tmp_path: Path) -> None:
    model = FakeModel(prefill_ms_per_token=1000 / 150)
    run("inspect", options(out=tmp_path, quick=True), model)
    told: list[Progress] = []
    run("audit", options(out=tmp_path, dry_run=True, on_progress=told.append), model)
    cost = [progress.text for progress in told if progress.lasting]
    assert len(cost) == 1
    assert "as measured 20" in cost[0]
    assert ": 150 prompt tokens/s" in cost[0]


def test_a_dry_run_generates_nothing() -> None:
    model = FakeModel()
    result = run("report", options(dry_run=True), model)
    assert all(ask.path not in ("/api/generate", "/api/chat") for ask in model.asked)
    assert result.run.cost["prompt_tokens"] > 0
    assert (result.inspector, result.audit, result.agent) == (None, None, None)
    assert result.run.exit_code == 0


@pytest.mark.parametrize("kind", ["inspect", "audit"])
@pytest.mark.parametrize("after", [2, 6, 14, 25])
def test_interrupted_and_resumed_is_the_same_as_uninterrupted(tmp_path: Path, kind: str, after: int) -> None:
    def steady(model: FakeModel) -> Any:
        async def ask(question: Ask) -> Answer:
            model.now, model._draw = 10**12, __import__("random").Random(question.key)
            return model.answer(question)

        return ask

    whole = run(kind, options(), ask=steady(falling()))
    model = falling()
    opts = options(out=tmp_path)
    session = Session(kind, opts, None)  # type: ignore[arg-type]
    left = [after]

    async def until(question: Ask) -> Answer:
        left[0] -= 1
        if left[0] == 0:
            session.stop()
        answer: Answer = await steady(model)(question)
        return answer

    session.runner.ask = until
    work = {"inspect": inspect_model, "audit": audit_context}[kind]
    first = asyncio.run(work(opts, session))
    assert (first.run.state, first.run.exit_code) == ("interrupted", 130)
    assert (tmp_path / "result.json").exists()
    model.loaded = False
    second = run(kind, opts, ask=steady(model))
    assert second.run.id == first.run.id
    assert second.run.replayed == after - 1
    assert (second.inspector, second.audit) == (whole.inspector, whole.audit)
    third = run(kind, opts, ask=steady(falling()))
    assert third.run.replayed == 0


def test_a_killed_run_is_resumed_from_what_lies_there(tmp_path: Path) -> None:
    """No handler runs at a kill: the rows, and the note that a run began, must do."""

    def model() -> FakeModel:
        return FakeModel(accuracy=lambda n: 1.0 if n < 1200 else 0.0)

    whole = run("audit", options(out=tmp_path / "whole"), model())
    alive, asked = model(), [0]

    async def dies(ask: Ask) -> Answer:
        asked[0] += 1
        if asked[0] > 40:
            raise RuntimeError("killed")
        return await alive.ask(ask)

    with pytest.raises(RuntimeError, match="killed"):
        run("audit", options(out=tmp_path / "cut"), ask=dies)
    left = Result.from_json((tmp_path / "cut" / "result.json").read_text())
    assert (left.run.state, left.run.reason) == ("interrupted", "it is running, or it was killed")
    resumed = run("audit", options(out=tmp_path / "cut"), model())
    assert (resumed.run.id, resumed.run.replayed) == (left.run.id, 40)
    assert resumed.audit is not None
    assert whole.audit is not None
    assert [rung.classes for rung in resumed.audit.rungs] == [rung.classes for rung in whole.audit.rungs]


def test_another_seed_or_model_does_not_resume(tmp_path: Path) -> None:
    opts = options(out=tmp_path)
    session = Session("audit", opts, FakeModel().ask)
    session.stop()
    asyncio.run(audit_context(opts, session))
    assert Session("audit", options(out=tmp_path)).id == session.id
    assert Session("audit", options(out=tmp_path, seed=8)).id != session.id
    assert Session("inspect", options(out=tmp_path)).id != session.id
    assert Session("audit", options(out=tmp_path, resume=False)).id != session.id


def test_an_unreachable_upstream_before_the_start_is_an_error() -> None:
    async def gone(ask: Ask) -> Answer:
        return Answer(ask.key, ending="upstream_unreachable", error="refused")

    with pytest.raises(UpstreamUnreachable, match="Start Ollama"):
        run("inspect", options(), ask=gone)


@pytest.mark.parametrize("kind", ["inspect", "audit"])
def test_an_upstream_that_vanishes_in_mid_run_leaves_partial_results(kind: str) -> None:
    model, left = FakeModel(), [18]

    async def vanishing(ask: Ask) -> Answer:
        left[0] -= 1
        if left[0] < 0:
            return Answer(ask.key, ending="upstream_unreachable", error="refused")
        return model.answer(ask)

    result = run(kind, options(), ask=vanishing)
    assert (result.run.state, result.run.exit_code) == ("failed", 5)
    assert (result.inspector or result.audit) is not None


def test_a_model_that_dies_leaves_what_was_seen() -> None:
    count = [0]

    def die(ask: Ask) -> str | None:
        count[0] += "prompt" in (ask.body or {})
        return "upstream_truncated" if count[0] > 8 and "prompt" in (ask.body or {}) else None

    result = run("inspect", options(), FakeModel(fail=die))
    assert (result.run.state, result.run.exit_code) == ("failed", 5)
    assert result.inspector is not None
    assert result.inspector.cold[0].load is not None


@pytest.mark.parametrize("model", [FakeModel(capabilities=("embedding",)), FakeModel(name="other:1b")])
def test_what_cannot_be_probed_is_a_usage_error(model: FakeModel) -> None:
    with pytest.raises(SettingsError) as caught:
        run("inspect", options(), model)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (FakeModel(cuts_at=1000), 4),
        (FakeModel(accuracy=lambda n: 0.2), 3),
        (FakeModel(accuracy=lambda n: 1.0 if n < 900 else 0.0), 0),
    ],
)
def test_audit_exit_codes(model: FakeModel, code: int) -> None:
    assert run("audit", options(), model).run.exit_code == code


def test_other_traffic_is_a_refusal() -> None:
    async def two() -> int:
        return 2

    with pytest.raises(InvalidMeasurement, match="2 request"):
        run("inspect", options(other_traffic=two))


@pytest.mark.parametrize(
    ("sample", "codes"),
    [
        (HostSample(Nanoseconds(0), swap_in_per_s=50e6), ["swapping"]),
        (HostSample(Nanoseconds(0), swap_in_per_s=4096.0), []),  # one page of some sleeping program
        (HostSample(Nanoseconds(0), pressure=0.3), ["memory_pressure"]),
        (HostSample(Nanoseconds(0), gpu_throttled=True), ["throttled"]),
        (HostSample(Nanoseconds(0), cpu_throttled=True), ["cpu_throttled"]),
    ],
)
def test_a_machine_that_swaps_or_throttles_is_a_warning(sample: HostSample, codes: list[str]) -> None:
    opts = options()
    session = Session("inspect", opts, FakeModel().ask)
    session.runner.sample_host = lambda: sample
    result = asyncio.run(inspect_model(opts, session))
    assert [warned.code for warned in result.warnings] == codes


def test_traffic_that_came_meanwhile_is_a_warning() -> None:
    async def three(instant: str) -> int:
        assert instant.endswith("Z")
        return 3

    warned = run("inspect", options(traffic_since=three)).warnings
    assert [one.text.split(" ran")[0] for one in warned if one.code == "other_traffic"] == ["3 request(s) of other clients"]


def test_a_budget_concludes_and_says_so() -> None:
    result = run("audit", options(budget_s=10.0))
    assert result.audit is not None
    assert any(warned.code == "budget" for warned in result.warnings)
    assert result.run.exit_code in (0, 3)


def test_an_upstream_that_lists_nothing_is_no_complete_run() -> None:
    def broken(ask: Ask) -> str | None:
        return "upstream_error" if ask.path == "/api/ps" else None

    with pytest.raises(UpstreamUnreachable, match="/api/ps does not answer"):
        run("inspect", options(), FakeModel(fail=broken))


def test_an_upstream_that_goes_when_all_is_measured_is_a_warning() -> None:
    def late(ask: Ask) -> str | None:
        return "upstream_unreachable" if ask.key.startswith("P9") or ask.key == "back" else None

    result = run("inspect", options(), FakeModel(fail=late))
    assert (result.run.state, result.run.exit_code) == ("complete", 0)
    assert "not_restored" in [warned.code for warned in result.warnings]


def test_a_request_that_failed_in_a_run_that_goes_on_is_told() -> None:
    def once(ask: Ask) -> str | None:
        return "upstream_truncated" if ask.key == "P6/shallow/1" else None

    result = run("inspect", options(), FakeModel(fail=once))
    assert (result.run.state, result.run.exit_code) == ("complete", 0)
    assert "1 request failed and left no number; last: planted failure." in [warned.text for warned in result.warnings]


def test_a_model_that_was_loaded_is_put_back_after_a_failure_too() -> None:
    def die(ask: Ask) -> str | None:
        return "upstream_truncated" if "prompt" in (ask.body or {}) else None

    model = FakeModel(fail=die, loaded=True)
    assert run("inspect", options(), model).run.exit_code == 5
    asked = {ask.key: ask.body for ask in model.asked[-4:] if ask.key.startswith("P9")}
    assert list(asked)[:3] == ["P9/restore", "P9/ps", "P9/windows"]
    assert asked["P9/restore"] == {"model": "fake:8b"}


def test_a_full_disk_ends_it_with_what_was_measured_and_the_rows_can_be_resumed(tmp_path: Path) -> None:
    model, full = FakeModel(), Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115

    async def fill(ask: Ask) -> Answer:
        if ask.key == "P6/shallow/0":
            assert session.runner.rows._file is not None
            session.runner.rows._file.close()
            session.runner.rows._file = full
        return model.answer(ask)

    opts = options(out=tmp_path)
    session = Session("inspect", opts, fill)
    result = asyncio.run(inspect_model(opts, session))
    assert (result.run.state, result.run.exit_code) == ("failed", 5)
    assert "No space left on device" in (result.run.reason or "")
    assert result.inspector is not None
    assert result.inspector.prefill.points
    assert run("inspect", opts).run.replayed > 10


def test_a_result_that_cannot_be_saved_is_told_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, result: Result) -> None:
        if result.inspector is not None:
            raise StoreError("No room.")

    monkeypatch.setattr("probes.commands.keep", full)
    result = run("inspect", options(out=tmp_path))
    assert result.inspector is not None
    assert (result.run.exit_code, [warned.code for warned in result.warnings]) == (5, ["not_saved"])


def test_a_zero_byte_answer_and_a_loop_are_not_exceptions() -> None:
    assert run("audit", options(), FakeModel(wrong="empty", accuracy=lambda n: 0.0)).run.exit_code == 3


def test_the_usable_ceiling_comes_from_the_audit_and_compat_rows_stand_beside() -> None:
    model = FakeModel()

    async def ask(question: Ask) -> Answer:
        return model.answer(question)

    opts = options(compat="quantamind", tiers="easy", hardware="apple:64GiB")
    result = run("report", opts, ask=ask)
    assert result.inspector is not None
    assert result.inspector.memory.ceilings.usable_tokens == pytest.approx(2048, rel=0.02)
    assert result.compat is not None
    assert {row.name for row in result.compat.inspector} >= {"Cold load", "Prompt prefill", "Throughput", "Memory"}
    assert len(result.compat.audit_rungs) == 5
    assert result.agent is not None
