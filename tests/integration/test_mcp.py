"""The MCP server on a real proxy: every tool, both protocol eras, HTTP and stdio."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from mcp import Client, StdioServerParameters
from mcp.types import ResourceUpdatedNotification

from qm_proxy.errors import QmError
from qm_proxy.servant import Servant

TOOLS = {
    "get_status",
    "list_sessions",
    "get_session",
    "explain_exchange",
    "find_anomalies",
    "get_trace",
    "inspect_model",
    "audit_context",
    "report_agent",
    "compare_runs",
    "get_run",
    "list_runs",
    "cancel_run",
}


@pytest.fixture
def proxy(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> Servant:
    """A proxy that has seen one answered request."""
    sim = make_sim(personas=["steady"], speed=20.0)
    servant = serving(sim.url)
    body = {"model": "steady", "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": 30}}
    request = urllib.request.Request(f"{servant.proxy}/api/chat", json.dumps(body).encode(), {"User-Agent": "aider/1"})
    with urllib.request.urlopen(request) as answer:
        answer.read()
    return servant


def structured(result: Any) -> dict[str, Any]:
    """The structured content; text and it are both there and no error."""
    assert not result.is_error, result.content[0].text
    assert result.content[0].text
    assert len(result.content[0].text) <= 4000
    found: dict[str, Any] = result.structured_content
    assert found["summary"] in result.content[0].text or found["summary"][:60] in result.content[0].text
    return found


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_every_tool_answers_in_both_eras(proxy: Servant, mode: Any) -> None:
    async with Client(f"{proxy.console}/mcp", mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == TOOLS
        assert all(len(tool.name) <= 20 and tool.annotations and tool.description for tool in tools)
        listed = json.dumps([t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in tools])
        assert len(listed) <= 16 * 1024

        assert structured(await client.call_tool("get_status", {}))["data"]["name"] == "qm-proxy"
        sessions = structured(await client.call_tool("list_sessions", {"limit": 5}))["items"]
        while not sessions:  # a closed exchange is readable within a second
            await anyio.sleep(0.05)
            sessions = structured(await client.call_tool("list_sessions", {"limit": 5}))["items"]
        turns = structured(await client.call_tool("get_session", {"session_id": sessions[0]["id"], "view": "turns"}))["data"][
            "items"
        ]
        told = await client.call_tool("explain_exchange", {"exchange_id": turns[0]["id"]})
        assert structured(told)["data"]["output_tokens"] == 30
        assert [c.type for c in told.content] == ["text", "image"]
        structured(await client.call_tool("find_anomalies", {"kind": "loop"}))
        events = structured(await client.call_tool("get_trace", {"after_seq": 0}))["items"]
        assert {"exchange.opened", "exchange.closed"} <= {e["event"] for e in events}

        run = structured(await client.call_tool("inspect_model", {"model": "steady", "wait_s": 0}))
        while run["state"] not in ("done", "failed", "cancelled"):
            run = structured(await client.call_tool("get_run", {"run_id": run["run_id"], "wait_s": 20}))
        assert run["state"] == "done"
        assert run["result"]["decode_tokens_per_s"] > 0
        report = await client.read_resource(run["report_uri"])
        assert "Inspector" in str(report)
        assert structured(await client.call_tool("list_runs", {}))["items"][0]["id"] == run["run_id"]

        audit = structured(await client.call_tool("audit_context", {"model": "steady", "wait_s": 0}))
        ended = structured(await client.call_tool("cancel_run", {"run_id": audit["run_id"]}))
        assert ended["state"] == "cancelled"


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("get_session", {"session_id": "none"}, "list_sessions"),
        ("explain_exchange", {"exchange_id": "none"}, "find_anomalies"),
        ("get_run", {"run_id": "none"}, "list_runs"),
        ("list_sessions", {"cursor": "rubbish"}, "former answer"),
        ("inspect_model", {"model": "; rm"}, "model name"),
        ("compare_runs", {"a": "x", "b": "y"}, "list_runs"),
    ],
)
async def test_errors_say_the_next_step(proxy: Servant, tool: str, arguments: dict[str, Any], says: str) -> None:
    async with Client(f"{proxy.console}/mcp") as client:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert says in result.content[0].text  # type: ignore[union-attr]


async def test_completions_and_prompts(proxy: Servant) -> None:
    async with Client(f"{proxy.console}/mcp") as client:
        assert {p.name for p in (await client.list_prompts()).prompts} == {"why_slow", "explain_cliff", "compare_models"}
        templates = {t.uri_template for t in (await client.list_resource_templates()).resource_templates}
        assert templates == {
            "qm://sessions/{session_id}",
            "qm://traces/{exchange_id}",
            "qm://runs/{run_id}",
            "qm://reports/{run_id}",
        }


async def test_stdio_is_the_same_server(proxy: Servant, tmp_path: Path) -> None:
    assert proxy.console is not None
    console = proxy.console.removeprefix("http://")
    server = StdioServerParameters(command=sys.executable, args=["-m", "qm_proxy", "mcp", "--console", console, "--db", "off"])
    async with Client(server) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        status = structured(await client.call_tool("get_status", {}))["data"]
        assert status["proxy"] == proxy.proxy


def _asked(url: str, text: str, tokens: int) -> None:
    body = {"model": "steady", "messages": [{"role": "user", "content": text}], "options": {"num_predict": tokens}}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/chat", json.dumps(body).encode())) as got:
        got.read()


async def _killed(served: Servant, observer: int) -> None:
    """Kill the observer and wait for the next one."""
    os.kill(observer, signal.SIGKILL)

    def back() -> bool:
        try:
            return bool(served.ask("/api/v1/status")["observer"]["pid"] != observer)
        except QmError:
            return False

    await _until(back)


async def _until(true: Callable[[], bool]) -> None:
    """Polls what another process does."""
    with anyio.fail_after(60):
        while not true():  # noqa: ASYNC110 - there is no event across processes
            await anyio.sleep(0.05)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_agent_alone_learns_everything(make_sim: Callable[..., Any], serving: Callable[..., Servant], mode: Any) -> None:
    """From the tools' own words only: the slowest request and why, an audit to its end, another cancelled, the report read."""
    sim = make_sim(personas=["steady"], speed=4.0, slots=1)
    served = serving(sim.url, poll=0.2)

    def traffic() -> None:
        with ThreadPoolExecutor(4) as pool:  # one slot: three of them wait
            list(pool.map(lambda n: _asked(served.proxy, f"question number {n}", 90), range(4)))

    await anyio.to_thread.run_sync(traffic)
    await _until(lambda: len(served.ask("/api/v1/sessions")["items"]) == 4)
    async with Client(f"{served.console}/mcp", mode=mode) as client:

        async def call(tool: str, **arguments: Any) -> Any:
            return await client.call_tool(tool, arguments)

        # the slowest, and why
        turns: list[dict[str, Any]] = []
        cursor = None
        while cursor is not None or not turns:
            page = structured(await call("list_sessions", limit=2, cursor=cursor))
            for session in page["items"]:
                turns += structured(await call("get_session", session_id=session["id"], view="turns"))["data"]["items"]
            cursor = page["next_cursor"]
        assert len(turns) == 4
        slowest = max(turns, key=lambda turn: turn["total_s"])
        told = await call("explain_exchange", exchange_id=slowest["id"])
        assert "slot" in structured(told)["summary"], "it waited behind the others"
        assert "instructions" in told.content[0].text, "what others wrote is marked as theirs"
        assert {c.type for c in told.content} == {"text", "image"}

        # an audit to its end, as the answers say: poll until it is done
        run = structured(await call("audit_context", model="steady", max_tokens=1024, seed=7, wait_s=1))
        second = structured(await call("audit_context", model="steady", max_tokens=1024, seed=8, wait_s=0))
        assert second["state"] == "queued"
        waiting = await call("get_run", run_id=run["run_id"], wait_s=0)
        if structured(waiting)["state"] != "done":
            assert f"get_run(run_id='{run['run_id']}')" in waiting.content[0].text
        cancelled = structured(await call("cancel_run", run_id=second["run_id"]))
        assert cancelled["state"] == "cancelled"
        while run["state"] in ("queued", "running"):
            run = structured(await call("get_run", run_id=run["run_id"], wait_s=20))
        assert run["state"] == "done"
        ended = await call("get_run", run_id=run["run_id"], wait_s=0)
        assert "report_at=0" in ended.content[0].text

        # the report: by tool in parts, and as a resource; both the same
        read, at = "", 0
        while at is not None:
            part = structured(await call("get_run", run_id=run["run_id"], report_at=at))["result"]
            read += part["report"]
            at = part["report_next"]
        whole = (await client.read_resource(run["report_uri"])).contents[0].text
        assert read == whole
        assert "Audit" in read
        states = {r["id"]: r["state"] for r in structured(await call("list_runs"))["items"]}
        assert states == {run["run_id"]: "done", second["run_id"]: "cancelled"}


async def test_updates_of_a_run_are_told_over_http_in_both_eras(
    make_sim: Callable[..., Any], serving: Callable[..., Servant]
) -> None:
    served = serving(make_sim(personas=["steady"], speed=20.0).url)
    heard: list[str] = []
    ended = anyio.Event()

    async def hear(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(str(message.params.uri))
            if str(message.params.uri).startswith("qm://reports/"):
                ended.set()

    async with (
        Client(f"{served.console}/mcp", mode="legacy", message_handler=hear) as older,
        Client(f"{served.console}/mcp", mode="auto") as newer,
    ):
        run = structured(await newer.call_tool("inspect_model", {"model": "steady", "wait_s": 0}))
        uris = [f"qm://runs/{run['run_id']}", f"qm://reports/{run['run_id']}"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for uri in uris:
                await older.subscribe_resource(uri)
        told: set[str] = set()
        async with newer.listen(resource_subscriptions=uris) as events:
            with anyio.fail_after(90):
                async for event in events:
                    told.add(event.uri)  # type: ignore[union-attr]
                    if told == set(uris):
                        break
                await ended.wait()
        assert set(heard) == set(uris)
        assert "Inspector" in str(await older.read_resource(uris[1]))


async def test_a_restart_marks_a_run_failed_and_the_same_run_goes_on(
    make_sim: Callable[..., Any], serving: Callable[..., Servant]
) -> None:
    served = serving(make_sim(personas=["steady"], speed=4.0).url)
    asked = {"model": "steady", "max_tokens": 2048, "wait_s": 0}
    async with Client(f"{served.console}/mcp") as client:
        run = structured(await client.call_tool("audit_context", asked))
        while run["step"] < 3:
            run = structured(await client.call_tool("get_run", {"run_id": run["run_id"], "wait_s": 1}))
        assert run["state"] == "running"
        # stored, so that the next one knows of it
        await _until(lambda: served.ask(f"/api/v1/runs/{run['run_id']}")["state"] == "running")
    before = served.ask("/api/v1/status")["observer"]["pid"]
    await _killed(served, before)
    async with Client(f"{served.console}/mcp") as client:
        found = structured(await client.call_tool("get_run", {"run_id": run["run_id"], "wait_s": 0}))
        assert found["state"] == "failed"
        assert "resume" in found["message"]
        again = structured(await client.call_tool("audit_context", asked))
        assert again["run_id"] != run["run_id"]
        while again["state"] in ("queued", "running"):
            again = structured(await client.call_tool("get_run", {"run_id": again["run_id"], "wait_s": 20}))
        assert again["state"] == "done"
        await _until(lambda: served.ask(f"/api/v1/runs/{again['run_id']}")["result"] is not None)  # the store is a moment behind
        whole = served.ask(f"/api/v1/runs/{again['run_id']}")["result"]
        assert whole["run"]["replayed"] > 0, "what was measured before the restart was not asked again"


async def test_without_sessions_a_client_lives_through_a_restart(
    make_sim: Callable[..., Any], serving: Callable[..., Servant]
) -> None:
    """`mcp_stateless`: the older era without a session that a new observer would not know."""
    served = serving(make_sim(personas=["steady"], speed=20.0).url, mcp_stateless=True)
    async with Client(f"{served.console}/mcp", mode="legacy") as client:
        before = structured(await client.call_tool("get_status", {}))["data"]["observer"]["pid"]
        await _killed(served, before)
        assert structured(await client.call_tool("get_status", {}))["data"]["observer"]["pid"] != before
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
