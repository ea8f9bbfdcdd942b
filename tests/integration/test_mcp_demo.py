"""An agent alone with the demo: in both protocol eras, over HTTP and stdio, it finds the slowest request and learns why, runs an
audit to its end, cancels another, and reads the report. It knows nothing but what the tools say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client, StdioServerParameters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def console() -> Iterator[str]:
    """`qm-proxy demo`, for all of them: their audits queue behind one another, as those of several agents would."""
    command = [sys.executable, "-m", "qm_proxy", "demo"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert demo.stdout is not None
    try:
        yield demo.stdout.readline().split()[-1]
    finally:
        demo.terminate()
        demo.communicate(timeout=120)


@asynccontextmanager
async def _client(console: str, transport: str, mode: Literal["auto", "legacy"], directory: Path) -> AsyncIterator[Client]:
    if transport == "http":
        async with Client(f"{console}/mcp", mode=mode) as client:
            yield client
        return
    pipe = ["-m", "qm_proxy", "mcp", "--console", console.removeprefix("http://"), "--db", str(directory / "none.db")]
    async with Client(StdioServerParameters(command=sys.executable, args=pipe), mode=mode) as client:
        yield client


def _whole(result: Any) -> Json:
    """What a client that forwards only one of the two channels can read is in both."""
    assert not result.is_error, result.content[0].text
    assert len(result.content[0].text) <= 4000
    found: Json = result.structured_content
    assert found["summary"][:60] in result.content[0].text
    return found


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_an_agent_alone_with_the_demo(
    console: str, transport: str, mode: Literal["auto", "legacy"], tmp_path: Path
) -> None:
    async with _client(console, transport, mode, tmp_path) as client:

        async def call(tool: str, **arguments: Any) -> Any:
            return await client.call_tool(tool, arguments)

        # the slowest request, and why: from list to session to exchange, by the ids that each answer gives
        turns: list[Json] = []
        while not any(turn["total_s"] for turn in turns):
            page = _whole(await call("list_sessions", limit=100))
            for session in page["items"]:
                turns += _whole(await call("get_session", session_id=session["id"], view="turns"))["data"]["items"]
        slowest = max((turn for turn in turns if turn["total_s"]), key=lambda turn: turn["total_s"])
        told = await call("explain_exchange", exchange_id=slowest["id"])
        why = _whole(told)
        assert why["data"]["total_s"] == pytest.approx(slowest["total_s"])
        assert why["data"]["slow_because"], "the slowest of all says why"
        print(f"{transport}, {mode}: of {len(turns)} turns the slowest took {slowest['total_s']:.1f} s: {why['summary']}")

        # an audit to its end, another cancelled while it waits
        audit = _whole(await call("audit_context", model="steady", max_tokens=1024, seed=7, wait_s=0))
        other = _whole(await call("audit_context", model="steady", max_tokens=1024, seed=8, wait_s=0))
        assert other["state"] == "queued"
        assert _whole(await call("cancel_run", run_id=other["run_id"]))["state"] == "cancelled"
        while audit["state"] in ("queued", "running"):
            audit = _whole(await call("get_run", run_id=audit["run_id"], wait_s=20))
        assert audit["state"] == "done", audit["message"]

        # its report: in parts by the tool, and whole as a resource
        read, at = "", 0
        while at is not None:
            part = _whole(await call("get_run", run_id=audit["run_id"], report_at=at))["result"]
            read += part["report"]
            at = part["report_next"]
        assert read == (await client.read_resource(audit["report_uri"])).contents[0].text
        states = {run["id"]: run["state"] for run in _whole(await call("list_runs", limit=50))["items"]}
        assert (states[audit["run_id"]], states[other["run_id"]]) == ("done", "cancelled")
        print(f"  audit {audit['run_id']}: {audit['elapsed_s']:.0f} s, {audit['summary']} Report: {len(read)} characters.")
