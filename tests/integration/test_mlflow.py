"""MLflow, a real trace backend, receives our spans over OTLP/HTTP and understands them: model, tokens, messages, times.

MLflow brings many packages of its own, so it lives in a virtual environment of its own: `.venv-mlflow`, or `mlflow` on PATH
(`make .venv-mlflow`). It takes traces only; logs and metrics need another receiver.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from .conftest import SimThread
from .test_phoenix import KEY, play
from .test_prometheus import _DIRECT, eventually, free_port

_OWN = Path(__file__).parents[2] / ".venv-mlflow" / "bin" / "mlflow"
MLFLOW = str(_OWN) if _OWN.exists() else shutil.which("mlflow")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MLFLOW is None, reason="MLflow is not installed (make .venv-mlflow)"),
    pytest.mark.timeout(400),
]


class MLflow:
    """A server of its own on loopback with one experiment, ended with its children."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # it would look up what a token of each model costs on the internet, and hold the exporter's request meanwhile
        own = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_MODEL_CATALOG_URI": ""}
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db"),
                    *("--artifacts-destination", str(directory / "artifacts")),
                ],
                env={k: v for k, v in os.environ.items() if not k.startswith("OTEL_")} | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(self._up, f"MLflow is up ({directory / 'log'})", patience_s=240)
        except BaseException:
            self.close()
            raise

    def _up(self) -> bool:
        assert self.process.poll() is None, "MLflow ended"
        self.traces()  # opens its store, which takes longer than an exporter waits
        return True

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with _DIRECT.open(request, timeout=60) as answer:
            return json.loads(answer.read())

    def traces(self) -> list[dict[str, Any]]:
        experiment = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
        found: list[dict[str, Any]] = self._ask("/api/3.0/mlflow/traces/search", {"locations": [experiment]}).get("traces", [])
        return found

    def spans(self) -> list[dict[str, Any]]:
        """Every span, with attributes and events as plain values."""
        found = []
        for trace in self.traces():
            whole = self._ask(f"/api/3.0/mlflow/traces/get?trace_id={trace['trace_id']}")["trace"]
            found += [_plain(span) | {"info": whole["trace_info"]} for span in whole["spans"]]
        return found

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):  # its job runners outlive a mere SIGTERM
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)


def _plain(thing: dict[str, Any]) -> dict[str, Any]:
    attributes = {a["key"]: _value(a.get("value", {})) for a in thing.get("attributes", [])}
    return thing | {"attributes": attributes, "events": [_plain(event) for event in thing.get("events", [])]}


def _value(value: dict[str, Any]) -> Any:
    """An AnyValue as OTLP's JSON writes it."""
    match next(iter(value.items()), None):
        case None:
            return None
        case ("array_value", inner):
            return [_value(v) for v in inner.get("values", [])]
        case ("kvlist_value", inner):
            return {v["key"]: _value(v.get("value", {})) for v in inner.get("values", [])}
        case (_, inner):
            return inner


Shown = tuple[SimThread, list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """(the simulated Ollama, our own rows of the exchanges, what MLflow has)"""
    directory = tmp_path_factory.mktemp("mlflow")
    mlflow = MLflow(directory)
    sim = SimThread(personas=["tool-user", "steady", "no-done"])
    try:
        address = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": mlflow.url + "/v1/traces"}
        rows = play(sim, directory / "qm.db", address | {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-mlflow-experiment-id=0"})
        eventually(lambda: len(mlflow.traces()) == 4, "four traces in MLflow")
        yield sim, rows, mlflow.spans()
    finally:
        sim.close()
        mlflow.close()


def operation(row: dict[str, Any], spans: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [s for s in spans if s["name"] == f"chat {row['model']}" and s["attributes"]["qm.exchange.id"] == row["id"]]
    return found


def test_mlflow_sees_models_tokens_and_errors(shown: Shown) -> None:
    """In MLflow's own words, which it derives from the conventions' names by itself."""
    sim, rows, spans = shown
    truths = [t for t in sim.sim.truth.requests if t.path in ("/api/chat", "/v1/chat/completions")]
    for row, truth in zip(rows, truths, strict=True):
        span = operation(row, spans)
        assert span["attributes"]["mlflow.spanType"] == "CHAT_MODEL"
        assert span["attributes"]["mlflow.llm.model"] == row["model"]
        assert span["attributes"]["mlflow.llm.provider"] == "ollama"
        if row["ending"] == "complete":
            used = span["attributes"]["mlflow.chat.tokenUsage"]
            assert (used["input_tokens"], used["output_tokens"]) == (truth.prompt_tokens, truth.sampled_tokens)
            assert span["info"]["state"] == "OK"
        else:
            assert "mlflow.chat.tokenUsage" not in span["attributes"]
            assert span["info"]["state"] == "ERROR"


def test_mlflow_sees_times_and_the_tree(shown: Shown) -> None:
    _, rows, spans = shown
    by_id = {s["span_id"]: s for s in spans}
    for row in rows:
        span = operation(row, spans)
        assert int(span["end_time_unix_nano"]) - int(span["start_time_unix_nano"]) == pytest.approx(
            row["total_s"] * 1e9, abs=2000
        )
        began = datetime.fromisoformat(row["started_at"].replace("Z", "+00:00")).timestamp()
        assert int(span["start_time_unix_nano"]) / 1e9 == pytest.approx(began, abs=2e-6)
        http = by_id[span["parent_span_id"]]
        assert http["name"] == f"POST {row['route']}"
        assert "parent_span_id" not in http
        phases = {s["name"] for s in spans if s.get("parent_span_id") == span["span_id"]} - {"qm.tool_turnaround"}
        assert phases == {f"qm.{name}" for name in ("queue", "load", "prefill", "decode") if row[f"{name}_s"]}


def test_mlflow_sees_the_tool_call_its_turnaround_and_the_finding(shown: Shown) -> None:
    _, rows, spans = shown
    asking = operation(rows[0], spans)
    (call,) = [e for e in asking["events"] if e["name"] == "qm.tool_call"]
    assert call["attributes"]["gen_ai.tool.name"] == "read_file"
    assert call["attributes"]["qm.tool_call.valid"] is True
    (turnaround,) = [s for s in spans if s["name"] == "qm.tool_turnaround"]
    assert base64.b64decode(turnaround["parent_span_id"]) == base64.b64decode(asking["span_id"])
    (finding,) = [e for e in operation(rows[3], spans)["events"] if e["name"] == "qm.finding"]
    assert finding["attributes"]["qm.finding"] == "upstream.aborted"


def test_mlflow_sees_the_messages_without_secrets(shown: Shown) -> None:
    """Content was asked for twice here; MLflow shows it as the call's inputs and outputs."""
    sim, rows, spans = shown
    told = operation(rows[2], spans)["attributes"]
    assert told["mlflow.spanInputs"][0]["parts"][0]["content"].startswith("hello [redacted")
    truth = next(t for t in sim.sim.truth.requests if t.path == "/v1/chat/completions")
    assert told["mlflow.spanOutputs"][0]["parts"][0]["content"] == truth.text
    assert KEY not in json.dumps(spans)
