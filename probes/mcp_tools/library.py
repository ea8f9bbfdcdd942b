"""What a client's user picks: resources `qm://…`, prompts, and completions of the names in both."""

from __future__ import annotations

import json
from collections.abc import Callable

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from probes.jobs import Jobs
from probes.mcp_tools.answers import Json
from probes.mcp_tools.runs import row_of
from qm_proxy.store.queries import Archive

__all__ = ["register"]


def register(
    mcp: MCPServer, queries: Archive, status: Callable[[], Json], jobs: Jobs | None, models: Callable[[], list[str]]
) -> None:
    """Add them to the server. `models`: names of installed models."""
    _resources(mcp, queries, status, jobs)
    _prompts(mcp)
    _completions(mcp, queries, jobs, models)


def _resources(mcp: MCPServer, queries: Archive, status: Callable[[], Json], jobs: Jobs | None) -> None:
    def found(run_id: str) -> Json:
        row = row_of(run_id, queries, jobs)
        if row is None:
            raise ResourceNotFoundError(f"no run {run_id!r}")
        return row

    @mcp.resource("qm://status", mime_type="application/json")
    def status_now() -> str:
        """The proxy's state."""
        return json.dumps(status())

    @mcp.resource("qm://sessions/{session_id}", mime_type="application/json")
    def session(session_id: str) -> str:
        """One session with its turns."""
        found = queries.session(session_id)
        if found is None:
            raise ResourceNotFoundError(f"no session {session_id!r}")
        return json.dumps(found)

    @mcp.resource("qm://traces/{exchange_id}", mime_type="application/json")
    def trace(exchange_id: str) -> str:
        """One exchange with every chunk's time."""
        exchange = queries.exchange(exchange_id)
        if exchange is None:
            raise ResourceNotFoundError(f"no exchange {exchange_id!r}")
        return json.dumps({"exchange": exchange, "chunks": queries.chunks(exchange_id)})

    @mcp.resource("qm://runs/{run_id}", mime_type="application/json")
    def run(run_id: str) -> str:
        """One run as it stands, with its result when done."""
        return json.dumps({k: v for k, v in found(run_id).items() if k != "report"})

    @mcp.resource("qm://reports/{run_id}", mime_type="text/markdown")
    def report(run_id: str) -> str:
        """The report of a finished run."""
        text = found(run_id).get("report")
        if not text:
            raise ResourceNotFoundError(f"the run {run_id!r} has no report yet")
        return str(text)


def _prompts(mcp: MCPServer) -> None:
    @mcp.prompt()
    def why_slow(session_id: str) -> str:
        """Why was this session slow?"""
        return (
            f"Use the qm tools: get_session('{session_id}', view='turns'), then explain_exchange for the slowest turns. "
            "Say in plain words where the time went (queue, load, prefill, decode, tools, client), with the numbers, "
            "and what to change."
        )

    @mcp.prompt()
    def explain_cliff(model: str) -> str:
        """Where does this model's context stop working?"""
        return (
            f"Use audit_context(model='{model}') and poll get_run until it is done. Explain the verdict: up to how many "
            "tokens facts are still found, how sure that is, and what it means for an agent's transcripts."
        )

    @mcp.prompt()
    def compare_models(a: str, b: str) -> str:
        """Which of two models is better here?"""
        return (
            f"Run inspect_model and audit_context for '{a}' and for '{b}', one after the other, then compare_runs. "
            "Say what differs beyond chance, what does not, and which one you would use for what."
        )


def _completions(mcp: MCPServer, queries: Archive, jobs: Jobs | None, models: Callable[[], list[str]]) -> None:
    def runs() -> list[str]:
        young = [] if jobs is None else list(reversed(jobs.jobs))
        return list(dict.fromkeys([*young, *(r["id"] for r in queries.runs(limit=100)["items"])]))

    @mcp.completion()  # type: ignore[no-untyped-call,untyped-decorator]
    async def complete(
        ref: PromptReference | ResourceTemplateReference, argument: CompletionArgument, context: CompletionContext | None
    ) -> Completion | None:
        sources: dict[str, Callable[[], list[str]]] = {
            "model": models,
            "a": models,
            "b": models,
            "session_id": lambda: [s["id"] for s in queries.sessions(limit=100)["items"]],
            "exchange_id": lambda: [e["id"] for e in queries.exchanges(limit=100)["items"]],
            "run_id": runs,
        }
        if (source := sources.get(argument.name)) is None:
            return None
        fitting = [value for value in source() if value.lower().startswith(argument.value.lower())]
        return Completion(values=fitting[:100], total=len(fitting), has_more=len(fitting) > 100)
