"""The tools around runs of probes: start one, follow it, compare two, cancel. A run outlives the call that started it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult
from pydantic import Field

from probes import pictures
from probes.comparing import compared
from probes.jobs import ENDED, Job, Jobs, replays_of
from probes.mcp_tools.answers import (
    CANCEL,
    LINE_MAX,
    PROBE,
    READ,
    Found,
    Json,
    Limit,
    Rows,
    Run,
    Wait,
    answer,
    bounded,
    fitting,
    line,
    tried,
)
from qm_proxy.errors import QmError
from qm_proxy.store.queries import Archive

__all__ = ["register", "row_of"]

POLL_S = 5.0
PART = 3000  # characters of a report in one answer


def register(mcp: MCPServer, queries: Archive, jobs: Jobs | None) -> None:
    """Add them to the server. `jobs` None is read-only mode: nothing that starts or cancels."""
    _reading(mcp, queries, jobs)
    if jobs is not None:
        _cancelling(mcp, queries, jobs)
        _starting(mcp, jobs)


def row_of(run_id: str, queries: Archive, jobs: Jobs | None) -> Json | None:
    """The run as it stands: from memory while it is young, else from the store."""
    job = jobs.jobs.get(run_id) if jobs is not None else None
    row = job.row() if job is not None else queries.run(run_id)
    return None if row is None else dict(row)


def _found(run_id: str, queries: Archive, jobs: Jobs | None) -> Job | Json:
    if jobs is not None and (job := jobs.jobs.get(run_id)) is not None:
        return job
    row = tried(lambda: queries.run(run_id))
    if row is None:
        raise ToolError(f"There is no run {run_id!r}. list_runs() shows them.")
    return dict(row)


def _reading(mcp: MCPServer, queries: Archive, jobs: Jobs | None) -> None:
    @mcp.tool(annotations=READ)
    async def get_run(
        run_id: str,
        wait_s: Wait = 20,
        report_at: Annotated[int | None, Field(ge=0, description="Read its report from this character on")] = None,
        *,
        ctx: Context,
    ) -> Annotated[CallToolResult, Run]:
        """A run's state; waits up to `wait_s` for its end. When done: its numbers, and where the report is."""
        found = _found(run_id, queries, jobs)
        if isinstance(found, Job):
            assert jobs is not None
            await jobs.wait(found, wait_s, lambda job: _progress(ctx, job))
        return _told(found) if report_at is None else _report(found, report_at)

    @mcp.tool(annotations=READ)
    def list_runs(
        limit: Limit = 20,
        state: Literal["queued", "running", "done", "failed", "cancelled"] | None = None,
        cursor: str | None = None,
    ) -> Annotated[CallToolResult, Rows]:
        """Runs of the probes, newest first."""

        def ask(n: int) -> Json:
            page = queries.runs(limit=n, state=state, cursor=cursor)
            by_id = {row["id"]: row for row in page["items"]}
            if jobs is not None:  # fresher than the store, and before it on the first page
                young = {j.run_id: _short(j.row()) for j in jobs.jobs.values()}
                by_id |= {k: row for k, row in young.items() if k in by_id or (cursor is None and not _stored(queries, k))}
            items = [row for row in by_id.values() if state in (None, row["state"])]
            items = sorted(items, key=lambda r: (r["started_at"] or "", r["id"]), reverse=True)
            return {"items": items[:n], "next_cursor": items[n - 1]["id"] if len(items) > n else page["next_cursor"]}

        page, lines = fitting(ask, limit, lambda r: line(f"{r['id']} {r['state']}: {r['summary']}"))
        after = page["next_cursor"]
        summary = f"{len(lines)} runs" + (", more follow" if after else "")
        ahead = "Next: get_run(run_id='…'), or compare_runs(a='…', b='…') of two that are done."
        if not lines:
            ahead = "Next: inspect_model, audit_context or report_agent starts one." if jobs is not None else ""
        if after:
            ahead += f" More: list_runs(cursor='{after}'{'' if state is None else f', state={state!r}'})."
        return answer(Rows(summary=summary, items=page["items"], next_cursor=after), summary, lines, ahead)

    @mcp.tool(annotations=READ)
    async def compare_runs(a: str, b: str) -> Annotated[CallToolResult, Found]:
        """Two finished runs side by side: differences with intervals, or how large one would have to be to be seen."""
        try:
            made = await compared(row_of(a, queries, jobs), row_of(b, queries, jobs), names=(a, b))
        except QmError as exc:
            raise ToolError(f"{exc} list_runs(state='done') shows finished runs.") from exc
        metrics = made["metrics"]
        lines = [line(m["words"], 400) for m in metrics]
        if made["cliffs"]:
            lines += [line(f"{name}: {made['cliffs'][name]}", 400) for name in ("a", "b", "words")]
        lines += [line(f"! {warning}", 400) for warning in made["warnings"]]
        return answer(Found(summary=made["sentence"], data=bounded(made, rows=40)), made["sentence"], lines)


def _cancelling(mcp: MCPServer, queries: Archive, jobs: Jobs) -> None:
    @mcp.tool(annotations=CANCEL)
    async def cancel_run(run_id: str) -> Annotated[CallToolResult, Run]:
        """End a run; what was measured so far is kept. A run that has ended stays as it is."""
        found = _found(run_id, queries, jobs)
        if isinstance(found, Job):
            await jobs.cancel(found)
        return _told(found)


def _starting(mcp: MCPServer, jobs: Jobs) -> None:
    async def begin(ctx: Context, kind: str, model: str, wait_s: float, **settings: Any) -> CallToolResult:
        try:
            job = jobs.start(kind, model, **settings)
        except QmError as exc:
            raise ToolError(str(exc)) from exc
        await jobs.wait(job, wait_s, lambda j: _progress(ctx, j))
        return _told(job)

    @mcp.tool(annotations=PROBE)
    async def inspect_model(
        model: str, depth: Literal["quick", "full"] = "quick", wait_s: Wait = 20, *, ctx: Context
    ) -> Annotated[CallToolResult, Run]:
        """Inspector: cold load, prefill, decode speed, stalls, memory ceilings. Loads the model; quick takes a minute."""
        return await begin(ctx, "inspect", model, wait_s, quick=depth == "quick")

    @mcp.tool(annotations=PROBE)
    async def audit_context(
        model: str,
        max_tokens: Annotated[int | None, Field(ge=512, le=2_000_000)] = None,
        depth: Literal["quick", "full"] = "quick",
        seed: int | None = None,
        wait_s: Wait = 20,
        *,
        ctx: Context,
    ) -> Annotated[CallToolResult, Run]:
        """Audit: up to how many tokens the model still finds facts in its context, and where that ends. Minutes."""
        return await begin(ctx, "audit", model, wait_s, quick=depth == "quick", max_tokens=max_tokens, seed=seed)

    @mcp.tool(annotations=PROBE)
    async def report_agent(
        model: str,
        tiers: Annotated[str | None, Field(description="Comma list of easy, medium, hard, extreme")] = None,
        depth: Literal["quick", "full"] = "quick",
        seed: int | None = None,
        wait_s: Wait = 20,
        *,
        ctx: Context,
    ) -> Annotated[CallToolResult, Run]:
        """Agent Report: does the model finish long work with tools, and how does it fail. Minutes to an hour."""
        return await begin(ctx, "agent", model, wait_s, quick=depth == "quick", tiers=tiers, seed=seed)


async def _progress(ctx: Context, job: Job) -> None:
    """At least every five seconds, always a little more than before."""
    steps = max(job.steps, 1)
    share = min(0.999, job.step / steps + min(0.5, job.elapsed_s / 7200) / steps)
    await ctx.report_progress(share * steps, steps, line(job.message))


def _report(found: Job | Json, at: int) -> CallToolResult:
    """A part of its report, for clients that read no resources."""
    row = found.row() if isinstance(found, Job) else found
    text = row.get("report")
    if not text:
        raise ToolError(
            f"The run {row['id']!r} is {row['state']} and has no report. get_run without report_at says how it stands."
        )
    if at >= len(text):
        raise ToolError(f"The report has {len(text)} characters. Start with report_at=0.")
    end = min(len(text), at + PART)
    if end < len(text) and (stop := text.rfind("\n", at, end)) > at:
        end = stop + 1
    run = _run(row, found)
    run.result = {"report": text[at:end], "report_next": end if end < len(text) else None}
    ahead = f"More: get_run(run_id='{row['id']}', report_at={end})." if end < len(text) else "That was its end."
    run.summary = f"Report of {row['id']}, characters {at} to {end} of {len(text)}:"
    return answer(run, run.summary, text[at:end].rstrip("\n").split("\n"), ahead)


def _told(found: Job | Json) -> CallToolResult:
    row = found.row() if isinstance(found, Job) else found
    run = _run(row, found)
    lines = [line(f"{name}: {value}", 400) for name, value in (run.result or {}).items()]
    ahead = ""
    if run.state not in ENDED:
        eta = "" if run.eta_s is None else f", about {run.eta_s:.0f} s left"
        ahead = f"Still {run.state} ({run.step}/{run.steps}{eta}). Call get_run(run_id='{run.run_id}') in {POLL_S:.0f} s."
    elif run.report_uri:
        ahead = f"The whole report: resource {run.report_uri}, or get_run(run_id='{run.run_id}', report_at=0)."
        ahead += f" Every agent run step by step: {run.replays}" if run.replays else ""
    elif run.state == "failed":
        ahead = "Next: start it again, or get_status() for what the upstream says."
    drawn = pictures.of_result(row["result"]) if row.get("result") else []
    return answer(run, run.summary, lines, ahead, pictures=drawn)


def _run(row: Json, found: Job | Json) -> Run:
    return Run(
        summary=line(row["summary"] or row["message"] or row["state"], 2 * LINE_MAX),
        run_id=row["id"],
        kind=row["kind"],
        state=row["state"],
        step=row["step"] or 0,
        steps=row["steps"] or 0,
        message=line(row["message"] or ""),
        elapsed_s=row["elapsed_s"] or 0.0,
        eta_s=found.eta_s if isinstance(found, Job) else None,
        poll_after_s=None if row["state"] in ENDED else POLL_S,
        result=_numbers(row["result"]) if row.get("result") else None,
        report_uri=f"qm://reports/{row['id']}" if row.get("report") else None,
        replays=str(page) if (page := replays_of(row)) is not None else None,
    )


def _numbers(result: Mapping[str, Any]) -> Json:
    """The key numbers of a result, flat: what a reader decides by."""
    found: Json = {}
    inspector = result.get("inspector") or {}
    for cell in ((inspector.get("decode") or {}).get("cells") or [])[:1]:
        found["decode_tokens_per_s"] = cell["rate"]["value"]
        found["decode_n"] = cell["rate"]["n"]
    for start in inspector.get("cold") or []:
        for name in ("load", "prefill", "total"):
            if found_value := start.get(name):
                found[f"{start['state']}_{name}_{found_value['unit']}"] = found_value["value"]
    for name in ("audit", "agent", "joint"):
        section = result.get(name) or {}
        for key in ("verdict", "sentence", "maintained_tokens", "cliff_between"):
            if section.get(key) is not None:
                found[f"{name}_{key}"] = section[key]
    for tier in (result.get("agent") or {}).get("tiers", []):
        found[f"tier_{tier['tier']}"] = tier.get("badge") or tier["status"]
    return found


def _short(row: Json) -> Json:
    return {k: v for k, v in row.items() if k not in ("settings", "result", "report")}


def _stored(queries: Archive, run_id: str) -> bool:
    return queries.run(run_id) is not None
