from __future__ import annotations

import base64
from typing import Any

import pytest

import probes.pictures
from probes.pictures import of_result, waterfall


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[dict[str, Any]], str]]:
    """What would be drawn: (chart, rows, title); the renderer itself is tested with the charts."""
    asked: list[tuple[str, list[dict[str, Any]], str]] = []

    def chart(name: str, rows: list[dict[str, Any]], *, title: str) -> dict[str, Any]:
        asked.append((name, rows, title))
        return {}

    monkeypatch.setattr(probes.pictures, "chart", chart)
    monkeypatch.setattr(probes.pictures, "png", lambda spec, scale: b"PNG")
    return asked


def _chunks(*ms: float, kinds: list[list[Any]] | None = None) -> dict[str, Any]:
    return {"arrival_ns": [int(m * 1e6) for m in ms], "kinds": [["text", len(ms)]] if kinds is None else kinds}


EXCHANGE = {"model": "m", "route": "/api/chat", "findings": [{"kind": "stall", "chunk": 2}, {"kind": "loop.token", "chunk": 1}]}


def test_every_chunk_is_a_row_with_its_gap_kind_and_stall(drawn: list[Any]) -> None:
    pictures = waterfall(EXCHANGE, _chunks(100, 110, 400, kinds=[["thinking", 2], ["text", 1]]))
    assert [base64.b64decode(p) for p in pictures] == [b"PNG"]
    [(name, rows, title)] = drawn
    assert (name, title) == ("waterfall", "m, 3 chunks")
    assert rows == [
        {"t_ms": 100.0, "gap_ms": 0.0, "kind": "thinking", "spike": False},
        {"t_ms": 110.0, "gap_ms": 10.0, "kind": "thinking", "spike": False},
        {"t_ms": 400.0, "gap_ms": 290.0, "kind": "text", "spike": True},
    ]


def test_without_a_series_there_is_no_picture(drawn: list[Any]) -> None:
    assert waterfall(EXCHANGE, None) == []
    assert waterfall(EXCHANGE, _chunks()) == []
    assert waterfall(EXCHANGE, _chunks(1)) == []
    assert waterfall(EXCHANGE, _chunks(*range(5001))) == []
    assert drawn == []


def test_an_unnamed_model_and_unknown_kinds(drawn: list[Any]) -> None:
    assert len(waterfall({"model": None, "route": "/v1/x", "findings": None}, _chunks(1, 2, kinds=[]))) == 1
    assert drawn[0][2] == "/v1/x, 2 chunks"
    assert {row["kind"] for row in drawn[0][1]} == {"text"}


def test_a_renderer_that_fails_is_no_answer_lost(drawn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: Any, scale: float) -> bytes:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(probes.pictures, "png", fails)
    assert waterfall(EXCHANGE, _chunks(1, 2)) == []


def test_what_is_no_result_has_no_picture(drawn: list[Any]) -> None:
    assert of_result({}) == []
    assert of_result({"inspector": "nonsense"}) == []


def test_the_real_renderer() -> None:
    [picture] = waterfall(EXCHANGE, _chunks(100, 110, 400))
    assert base64.b64decode(picture).startswith(b"\x89PNG\r\n\x1a\n")
