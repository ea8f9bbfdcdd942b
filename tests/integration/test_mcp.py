"""The MCP server on a real proxy: every tool, both protocol eras, HTTP and stdio."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from mcp import Client, StdioServerParameters

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
