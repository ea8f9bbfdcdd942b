"""Order, rows, resume, stop: driven by a model in process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from probes.ask import Answer, Ask, Note, Probe, Stopped, Wait
from probes.audit import audit, audit_plan
from probes.inspector import inspect, plan_for
from probes.rows import Rows
from probes.runner import Progress, Runner, replay
from tests.probes.fakes import FakeModel


def counting(n: int) -> Probe[list[str]]:
    """Asks n questions; when told to stop, answers with what it has."""
    seen: list[str] = []
    try:
        for index in range(n):
            yield Note("going", index, n)
            answer = yield Ask(f"q{index}", "/api/generate", {"prompt": str(index)})
            seen.append(answer.key)
            yield Wait(f"w{index}", 0.0)
    except Stopped:
        seen.append("stopped")
    return seen


async def echo(ask: Ask) -> Answer:
    return Answer(ask.key, status=200, started_ns=0, ended_ns=10**9)


def test_it_asks_in_order_and_reports_progress() -> None:
    told: list[Progress] = []
    outcome = asyncio.run(Runner(echo, on_progress=told.append).run(counting(3)))
    assert (outcome.section, outcome.stopped, outcome.requests) == (["q0", "q1", "q2"], None, 3)
    assert outcome.model_time_s == pytest.approx(3.0)
    assert [(p.step, p.steps) for p in told] == [(0, 3), (1, 3), (2, 3)]
    assert told[0].eta_s is None
    assert told[2].eta_s is not None


def test_a_wait_without_a_byte_is_told_of_with_its_end() -> None:
    told: list[Progress] = []

    async def main() -> None:
        enough = asyncio.Event()

        def listen(progress: Progress) -> None:
            told.append(progress)
            if progress.quiet:
                enough.set()

        async def hang(ask: Ask) -> Answer:
            await enough.wait()
            return await echo(ask)

        await Runner(hang, on_progress=listen, quiet_s=lambda: 61.2, tell_s=0.01).run(counting(1))

    asyncio.run(main())
    assert [p.text for p in told][:2] == ["going", "going: no byte for 61 s; given up after 600 s"]


def test_stop_ends_the_request_in_flight_and_keeps_what_there_is() -> None:
    cancelled: list[str] = []

    async def main() -> object:
        started = asyncio.Event()

        async def hang(ask: Ask) -> Answer:
            if ask.key != "q1":
                return await echo(ask)
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(ask.key)
            raise AssertionError

        runner = Runner(hang)
        running = asyncio.ensure_future(runner.run(counting(5)))
        await started.wait()
        runner.stop("interrupted", "by the user")
        return await running

    outcome = asyncio.run(main())
    assert outcome.section == ["q0", "stopped"]  # type: ignore[attr-defined]
    assert outcome.stopped == "interrupted"  # type: ignore[attr-defined]
    assert cancelled == ["q1"]


def test_a_stop_before_the_start_asks_nothing() -> None:
    runner = Runner(echo)
    runner.stop("cancelled")
    outcome = asyncio.run(runner.run(counting(2)))
    assert (outcome.section, outcome.requests) == (["stopped"], 0)


def test_an_upstream_that_is_gone_is_tried_and_then_stops_the_run() -> None:
    tried: list[str] = []

    async def gone(ask: Ask) -> Answer:
        tried.append(ask.key)
        return Answer(ask.key, ending="upstream_unreachable", error="refused")

    outcome = asyncio.run(Runner(gone, retry_s=0.0).run(counting(4)))
    assert (tried, outcome.section, outcome.stopped) == (["q0", "back", "back"], ["stopped"], "upstream")


def test_an_upstream_that_comes_back_is_waited_for() -> None:
    tries = iter([True, False, False, False, True, True, True, True, True])
    asked: list[str] = []

    async def flaky(ask: Ask) -> Answer:
        asked.append(ask.key)
        return await echo(ask) if next(tries) else Answer(ask.key, ending="upstream_unreachable")

    told: list[Progress] = []
    runner = Runner(flaky, on_progress=told.append, retry_s=0.0)
    assert asyncio.run(runner.run(counting(3))).section == ["q0", "q1", "q2"]
    assert asked == ["q0", "q1", "back", "back", "back", "q0/warm-up", "q0/warm-up", "q1", "q2"]
    assert (runner.requests, runner.returned) == (3, 1)
    assert [p.text for p in told if p.quiet] == ["going: the upstream cannot be reached (None); trying again"] * 3


def test_an_upstream_that_comes_and_goes_for_ever_ends_the_run() -> None:
    async def flickering(ask: Ask) -> Answer:
        return await echo(ask) if ask.key == "back" else Answer(ask.key, ending="upstream_unreachable")

    runner = Runner(flickering, retry_s=0.0)
    assert asyncio.run(runner.run(counting(1))).stopped == "upstream"
    assert runner.returned == 10


def test_a_spent_budget_concludes() -> None:
    outcome = asyncio.run(Runner(echo, budget_s=2.0).run(counting(5)))
    assert (outcome.section, outcome.stopped) == (["q0", "q1", "stopped"], "budget")


def test_a_probe_that_asks_on_is_told_again_until_it_ends() -> None:
    def two_parts() -> Probe[list[list[str]]]:
        first = yield from counting(2)
        second = yield from counting(2)
        return [first, second]

    runner = Runner(echo)
    runner.stop("cancelled")
    assert asyncio.run(runner.run(two_parts())).section == [["stopped"], ["stopped"]]


def test_the_probes_own_errors_come_through() -> None:
    def broken() -> Probe[None]:
        yield Note("x")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(Runner(echo).run(broken()))


def test_resuming_answers_from_rows_and_puts_the_model_back_where_they_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    asyncio.run(Runner(echo, Rows(path), budget_s=2.0).run(counting(5)))
    rows = Rows(path)
    assert rows.load() == 2
    asked: list[str] = []

    async def listen(ask: Ask) -> Answer:
        asked.append(ask.key)
        return await echo(ask)

    outcome = asyncio.run(Runner(listen, rows).run(counting(5)))
    assert outcome.section == ["q0", "q1", "q2", "q3", "q4"]
    assert (outcome.replayed, outcome.requests) == (2, 5)
    assert asked == ["q1/warm-up", "q1/warm-up", "q2", "q3", "q4"]


@pytest.mark.parametrize("kind", ["inspect", "audit"])
@pytest.mark.parametrize("after", [1, 9, 23])
def test_an_interrupted_run_resumed_gives_the_uninterrupted_result(tmp_path: Path, kind: str, after: int) -> None:
    """The model's own chance depends on how often it was asked, so its answers are made a function of the question."""

    def steady(ask: Ask) -> Answer:
        model.now, model._draw = 10**12, __import__("random").Random(ask.key)
        return model.answer(ask)

    async def ask(question: Ask) -> Answer:
        return steady(question)

    def probe() -> Probe[object]:
        if kind == "inspect":
            return inspect(plan_for("fake:8b", "http://x", seed=4, quick=True))
        return audit(audit_plan("fake:8b", "http://x", seed=4, profile="quick", max_tokens=2048))

    model = FakeModel(accuracy=lambda n: 1.0 if n < 1500 else 0.2)
    whole = replay(probe(), steady)
    model = FakeModel(accuracy=lambda n: 1.0 if n < 1500 else 0.2)
    path = tmp_path / "rows.jsonl"

    async def interrupted() -> object:
        runner = Runner(ask, Rows(path))
        left = after

        async def until(question: Ask) -> Answer:
            nonlocal left
            left -= 1
            if left == 0:
                runner.stop("interrupted")
            return steady(question)

        runner.ask = until
        return (await runner.run(probe())).stopped

    assert asyncio.run(interrupted()) == "interrupted"
    rows = Rows(path)
    assert rows.load() == after - 1
    model.loaded = False  # the server unloaded it in between
    assert asyncio.run(Runner(ask, rows).run(probe())).section == whole
