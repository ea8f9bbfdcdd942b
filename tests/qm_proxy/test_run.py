from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qm_proxy.run
from qm_proxy.cli import plan_of
from qm_proxy.errors import QmError, SettingsError
from qm_proxy.run import already_serving, run_command
from qm_proxy.settings import load


def _plan(**changes: Any) -> dict[str, Any]:
    flags = {"listen": "127.0.0.1:0", "console": "127.0.0.1:0", "db": "off", "upstream": "http://127.0.0.1:1"} | changes
    return plan_of(load(flags), quiet=True)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match=r"'no-such-command-here' was not found.*PATH") as refused:
        run_command(["no-such-command-here"], _plan())
    assert refused.value.exit_code == 2


def test_without_a_console_nothing_could_be_told() -> None:
    with pytest.raises(SettingsError, match="console"):
        run_command([sys.executable, "-c", ""], _plan(console="off"))


def test_nobody_serves() -> None:
    assert already_serving("127.0.0.1:1") is None


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "operation": "chat",
        "ending": "complete",
        "output_tokens": 10,
        "ttft_s": 0.5,
        "total_s": 2.0,
        "model": "m",
        "findings": [],
        "tool_calls": [],
        "slow_because": None,
    }
    return row | changes


class Console:
    """What a running console answers to `ask`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.broken = False

    def ask(self, console: str, path: str, *, patience_s: float = 10.0, token: str | None = None) -> Any:
        self.asked.append(path)
        if path == "/api/v1/status":
            return {"name": "qm-proxy", "proxy": "http://127.0.0.1:4321"}
        if self.broken:
            raise QmError("it is gone")
        return {"items": self.rows, "next_cursor": None}


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    fake = Console()
    monkeypatch.setattr(qm_proxy.run, "ask", fake.ask)
    monkeypatch.setattr(qm_proxy.run, "SETTLE_S", 0.0)
    return fake  # type: ignore[return-value]


def test_the_environment_reaches_the_child_and_its_code_comes_back(console: Console, tmp_path: Path) -> None:
    out = tmp_path / "environment.json"
    code = f"import json, os, pathlib, sys; pathlib.Path({str(out)!r}).write_text(json.dumps(dict(os.environ))); sys.exit(7)"
    assert run_command([sys.executable, "-c", code], _plan()) == 7
    environment = json.loads(out.read_text())
    assert environment["OLLAMA_HOST"] == "http://127.0.0.1:4321"
    assert environment["OPENAI_BASE_URL"] == "http://127.0.0.1:4321/v1"
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4321"
    assert environment["PATH"]


def test_a_killed_child_is_128_and_the_signal(console: Console) -> None:
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], _plan()) == 137


def test_the_sum_at_the_end(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"id": "f", "kind": "loop.token", "severity": "violation"}
    console.rows = [
        _row(findings=[finding], tool_calls=[{"name": "bash"}]),
        _row(ending="upstream_error", output_tokens=None, ttft_s=None, total_s=9.0, slow_because="It loaded."),
        _row(ending="client_disconnect", ttft_s=0.7),
        _row(operation=None, ending="complete"),
    ]
    assert run_command([sys.executable, "-c", ""], _plan()) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "goes through http://127.0.0.1:4321" in err
    assert "3 answers (1 failed), 20 tokens, 1 tool calls" in err
    assert "median, n=2), 1 findings" in err
    assert "slow: 9.00 s m: It loaded." in err
    assert "violation: loop.token" in err
    assert "since=" in console.asked[-1]
    assert "+" not in console.asked[-1]


def test_unknown_counts_are_a_dash(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console.rows = [_row(output_tokens=None, ttft_s=None)]
    run_command([sys.executable, "-c", ""], _plan())
    assert "1 answers (0 failed), – tokens" in (err := capsys.readouterr().err)
    assert "first token – (median, n=0)" in err


def test_nothing_went_through(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    run_command([sys.executable, "-c", ""], _plan())
    assert "nothing went through the proxy" in capsys.readouterr().err


def test_a_console_that_is_gone_costs_only_the_sum(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console.broken = True
    assert run_command([sys.executable, "-c", ""], _plan()) == 0
    assert "cannot be told: it is gone" in capsys.readouterr().err
