"""Runs of probes as jobs: started, followed, cancelled, resumed; one at a time, the others queued.

Rules that hold here:

- A job is a process of its own (`probes.job`); it outlives the call that started it, not the proxy. What it had measured lies
  in its directory, so the same run can be resumed.
- `store` is told of every change of state; after a restart, what it still calls queued or running is marked failed and resumable.
- Waiting for a job (`wait`) never ends it: only `cancel` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import signal
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from qm_proxy.errors import SettingsError
from qm_proxy.tasks import spawn

__all__ = ["ENDED", "Job", "Jobs", "replays_of"]

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
KEPT = 100
QUEUE_MAX = 8
_MODEL = re.compile(r"[A-Za-z0-9][\w.:/@-]{0,199}")


@dataclass(slots=True)
class Job:
    """One run, as CONTRACT's MCP section shows it."""

    run_id: str
    kind: str
    model: str
    settings: dict[str, Any]
    state: State = "queued"
    step: int = 0
    steps: int = 0
    message: str = "waiting for its turn"
    started: float | None = None
    started_at: str = ""
    ended_at: str | None = None
    elapsed_s: float = 0.0
    eta_s: float | None = None
    result: dict[str, Any] | None = None
    report: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None
    cancelled: bool = False
    directory: str = ""  # name of the folder that keeps what it measures; a run that resumes another has the other's
    out: Path | None = None  # that folder

    @property
    def summary(self) -> str:
        what = {"inspect": "Inspector", "audit": "Audit", "agent": "Agent Report", "report": "Report"}[self.kind]
        if self.state == "done" and self.result is not None:
            return f"{what} of {self.model}: {headline(self.result)}"
        step = f", step {self.step} of {self.steps}" if self.steps and self.state == "running" else ""
        return f"{what} of {self.model} is {self.state}{step}: {self.message}"

    def row(self) -> dict[str, Any]:
        """The columns of the store's `runs`."""
        return {
            "id": self.run_id,
            "kind": self.kind,
            "model": self.model,
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "message": self.message,
            "summary": self.summary,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "elapsed_s": round(self.elapsed_s, 3),
            "settings": self.settings if self.out is None else {**self.settings, "out": str(self.out)},
            "result": self.result,
            "report": self.report,
        }


def headline(result: Mapping[str, Any]) -> str:
    """What a finished run says in one line, from its own verdicts."""
    parts: list[str] = []
    cells = ((result.get("inspector") or {}).get("decode") or {}).get("cells") or []
    rate = (cells[0].get("rate") or {}).get("value") if cells else None
    if rate is not None:
        parts.append(f"{rate:.1f} tok/s at {cells[0]['depth_tokens']} tokens of context")
    for name in ("audit", "agent", "joint"):
        if sentence := (result.get(name) or {}).get("sentence"):
            parts.append(sentence)
    return "; ".join(parts) or "finished, nothing could be measured"


def replays_of(row: Mapping[str, Any]) -> Path | None:
    """The page of all its agent runs, step by step, that this run's row leads to; `None` where there is none."""
    out = (row.get("settings") or {}).get("out")
    page = Path(out) / "replays.html" if out else None
    return page if page is not None and page.is_file() else None


class Jobs:
    """The queue and its one worker. Use from one event loop. `directory`: where runs keep what they measured; `console`: the
    URL at which a run asks whether others use the upstream, or "off"."""

    def __init__(
        self,
        upstream: str,
        directory: Path,
        store: Callable[[Mapping[str, Any]], None] = lambda row: None,
        announce: Callable[[str, dict[str, Any]], None] = lambda name, data: None,
        console: str = "off",
    ) -> None:
        self._upstream = upstream
        self._directory = directory
        self._store = store
        self._announce = announce
        self._console = console
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self._queue: deque[Job] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._resumable: dict[str, str] = {}  # question → directory of a run that was interrupted

    # --- what callers do ----------------------------------------------------------------------------------------------

    def start(self, kind: str, model: str, **settings: Any) -> Job:
        """Queue a run. Raises `SettingsError`: a model name that is none, or too many runs waiting."""
        if not _MODEL.fullmatch(model):
            raise SettingsError(f"{model!r} is no model name.", remedy="get_status lists the installed models.")
        if len(self._queue) >= QUEUE_MAX:
            raise SettingsError(f"{QUEUE_MAX} runs are waiting already.", remedy="Wait for one, or cancel_run.")
        job = Job(f"{kind}-{secrets.token_hex(6)}", kind, model, {k: v for k, v in settings.items() if v is not None})
        job.started_at = _now()
        self.jobs[job.run_id] = job
        job.directory = self._resumable.pop(_question(job), "") or _slug(job)
        job.out = self._directory / job.directory
        for run_id in [r for r, j in self.jobs.items() if j.state in ENDED][: max(0, len(self.jobs) - KEPT)]:
            del self.jobs[run_id]
        self._queue.append(job)
        self._tell(job)
        if self._worker is None or self._worker.done():
            self._worker = spawn(self._work(), name="probe jobs")
        return job

    async def wait(self, job: Job, patience_s: float, told: Callable[[Job], Any] | None = None) -> None:
        """Until `job` has ended, at most `patience_s`; `told` hears of every change. Cancelling the wait leaves the job alone."""
        deadline = time.monotonic() + patience_s
        while job.state not in ENDED and (left := deadline - time.monotonic()) > 0:
            job.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.changed.wait(), min(left, 5.0))
            if told is not None:
                await told(job)

    async def cancel(self, job: Job) -> None:
        """End it: what was measured is kept and marked. A run that has ended stays as it is."""
        if job.state in ENDED:
            return
        job.cancelled = True
        if job.process is None:
            if job in self._queue:
                self._queue.remove(job)
            self._end(job, "cancelled", "cancelled before it began")
            return
        with contextlib.suppress(ProcessLookupError):
            job.process.send_signal(signal.SIGINT)
        await self.wait(job, 10.0)
        if job.state not in ENDED:
            with contextlib.suppress(ProcessLookupError):
                job.process.kill()
            await self.wait(job, 5.0)

    async def close(self) -> None:
        """The proxy stops: running jobs are interrupted and keep what they have."""
        self._queue.clear()
        for job in self.jobs.values():
            if job.state == "running":
                await self.cancel(job)

    def adopt(self, unfinished: list[dict[str, Any]]) -> None:
        """After a restart: runs that the store still calls unfinished have failed, and can be resumed."""
        for row in unfinished:
            settings = dict(row.get("settings") or {})
            out = settings.pop("out", None)
            one = Job(row["id"], row["kind"], row["model"], settings)
            one.directory = Path(out).name if out else _slug(one)
            one.out = self._directory / one.directory
            self._resumable[_question(one)] = one.directory
            one.state, one.message = "failed", "the proxy was restarted; start the same run again to resume it"
            one.step, one.steps, one.elapsed_s = row.get("step") or 0, row.get("steps") or 0, row.get("elapsed_s") or 0.0
            one.started_at, one.ended_at = row.get("started_at") or "", _now()
            self.jobs[one.run_id] = one  # told from here: the store takes a moment
            self._store(one.row())

    # --- the worker ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._queue:
            job = self._queue.popleft()
            try:
                await self._run(job)
            except Exception as exc:  # a job that cannot even start must not take the queue with it
                self._end(job, "failed", f"{type(exc).__name__}: {exc}")

    async def _run(self, job: Job) -> None:
        settings = {
            "kind": job.kind,
            "model": job.model,
            "upstream": self._upstream,
            "out": str(job.out),
            "console": self._console,
            **job.settings,
        }
        job.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "probes.job",
            json.dumps(settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=64 * 2**20,
        )
        assert job.process.stdout is not None
        if job.cancelled:  # while it was being started
            with contextlib.suppress(ProcessLookupError):
                job.process.kill()
            await job.process.communicate()
            return
        job.state, job.started, job.message = "running", time.monotonic(), "started"
        self._tell(job)
        error = "it ended without a result"
        async for line in job.process.stdout:
            with contextlib.suppress(ValueError):
                error = self._hear(job, json.loads(line)) or error
        code = await job.process.wait()
        if job.cancelled:
            self._end(job, "cancelled", "cancelled; what was measured is kept")
        elif job.result is not None:
            self._end(job, "done", f"finished with exit code {code}")
        else:
            self._end(job, "failed", error)

    def _hear(self, job: Job, message: dict[str, Any]) -> str | None:
        if progress := message.get("progress"):
            job.message, job.step, job.steps = progress["text"], progress["step"], progress["steps"]
            job.elapsed_s, job.eta_s = progress["elapsed_s"], progress["eta_s"]
            self._tell(job, keep=False)
        if "result" in message:
            job.result, job.report = message["result"], message["report"]
        return message.get("error")

    def _end(self, job: Job, state: State, message: str) -> None:
        job.state, job.message, job.eta_s = state, message, None
        job.ended_at = _now()
        if job.started is not None:
            job.elapsed_s = time.monotonic() - job.started
        self._tell(job)

    def _tell(self, job: Job, *, keep: bool = True) -> None:
        job.changed.set()
        row = job.row()
        if keep:
            self._store(row)
        self._announce("run", {k: v for k, v in row.items() if k not in ("result", "report", "settings")})


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _question(job: Job) -> str:
    """What makes two runs the same run."""
    return json.dumps([job.kind, job.model, job.settings], sort_keys=True, default=str)


def _slug(job: Job) -> str:
    """The directory of a run: by kind, model and seed, so that the same run started again finds what it had."""
    seed = job.settings.get("seed")
    tail = job.run_id.rpartition("-")[2] if seed is None else f"seed{seed}"
    return re.sub(r"[^\w.-]+", "_", f"{job.kind}-{job.model}-{tail}")
