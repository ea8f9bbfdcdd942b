"""Arize Phoenix, a real trace backend, receives our spans over OTLP/HTTP and understands them: model, tokens, tools, times.

Phoenix brings many packages of its own, so it lives in a virtual environment of its own: `.venv-phoenix`, or `phoenix` on PATH
(`make .venv-phoenix`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.cli import plan_of
from qm_proxy.servant import Servant
from qm_proxy.settings import load
from qm_proxy.store.sqlite import Stored

from .conftest import SimThread
from .test_prometheus import _DIRECT, TOOLS, eventually, free_port, get, post, say

_OWN = Path(__file__).parents[2] / ".venv-phoenix" / "bin" / "phoenix"
PHOENIX = str(_OWN) if _OWN.exists() else shutil.which("phoenix")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PHOENIX is None, reason="Phoenix is not installed (make .venv-phoenix)"),
    pytest.mark.timeout(400),
]


KEY = "ghp_" + "a1B2" * 9
"""What looks like a token of a code host: it must not leave."""


class Phoenix:
    """A server of its own on loopback, ended with its children."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        own = {
            "PHOENIX_WORKING_DIR": str(directory),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(free_port()),
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(PHOENIX), "serve"],
                env={k: v for k, v in os.environ.items() if not k.startswith("OTEL_")} | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(self._up, f"Phoenix is up ({directory / 'log'})", patience_s=240)
        except BaseException:
            self.close()
            raise

    def _up(self) -> bool:
        assert self.process.poll() is None, "Phoenix ended"
        with _DIRECT.open(self.url + "/healthz", timeout=5) as answer:
            return bool(answer.status == 200)

    def spans(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = get(self.url + "/v1/projects/default/spans", limit="1000", **cursor)
            found += page["data"]
            if not page["next_cursor"]:
                return found
            cursor = {"cursor": page["next_cursor"]}

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    server = Phoenix(tmp_path_factory.mktemp("phoenix"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def shown(
    phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SimThread, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(the simulated Ollama, our own rows of the exchanges, what Phoenix has)"""
    directory = tmp_path_factory.mktemp("proxy")
    sim = SimThread(personas=["tool-user", "steady", "no-done"])
    try:
        rows = play(sim, directory / "qm.db", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": phoenix.url + "/v1/traces"})
        eventually(lambda: len([s for s in phoenix.spans() if s["span_kind"] == "LLM"]) >= 4, "four operations in Phoenix")
        yield sim, rows, phoenix.spans()
    finally:
        sim.close()


def play(sim: SimThread, db: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Four exchanges through a proxy that exports as `environment` says: a tool call, its result, a secret, an answer without
    its end. Our own rows of them, oldest first; the proxy has ended, so that everything is sent."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment | {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY"}).items():
            patch.setenv(name, value)
        flags: dict[str, Any] = {"upstream": sim.url, "listen": "127.0.0.1:0", "console": "127.0.0.1:0"}
        flags |= {"db": str(db), "capture_content": True}
        proxy = Servant(plan_of(load(flags), quiet=True))
    try:
        first = {"model": "tool-user", "messages": say("read notes.txt"), "tools": TOOLS, "stream": False}
        answer = json.loads(post(proxy.proxy, "/api/chat", first, "litellm/1.81.0"))["message"]
        back = {"role": "tool", "tool_name": "read_file", "content": "milk, eggs"}
        second = first | {"messages": [*say("read notes.txt"), answer, back], "stream": True}
        post(proxy.proxy, "/api/chat", second, "litellm/1.81.0")
        streamed = {
            "model": "steady",
            "messages": say(f"hello {KEY}"),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        post(proxy.proxy, "/v1/chat/completions", streamed, "opencode/1.18.33")
        post(proxy.proxy, "/api/chat", {"model": "no-done", "messages": say("go on")}, "curl/8.5.0")
        rows: list[dict[str, Any]] = eventually(lambda: _ended(proxy, 4), "four exchanges")
        return rows
    finally:
        proxy.close()  # sends what is queued


def _ended(proxy: Servant, n: int) -> list[dict[str, Any]] | None:
    rows = [row for row in proxy.ask("/api/v1/exchanges")["items"] if row["ending"]]
    return sorted(rows, key=lambda row: row["id"]) if len(rows) >= n else None


Shown = tuple[SimThread, list[dict[str, Any]], list[dict[str, Any]]]


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_phoenix_sees_models_and_tokens(shown: Shown) -> None:
    """In Phoenix's own words, which it derives from the conventions' names by itself."""
    sim, rows, spans = shown
    by_exchange = {s["attributes"].get("qm.exchange.id"): s for s in spans if s["span_kind"] == "LLM"}
    assert len(by_exchange) == len(rows) == 4
    truths = [t for t in sim.sim.truth.requests if t.path in ("/api/chat", "/v1/chat/completions")]
    for row, truth in zip(rows, truths, strict=True):
        span = by_exchange[row["id"]]
        assert span["name"] == f"chat {row['model']}"
        assert span["attributes"]["llm.model_name"] == row["model"]
        if row["ending"] == "complete":
            assert span["attributes"]["llm.token_count.prompt"] == truth.prompt_tokens
            assert span["attributes"]["llm.token_count.completion"] == truth.sampled_tokens
            assert span["status_code"] != "ERROR"
        else:
            assert "llm.token_count.completion" not in span["attributes"]
            assert span["status_code"] == "ERROR"


def test_phoenix_sees_the_tool_call_and_its_turnaround(shown: Shown) -> None:
    _, rows, spans = shown
    asking = next(s for s in spans if s["span_kind"] == "LLM" and s["attributes"]["qm.exchange.id"] == rows[0]["id"])
    (call,) = [e for e in asking["events"] if e["name"] == "qm.tool_call"]
    assert call["attributes"]["gen_ai.tool.name"] == "read_file"
    assert call["attributes"]["qm.tool_call.valid"] is True
    (turnaround,) = [s for s in spans if s["name"] == "qm.tool_turnaround"]
    assert turnaround["parent_id"] == asking["context"]["span_id"]
    assert turnaround["attributes"]["gen_ai.tool.name"] == "read_file"


def test_phoenix_sees_the_finding(shown: Shown) -> None:
    _, rows, spans = shown
    cut = next(s for s in spans if s["span_kind"] == "LLM" and s["attributes"]["qm.exchange.id"] == rows[3]["id"])
    assert cut["attributes"]["qm.findings"] == ["upstream.aborted"]
    assert [e["attributes"]["qm.finding"] for e in cut["events"] if e["name"] == "qm.finding"] == ["upstream.aborted"]


def test_times_and_the_tree_are_right(shown: Shown) -> None:
    """Each operation hangs on its HTTP span; phases lie within it, one after the other, as long as the server says."""
    _, rows, spans = shown
    by_id = {s["context"]["span_id"]: s for s in spans}
    for row in rows:
        (operation,) = [s for s in spans if s["span_kind"] == "LLM" and s["attributes"]["qm.exchange.id"] == row["id"]]
        http = by_id[operation["parent_id"]]
        assert http["name"] == f"POST {row['route']}"
        assert http["parent_id"] is None
        assert at(operation["end_time"]) - at(operation["start_time"]) == pytest.approx(row["total_s"], abs=2e-6)
        children = [s for s in spans if s["parent_id"] == operation["context"]["span_id"] and s["name"] != "qm.tool_turnaround"]
        phases = sorted(children, key=lambda s: str(s["start_time"]))
        assert [p["name"] for p in phases] == [f"qm.{n}" for n in ("queue", "load", "prefill", "decode") if row[f"{n}_s"]]
        before = at(operation["start_time"])
        for phase in phases:
            assert at(phase["start_time"]) >= before - 2e-6
            assert at(phase["end_time"]) - at(phase["start_time"]) == pytest.approx(row[f"{phase['name'][3:]}_s"], abs=2e-6)
            before = at(phase["end_time"])
        assert before <= at(operation["end_time"]) + 2e-6


def test_phoenix_sees_the_messages_without_secrets(shown: Shown) -> None:
    """Content was asked for twice here; Phoenix takes it apart into its own fields."""
    sim, rows, spans = shown
    (operation,) = [s for s in spans if s["span_kind"] == "LLM" and s["attributes"]["qm.exchange.id"] == rows[2]["id"]]
    told = operation["attributes"]
    assert told["llm.input_messages.0.message.role"] == "user"
    assert told["llm.input_messages.0.message.content"].startswith("hello [redacted")
    truth = next(t for t in sim.sim.truth.requests if t.path == "/v1/chat/completions")
    assert told["llm.output_messages.0.message.content"] == truth.text
    assert KEY not in json.dumps(spans)


def test_the_demos_exchanges_appear(phoenix: Phoenix, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo as a user starts it, with an endpoint set: each of its model calls is in Phoenix as the database has it."""
    before = {span["context"]["span_id"] for span in phoenix.spans()}
    db = tmp_path / "demo.db"
    demo = subprocess.run(
        [sys.executable, "-m", "qm_proxy", "demo", "--seconds", "20", "--db", str(db), "--json"],
        env=os.environ | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": phoenix.url + "/v1/traces"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=200,
    )
    assert demo.returncode in (0, 1), demo.stderr.decode()  # 1: this machine was too busy for a tolerance
    rows = {row["id"]: row for row in Stored(db).export(chunks=False) if row["operation"]}
    assert len(rows) > 20

    def arrived() -> dict[str, dict[str, Any]] | None:
        found = {
            s["attributes"]["qm.exchange.id"]: s
            for s in phoenix.spans()
            if s["span_kind"] == "LLM" and s["context"]["span_id"] not in before
        }
        return found if len(found) >= len(rows) else None

    spans = eventually(arrived, f"{len(rows)} operations of the demo in Phoenix")
    assert spans.keys() == rows.keys()
    calls = 0
    for identifier, row in rows.items():
        span = spans[identifier]
        told = span["attributes"]
        assert span["name"] == f"{row['operation']} {row['model']}"
        assert told["llm.model_name"] == (row["response_model"] or row["model"])
        assert told.get("llm.token_count.prompt") == row["input_tokens"]
        assert told.get("llm.token_count.completion") == row["output_tokens"]
        assert at(span["start_time"]) == pytest.approx(at(row["started_at"]), abs=2e-6)
        assert at(span["end_time"]) - at(span["start_time"]) == pytest.approx(row["total_s"], abs=2e-6)
        seen = [event["attributes"] for event in span["events"] if event["name"] == "qm.tool_call"]
        assert [(c["gen_ai.tool.name"], c["gen_ai.tool.call.id"]) for c in seen] == [
            (c["name"], c["id"]) for c in row["tool_calls"]
        ]
        calls += len(seen)
    assert calls > 0
    with capsys.disabled():
        tokens = sum(row["output_tokens"] or 0 for row in rows.values())
        print(
            f"\n{len(rows)} of {len(rows)} model calls of the demo in Phoenix: {tokens} tokens, {calls} tool calls, all as stored"
        )
