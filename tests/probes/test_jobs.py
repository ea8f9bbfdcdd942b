"""The queue with a tiny fake in the place of Python: a script that says what `probes.job` would say."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from probes.jobs import KEPT, QUEUE_MAX, Job, Jobs, headline, replays_of
from qm_proxy.errors import SettingsError

FAKE = """#!{python}
import json, pathlib, signal, sys
settings = json.loads(sys.argv[3])
pathlib.Path({log!r}).open("a").write(json.dumps(settings) + chr(10))
def say(**what): print(json.dumps(what), flush=True)
say(progress=dict(text="loading", step=1, steps=4, elapsed_s=0.5, eta_s=3.0))
model = settings["model"]
if model == "waits":
    def stopped(*_):
        say(result={{"audit": {{"sentence": "half of it"}}}}, report="# half")
        sys.exit(130)
    signal.signal(signal.SIGINT, stopped)
    say(progress=dict(text="waiting", step=2, steps=4, elapsed_s=0.6, eta_s=None))
    sys.stdin.read()
elif model == "fails":
    say(error="There is no model 'fails' on this server.", exit_code=2)
    sys.exit(2)
elif model == "silent":
    sys.exit(1)
elif model == "noisy":
    print("this is no JSON", flush=True)
say(result={{"audit": {{"sentence": "works up to 8 k"}}}}, report="# " + model)
"""


class Rig:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = directory / "started.jsonl"
        self.log.touch()
        fake = directory / "python"
        fake.write_text(FAKE.format(python=sys.executable, log=str(self.log)))
        fake.chmod(0o755)
        monkeypatch.setattr("probes.jobs.sys.executable", str(fake))
        self.rows: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.jobs = Jobs("http://127.0.0.1:1", directory, self._store, lambda name, data: self.told.append(data))

    def _store(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))

    def started(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def states(self, job: Job) -> list[str]:
        return [row["state"] for row in self.rows if row["id"] == job.run_id]

    async def until(self, job: Job, state: str) -> None:
        async with asyncio.timeout(60):
            while job.state != state or (state == "running" and job.message != "waiting"):
                job.changed.clear()
                await job.changed.wait()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


async def test_a_run_knows_its_folder_and_the_page_in_it(rig: Rig, tmp_path: Path) -> None:
    """The folder travels with the row, so that after a restart the page is found, and the same run resumes in it."""
    job = rig.jobs.start("agent", "m")
    await rig.until(job, "done")
    row = job.row()
    assert row["settings"] == {"out": str(tmp_path / job.directory)} == {"out": rig.started()[0]["out"]}
    assert job.settings == {}
    assert replays_of(row) is None
    (tmp_path / job.directory).mkdir()
    (tmp_path / job.directory / "replays.html").write_text("<p>walked")
    assert replays_of(row) == tmp_path / job.directory / "replays.html"
    assert replays_of({"settings": None}) is replays_of({}) is None

    later = Jobs("http://127.0.0.1:1", tmp_path, rig._store)
    later.adopt([{**row, "state": "running"}])
    assert replays_of(later.jobs[job.run_id].row()) == replays_of(row)
    again, other = later.start("agent", "m"), later.start("agent", "m")
    assert again.directory == job.directory != other.directory
    await rig.until(other, "done")


async def test_a_run_from_queue_to_result(rig: Rig) -> None:
    job = rig.jobs.start("audit", "qwen3:8b", seed=7, depth=None)
    assert (job.state, job.summary) == ("queued", "Audit of qwen3:8b is queued: waiting for its turn")
    heard: list[str] = []

    async def told(one: Job) -> None:
        heard.append(one.state)

    await rig.jobs.wait(job, 60, told)
    assert (job.state, job.report) == ("done", "# qwen3:8b")
    assert job.summary == "Audit of qwen3:8b: works up to 8 k"
    assert rig.states(job) == ["queued", "running", "done"]
    assert heard[-1] == "done"
    [settings] = rig.started()
    assert settings["upstream"] == "http://127.0.0.1:1"
    assert (settings["kind"], settings["seed"], "depth" in settings) == ("audit", 7, False)
    assert settings["out"].endswith("audit-qwen3_8b-seed7")
    assert rig.rows[-1]["result"] == {"audit": {"sentence": "works up to 8 k"}}
    assert any(row["step"] == 1 and row["steps"] == 4 for row in rig.told)
    assert all("result" not in row for row in rig.told)
    assert job.ended_at is not None


@pytest.mark.parametrize(("model", "words"), [("fails", "no model 'fails'"), ("silent", "ended without a result")])
async def test_a_run_that_fails_says_why(rig: Rig, model: str, words: str) -> None:
    job = rig.jobs.start("inspect", model)
    await rig.jobs.wait(job, 60)
    assert (job.state, words in job.message, job.result) == ("failed", True, None)


async def test_a_line_that_is_no_json_is_passed_over(rig: Rig) -> None:
    job = rig.jobs.start("inspect", "noisy")
    await rig.jobs.wait(job, 60)
    assert job.state == "done"


async def test_one_at_a_time_in_order(rig: Rig) -> None:
    first, second, third = (rig.jobs.start("inspect", name) for name in ("waits", "b", "c"))
    await rig.until(first, "running")
    assert (second.state, third.state) == ("queued", "queued")
    assert first.summary == "Inspector of waits is running, step 2 of 4: waiting"
    assert len(rig.started()) == 1
    await rig.jobs.cancel(first)
    await rig.jobs.wait(third, 60)
    assert [s["model"] for s in rig.started()] == ["waits", "b", "c"]
    assert (first.state, second.state, third.state) == ("cancelled", "done", "done")


async def test_what_a_cancelled_run_had_measured_is_kept(rig: Rig) -> None:
    job = rig.jobs.start("audit", "waits")
    await rig.until(job, "running")
    await rig.jobs.cancel(job)
    assert (job.state, job.result, job.report) == ("cancelled", {"audit": {"sentence": "half of it"}}, "# half")
    assert rig.rows[-1]["result"] is not None
    await rig.jobs.cancel(job)  # again: stays as it is
    assert rig.states(job).count("cancelled") == 1


async def test_cancelled_before_its_turn_it_never_starts(rig: Rig) -> None:
    first, second = rig.jobs.start("inspect", "waits"), rig.jobs.start("inspect", "b")
    await rig.until(first, "running")
    await rig.jobs.cancel(second)
    assert second.state == "cancelled"
    await rig.jobs.cancel(first)
    assert [s["model"] for s in rig.started()] == ["waits"]


async def test_cancelled_while_it_starts_it_stays_cancelled(rig: Rig) -> None:
    job = rig.jobs.start("inspect", "b")
    await asyncio.sleep(0)  # the worker takes it and waits for the process
    assert (job in rig.jobs._queue, job.process) == (False, None)
    await rig.jobs.cancel(job)
    after = rig.jobs.start("inspect", "c")
    await rig.jobs.wait(after, 60)
    assert (job.state, job.result, rig.states(job)) == ("cancelled", None, ["queued", "cancelled"])
    assert after.state == "done"


async def test_waiting_ends_without_ending_the_run(rig: Rig) -> None:
    job = rig.jobs.start("inspect", "waits")
    await rig.until(job, "running")
    await rig.jobs.wait(job, 0.01)
    assert job.state == "running"
    waiting = asyncio.ensure_future(rig.jobs.wait(job, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert job.state == "running"
    await rig.jobs.close()
    assert rig.states(job)[-1] == "cancelled"


@pytest.mark.parametrize("model", ["", "a b", "-x", "$(reboot)", "x" * 300, "a\nb"])
async def test_what_is_no_model_name(rig: Rig, model: str) -> None:
    with pytest.raises(SettingsError, match="no model name"):
        rig.jobs.start("inspect", model)
    assert rig.jobs.jobs == {}


async def test_too_many_waiting(rig: Rig) -> None:
    first = rig.jobs.start("inspect", "waits")
    await rig.until(first, "running")
    for n in range(QUEUE_MAX):
        rig.jobs.start("inspect", f"m{n}")
    with pytest.raises(SettingsError, match="waiting already"):
        rig.jobs.start("inspect", "more")
    await rig.jobs.close()
    assert first.state == "cancelled"


async def test_a_program_that_cannot_start_takes_no_other_with_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("probes.jobs.sys.executable", "/no/such/python")
        lost = rig.jobs.start("inspect", "a")
        await rig.jobs.wait(lost, 60)
    assert (lost.state, "FileNotFoundError" in lost.message) == ("failed", True)
    job = rig.jobs.start("inspect", "b")
    await rig.jobs.wait(job, 60)
    assert job.state == "done"


async def test_only_so_many_that_ended_are_kept(rig: Rig) -> None:
    for n in range(KEPT + 5):
        old = Job(f"inspect-{n:012x}", "inspect", "m", {}, state="done")
        rig.jobs.jobs[old.run_id] = old
    job = rig.jobs.start("inspect", "b")
    assert len(rig.jobs.jobs) == KEPT
    assert job.run_id in rig.jobs.jobs
    await rig.jobs.wait(job, 60)


def test_after_a_restart_the_unfinished_have_failed(tmp_path: Path) -> None:
    rows: list[Mapping[str, Any]] = []
    Jobs("u", tmp_path, rows.append).adopt([{"id": "audit-1", "kind": "audit", "model": "m", "state": "running"}])
    [row] = rows
    assert (row["state"], "resume" in row["message"], row["summary"]) == (
        "failed",
        True,
        "Audit of m is failed: the proxy was restarted; start the same run again to resume it",
    )


async def test_the_same_run_started_again_resumes_what_a_restart_interrupted(rig: Rig, tmp_path: Path) -> None:
    """It works in the interrupted run's directory, once; another question, and the run after it, have their own."""
    row = {"id": "audit-1f2c", "kind": "audit", "model": "m", "state": "running", "settings": {"quick": True}}
    rig.jobs.adopt([row])
    for settings in ({"quick": False}, {"quick": True}, {"quick": True}):
        await rig.jobs.wait(rig.jobs.start("audit", "m", **settings), 60)
    other, resumed, fresh = (Path(one["out"]).name for one in rig.started())
    assert resumed == "audit-m-1f2c"
    assert len({other, resumed, fresh}) == 3
    assert rig.rows[0]["settings"] == {"quick": True, "out": str(tmp_path / "audit-m-1f2c")}


def _cell(value: float | None) -> dict[str, Any]:
    return {"inspector": {"decode": {"cells": [{"rate": {"value": value}, "depth_tokens": 512}]}}}


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({}, "finished, nothing could be measured"),
        ({"inspector": None, "audit": None}, "finished, nothing could be measured"),
        (_cell(41.26), "41.3 tok/s at 512 tokens of context"),
        (_cell(None), "finished, nothing could be measured"),
        ({"inspector": {"decode": {"cells": [{"rate": None, "depth_tokens": 1}]}}}, "finished, nothing could be measured"),
        (_cell(10.0) | {"agent": {"sentence": "READY"}}, "10.0 tok/s at 512 tokens of context; READY"),
    ],
)
def test_the_headline(result: dict[str, Any], said: str) -> None:
    assert headline(result) == said
