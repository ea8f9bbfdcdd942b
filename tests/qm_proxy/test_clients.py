"""The lines users paste, and the environment that `run` sets."""

from __future__ import annotations

import json
import tomllib

import pytest

from qm_proxy.clients import CLIENTS, environment_for, find

PROXY, CONSOLE = "http://127.0.0.1:11436", "http://127.0.0.1:11437"


@pytest.mark.parametrize("name", ["claude-code", "codex", "opencode", "aider", "continue", "cline", "zed", "vscode"])
def test_contract_names_are_there(name: str) -> None:
    client = find(name)
    assert client is not None
    assert client.name == name


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.name)
def test_lines_carry_the_addresses(client: object) -> None:
    from qm_proxy.clients import Client

    assert isinstance(client, Client)
    assert PROXY in client.point(PROXY) or client.dialect == "-"
    if client.mcp:
        assert f"{CONSOLE}/mcp" in client.mcp(CONSOLE)
    for value in (client.environment(PROXY) if client.environment else {}).values():
        assert isinstance(value, str)


def _body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(("# ", "//")))


@pytest.mark.parametrize("name", ["opencode", "zed", "vscode"])
def test_json_lines_are_json(name: str) -> None:
    client = find(name)
    assert client is not None
    assert client.mcp is not None
    json.loads(_body(client.point(PROXY)))
    json.loads(_body(client.mcp(CONSOLE)))


@pytest.mark.parametrize(("name", "kind"), [("cline", "streamableHttp"), ("roo-code", "streamable-http")])
def test_each_calls_the_transport_by_its_own_name(name: str, kind: str) -> None:
    client = find(name)
    assert client is not None
    assert client.mcp is not None
    assert json.loads(_body(client.mcp(CONSOLE)))["mcpServers"]["qm"]["type"] == kind


def test_codex_lines_are_toml() -> None:
    codex = find("codex")
    assert codex is not None
    assert codex.mcp is not None
    found = tomllib.loads(_body(codex.point(PROXY)))
    assert found["model_providers"][found["model_provider"]]["base_url"] == f"{PROXY}/v1"
    assert tomllib.loads(_body(codex.mcp(CONSOLE)))["mcp_servers"]["qm"]["url"] == f"{CONSOLE}/mcp"


def test_run_points_a_known_command() -> None:
    environment = environment_for("/usr/local/bin/claude", PROXY)
    assert environment["ANTHROPIC_BASE_URL"] == PROXY
    assert "OPENAI_BASE_URL" not in environment


def test_run_points_an_unknown_command_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the user's own")
    environment = environment_for("my-agent", PROXY)
    assert environment["OLLAMA_HOST"] == PROXY
    assert environment["OPENAI_BASE_URL"] == f"{PROXY}/v1"
    assert environment["ANTHROPIC_BASE_URL"] == PROXY
    assert "OPENAI_API_KEY" not in environment


def test_names_are_unique_and_found_by_command() -> None:
    assert len({c.name for c in CLIENTS}) == len(CLIENTS)
    assert find("Claude Code") is find("claude") is find("claude-code")
    assert find("no-such-thing") is None


def test_continue_has_what_its_schema_demands() -> None:
    """Its parser refuses a file without these, whatever models it names."""
    lines = find("continue")
    assert lines is not None
    keys = [line.partition(":")[0] for line in lines.point(PROXY).splitlines() if line[:1].isalpha()]
    assert keys == ["name", "version", "schema", "models"]


def test_vs_code_asks_a_full_address() -> None:
    """Nothing is appended to an address that names an API, and both limits are demanded."""
    lines = find("vscode")
    assert lines is not None
    (provider,) = json.loads(_body(lines.point(PROXY)))
    (model,) = provider["models"]
    assert (provider["vendor"], model["url"]) == ("customendpoint", f"{PROXY}/v1/chat/completions")
    assert {"maxInputTokens", "maxOutputTokens", "toolCalling"} <= model.keys()
