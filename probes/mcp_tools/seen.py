"""The tools that read what was seen: status, sessions, one exchange explained, findings. None of them changes anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult
from pydantic import Field

from probes import pictures
from probes.mcp_tools.answers import (
    READ,
    UNTRUSTED,
    Found,
    Json,
    Limit,
    Rows,
    answer,
    bounded,
    fitting,
    line,
    number,
    seconds,
    tried,
)
from qm_proxy.store.queries import Archive
from qm_proxy.waterfall import draw

__all__ = ["brief", "register"]

TURNS = 30
_BRIEF = (
    "id", "started_at", "client", "model", "session_id", "turn", "operation", "ending", "ttft_s", "total_s", "tokens_per_s",
    "input_tokens", "output_tokens", "slow_because", "kind", "severity", "summary", "exchange_id", "run_id", "state",
    "message", "route",
)  # fmt: skip


def register(mcp: MCPServer, queries: Archive, status: Callable[[], Json]) -> None:
    """Add them to the server."""

    @mcp.tool(annotations=READ)
    def get_status() -> Annotated[CallToolResult, Found]:
        """Upstream, loaded models with their windows, requests in flight, and the proxy's own health."""
        found = status()
        loaded = found.get("models")
        names = "unknown" if loaded is None else ", ".join(_model(m) for m in loaded) or "none"
        observer = found["observer"]
        head = f"qm-proxy {found['version']}, {found['proxy']} → {found['upstream']}, up {found['uptime_s']:.0f} s"
        lines = [
            f"loaded models: {names}",
            f"in flight: {found['in_flight']}; exchanges seen: {found['exchanges']}",
            f"missed by the observer: {observer['batches_missed']} batches, {observer['bytes_missed']} bytes; "
            f"restarts {observer['restarts']}",
        ]
        ahead = "Next: list_sessions(), find_anomalies(), or inspect_model(model='…')."
        return answer(Found(summary=head, data=found), head, lines, ahead)

    @mcp.tool(annotations=READ)
    def list_sessions(
        limit: Limit = 20,
        cursor: str | None = None,
        model: str | None = None,
        since: Annotated[str | None, Field(description="ISO instant")] = None,
        flag: Annotated[str | None, Field(description="Only with such a finding: loop, stall, tool, context, …")] = None,
    ) -> Annotated[CallToolResult, Rows]:
        """Agent sessions, last active first: client, models, requests, tokens, tool calls, findings."""
        page, lines = fitting(
            lambda n: queries.sessions(limit=n, cursor=cursor, model=model, since=since, finding=flag), limit, _session
        )
        after = page["next_cursor"]
        summary = f"{len(lines)} sessions" + (", more follow" if after else "")
        ahead = f"More: list_sessions(cursor='{after}')." if after else "Next: get_session(session_id='…')."
        rows = Rows(summary=summary, items=page["items"], next_cursor=after, note=UNTRUSTED if lines else None)
        return answer(rows, summary, lines, ahead)

    @mcp.tool(annotations=READ)
    def get_session(
        session_id: str,
        view: Literal["summary", "turns", "raw"] = "summary",
        cursor: str | None = None,
    ) -> Annotated[CallToolResult, Found]:
        """One session: where its time went, its turns, its calls. `turns` lists them, `raw` is every stored field."""
        whole: Json = {}

        def turns_of(n: int) -> Json:
            session = queries.session(session_id, limit=n, cursor=cursor)
            if session is None:
                raise ToolError(f"There is no session {session_id!r}. list_sessions() shows what there is.")
            shape = bounded if view == "raw" else brief
            whole.update(session, slowest=_slowest(session["items"]))
            return {
                "items": [{**shape(t), "_words": _turn(t)} for t in session["items"]],
                "next_cursor": session.get("next_cursor"),
            }

        page, lines = fitting(turns_of, TURNS, lambda t: str(t["_words"]))
        turns = [{k: v for k, v in t.items() if k != "_words"} for t in page["items"]]
        summary = line(
            f"{whole['client']} with {', '.join(whole['models'])}: {whole['exchanges']} requests, {whole['tool_calls']} calls, "
            f"time in model {seconds(whole.get('model_s'))}, tools {seconds(whole.get('tools_s'))}, "
            f"user {seconds(whole.get('user_s'))}"
        )
        data = {k: v for k, v in whole.items() if k not in ("items", "next_cursor", "slowest")}
        after = page["next_cursor"] if view != "summary" else None
        if view != "summary":
            data |= {"items": turns, "next_cursor": after}
        shown = [*(lines if view != "summary" else []), *whole["slowest"]]
        ahead = "Next: explain_exchange(exchange_id='…')."
        if after:
            ahead = f"More turns: get_session(session_id='{session_id}', view='{view}', cursor='{after}')."
        return answer(Found(summary=summary, data=data, note=UNTRUSTED), summary, shown, ahead)

    @mcp.tool(annotations=READ)
    def explain_exchange(exchange_id: str) -> Annotated[CallToolResult, Found]:
        """Why one request was slow: phases that add up, what it waited for, stalls, findings; with its waterfall."""
        exchange = tried(lambda: queries.exchange(exchange_id))
        if exchange is None:
            raise ToolError(f"There is no exchange {exchange_id!r}. Ids come from get_session, find_anomalies or get_trace.")
        chunks = tried(lambda: queries.chunks(exchange_id))
        exchange = {k: v for k, v in exchange.items() if not k.startswith("captured")}
        first = "" if exchange["ttft_s"] is None else f", first token after {seconds(exchange['ttft_s'])}"
        summary = line(exchange["slow_because"] or f"Nothing was slow: {seconds(exchange['total_s'])} in all{first}.")
        drawn = [one if one.isprintable() else line(one) for one in draw(exchange, chunks, 80)]
        told = Found(summary=summary, data=bounded(exchange), note=UNTRUSTED)
        ahead = f"Its session: get_session(session_id='{exchange['session_id']}')." if exchange.get("session_id") else ""
        return answer(told, summary, drawn, ahead, pictures=pictures.waterfall(exchange, chunks))

    @mcp.tool(annotations=READ)
    def find_anomalies(
        kind: Annotated[str | None, Field(description="A kind or family: loop, tool, stall, context, model, upstream")] = None,
        since: str | None = None,
        limit: Limit = 20,
        cursor: str | None = None,
    ) -> Annotated[CallToolResult, Rows]:
        """What was detected, newest first: loops, false tool calls, stalls, silent truncation, reloads, hung slots."""
        page, lines = fitting(lambda n: queries.findings(limit=n, cursor=cursor, kind=kind, since=since), limit, _finding)
        after = page["next_cursor"]
        summary = f"{len(lines)} findings" + (f" of kind {line(kind, 40)}" if kind else "")
        summary += ", more follow" if after else "" if lines else ": nothing was detected"
        ahead = "Next: explain_exchange(exchange_id='…')." if lines else "Next: list_sessions(), or a wider kind or since."
        if after:
            ahead += f" More: find_anomalies(cursor='{after}'{_same(kind=kind, since=since)})."
        rows = Rows(summary=summary, items=page["items"], next_cursor=after, note=UNTRUSTED if lines else None)
        return answer(rows, summary, lines, ahead)


def brief(row: Mapping[str, object]) -> Json:
    """What a list says of one thing; unknown left out."""
    return {name: row[name] for name in _BRIEF if row.get(name) is not None}


def _same(**given: str | None) -> str:
    return "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)


def _session(s: Json) -> str:
    return line(
        f"{s['id']} {s['started_at'][:19]} {s['client']} {', '.join(s['models'])}: {s['exchanges']} requests, "
        f"{number(s['input_tokens'])}→{number(s['output_tokens'])} tokens, {s['tool_calls']} calls, {s['findings']} findings"
    )


def _finding(f: Json) -> str:
    return line(f"{f['severity']} {f['kind']}: {line(f['summary'], 220)} (exchange {f['exchange_id']})")


def _turn(t: Json) -> str:
    calls = ", ".join(c["name"] for c in t["tool_calls"])
    marks = ", ".join(f["kind"] for f in t.get("findings") or [])
    return line(
        f"turn {number(t['turn'])} {t['id']}: {number(t['input_tokens'])}→{number(t['output_tokens'])} tokens, "
        f"ttft {seconds(t['ttft_s'])}, {seconds(t['total_s'])}, {t['ending']}"
        f"{'; calls ' + calls if calls else ''}{'; ' + marks if marks else ''}"
    )


def _slowest(turns: list[Json]) -> list[str]:
    slow = sorted((t for t in turns if t.get("slow_because")), key=lambda t: -(t["total_s"] or 0))[:3]
    return [line(f"slow: {seconds(t['total_s'])} {t['id']}: {t['slow_because']}") for t in slow]


def _model(m: Json) -> str:
    window = "" if m["context_window_tokens"] is None else f" (window {m['context_window_tokens']})"
    return line(f"{m['name']}{window}", 100)
