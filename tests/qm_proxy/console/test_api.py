"""The API shapes and refuses; what it is asked for comes from named queries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from qm_proxy.console.app import build
from qm_proxy.errors import SettingsError
from qm_proxy.store.both import Both
from qm_proxy.store.queries import Ring
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer

WALKED = b"<!doctype html><p>what the model said: \xf0\x9f\x98\x80"


@pytest.fixture
def client(tmp_path: Path) -> Any:
    writer = Writer(None)
    writer.start()
    writer.run(
        {
            "id": "inspect-1",
            "kind": "inspect",
            "model": "m",
            "state": "done",
            "started_at": "2026-11-24T10:00:00Z",
            "report": "# m",
        }
    )
    (tmp_path / "replays.html").write_bytes(WALKED)
    agent = {"id": "agent-1", "kind": "agent", "model": "m", "state": "done", "started_at": "2026-11-24T09:00:00Z"}
    writer.run({**agent, "settings": {"out": str(tmp_path)}})
    assert writer.flush()
    started: list[tuple[str, str, dict[str, Any]]] = []

    def start(kind: str, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
        if model == "full":
            raise SettingsError("8 runs are waiting already.")
        started.append((kind, model, settings))
        return {"id": "inspect-2", "state": "queued"}

    async def cancel(run_id: str) -> dict[str, Any] | None:
        return {"id": run_id, "state": "cancelled"} if run_id == "inspect-2" else None

    queries = Both(Ring(), Stored(writer.place))

    def replays(run: Mapping[str, Any]) -> Path | None:
        out = (run["settings"] or {}).get("out")
        return Path(out) / "replays.html" if out else None

    names = frozenset({"testserver"})
    app = build(queries, lambda: {"name": "qm-proxy"}, names=names, start=start, cancel=cancel, replays=replays)
    with TestClient(app) as asking:
        asking.started = started  # type: ignore[attr-defined]
        yield asking
    writer.stop()


def test_lists_are_pages(client: Any) -> None:
    for path in ("exchanges", "sessions", "findings"):
        assert client.get(f"/api/v1/{path}").json() == {"items": [], "next_cursor": None}
    assert [r["id"] for r in client.get("/api/v1/runs").json()["items"]] == ["inspect-1", "agent-1"]


def test_runs_and_reports(client: Any) -> None:
    assert client.get("/api/v1/runs/inspect-1").json()["model"] == "m"
    report = client.get("/api/v1/runs/inspect-1/report")
    assert report.headers["content-type"].startswith("text/markdown")
    assert report.text == "# m"
    assert client.get("/api/v1/runs/none/report").status_code == 404


def test_the_page_of_a_runs_agent_runs_can_run_nothing(client: Any) -> None:
    assert client.get("/api/v1/runs/inspect-1").json()["replays"] is None
    link = client.get("/api/v1/runs/agent-1").json()["replays"]
    assert link == "/api/v1/runs/agent-1/replays"
    page = client.get(link)
    assert page.content == WALKED
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    for path in ("inspect-1", "none"):
        answer = client.get(f"/api/v1/runs/{path}/replays")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_start_and_cancel(client: Any) -> None:
    answer = client.post("/api/v1/runs", json={"kind": "inspect", "model": "m", "quick": True})
    assert answer.status_code == 202
    assert client.started == [("inspect", "m", {"quick": True})]
    assert client.delete("/api/v1/runs/inspect-2").json()["state"] == "cancelled"
    assert client.delete("/api/v1/runs/none").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"no json", 400, "JSON object"),
        (b"[1]", 400, "JSON object"),
        (b'{"kind": "dance", "model": "m"}', 400, "inspect"),
        (b'{"kind": "inspect", "model": "m", "out": "/etc"}', 400, "no setting 'out'"),
        (b'{"kind": "inspect", "model": "full"}', 409, "waiting already"),
    ],
)
def test_refusals_say_what_to_do(client: Any, body: bytes, status: int, says: str) -> None:
    answer = client.post("/api/v1/runs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


def test_without_jobs_nothing_starts() -> None:
    queries = Both(Ring(), Stored(Writer(None).place))
    asking = TestClient(build(queries, dict, names=frozenset({"testserver"})))
    assert asking.post("/api/v1/runs", json={"kind": "inspect", "model": "m"}).status_code == 409
