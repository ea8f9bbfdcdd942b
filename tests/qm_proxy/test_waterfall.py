from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.waterfall import draw, stall_chunks

MS = 1_000_000


def exchange(**changes: Any) -> dict[str, Any]:
    x: dict[str, Any] = {
        "id": "0199",
        "started_at": "2026-11-24T10:00:00Z",
        "client": "codex",
        "model": "m",
        "dialect": "openai-chat",
        "route": "/v1/chat/completions",
        "ending": "complete",
        "finish_reason": "stop",
        "http_status": 200,
        "session_id": "s1",
        "turn": 2,
        "ttft_s": 0.2,
        "tokens_per_s": 50.0,
        "rate_source": "server",
        "input_tokens": 12,
        "output_tokens": 4,
        "context_window_tokens": 4096,
        "total_s": 1.0,
        "slow_because": None,
        "queue_s": None,
        "load_s": None,
        "prefill_s": 0.25,
        "decode_s": 0.5,
        "client_wait_s": 0.0,
        "unexplained_s": 0.25,
        "itl": {"n": 3, "mean_s": 0.1, "p50_s": 0.1, "p90_s": 0.2, "p99_s": 0.2, "max_s": 0.2},
        "tool_calls": [],
        "findings": [],
    }
    return x | changes


def chunks(*at_ms: float, kinds: list[list[Any]] | None = None, coalesced: list[int] | None = None) -> dict[str, Any]:
    return {
        "arrival_ns": [int(ms * MS) for ms in at_ms],
        "kinds": [["text", len(at_ms)]] if kinds is None else kinds,
        "coalesced": coalesced or [],
    }


def test_the_head_says_what_and_how_it_ended() -> None:
    first, second, third, *_ = draw(exchange(), None, 40)
    assert first == "0199  2026-11-24T10:00:00Z"
    assert second == "codex → m · openai-chat /v1/chat/completions · complete (stop)"
    assert third == "session s1 turn 2 · ttft 200 ms · 50.0 tok/s (server) · 12 → 4 tokens · window 4096 · 1.00 s"


def test_unknown_is_a_dash_and_the_slow_reason_a_line() -> None:
    x = exchange(
        model=None,
        ending=None,
        finish_reason=None,
        http_status=500,
        session_id=None,
        ttft_s=None,
        tokens_per_s=None,
        input_tokens=None,
        context_window_tokens=None,
        total_s=None,
        slow_because="It waited.",
    )
    lines = draw(x, None, 40)
    assert lines[1] == "codex → – · openai-chat /v1/chat/completions · in flight · HTTP 500"
    assert lines[2] == "ttft – · – · – → 4 tokens · –"
    assert lines[3:] == ["It waited."]


def test_phases_are_shares_of_the_total() -> None:
    bar, text = draw(exchange(), None, 40)[4:6]
    assert bar == "p" * 10 + "d" * 20 + "?" * 10
    assert text == "p=prefill 250 ms · d=decode 500 ms · ?=unexplained 250 ms"
    longer = exchange(prefill_s=3.0)  # phases that sum to more than the total stay within the width
    assert len(draw(longer, None, 40)[4]) == 40


def test_the_time_line_has_a_cell_for_each_slice() -> None:
    x = exchange(findings=[{"kind": "stall", "severity": "suspect", "chunk": 3, "evidence": {"gap_s": 0.5}}])
    _, title, line, said, gaps, *_ = draw(x, chunks(200, 210, 310, 900, kinds=[["thinking", 2], ["text", 1], ["tool", 1]]), 10)[
        6:
    ]
    assert title.startswith("each cell 100 ms, at most 2 chunks")
    assert line == "··█▄     !"
    assert said == "  ~─     ■"
    said_of_gaps, _, longest = gaps.partition("; longest: ")
    assert said_of_gaps == "gaps p50 100 ms · p90 200 ms · p99 200 ms · n=3"
    assert longest == "590 ms before chunk 3, 100 ms before chunk 2, 10 ms before chunk 1"


def test_chunks_of_one_read_are_no_gap() -> None:
    text = "\n".join(draw(exchange(), chunks(200, 200, 400, coalesced=[1]), 10))
    assert "before chunk 2" in text
    assert "before chunk 1" not in text


def test_without_chunks_there_is_no_time_line() -> None:
    for none in (None, chunks()):
        assert not any("each cell" in line for line in draw(exchange(), none, 40))


def test_calls_and_findings() -> None:
    calls = [
        {"name": "bash", "t_s": 0.5, "argument_bytes": 20, "valid": True, "problems": []},
        {"name": "read", "t_s": 0.6, "argument_bytes": 9, "valid": False, "problems": ["/path: required"]},
        {"name": "sum", "t_s": 0.7, "argument_bytes": 2, "valid": None, "problems": []},
    ]
    findings = [
        {"kind": "tool.schema", "severity": "violation", "t_s": 0.6, "summary": "It does not fit."},
        {"kind": "stall", "severity": "info"},
    ]
    lines = draw(exchange(tool_calls=calls, findings=findings), None, 40)
    assert lines[-7:] == [
        "",
        "call bash at 500 ms, 20 bytes, valid",
        "call read at 600 ms, 9 bytes, invalid: /path: required",
        "call sum at 700 ms, 2 bytes, not judged",
        "",
        "violation tool.schema at 600 ms: It does not fit.",
        "info stall",
    ]


def test_stalls_by_chunk() -> None:
    findings = [
        {"kind": "stall", "chunk": 3, "evidence": {"gap_s": 0.5}},
        {"kind": "stall", "chunk": 9},
        {"kind": "stall", "chunk": None},
        {"kind": "loop.token", "chunk": 4},
    ]
    assert stall_chunks({"findings": findings}) == {3: 0.5, 9: None}
    assert stall_chunks({}) == {}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 10**11), min_size=1, max_size=40).map(sorted),
    st.floats(0, 100) | st.none(),
    st.integers(1, 120),
    st.integers(-2, 50),
)
def test_any_series_fits_its_width(times: list[int], total: float | None, width: int, stall: int) -> None:
    x = exchange(total_s=total, findings=[{"kind": "stall", "severity": "info", "chunk": stall}])
    lines = draw(x, {"arrival_ns": times, "kinds": [["text", len(times)]], "coalesced": []}, width)
    title = next(i for i, line in enumerate(lines) if line.startswith("each cell"))
    assert len(lines[title + 1]) == len(lines[title + 2]) == width


@pytest.mark.parametrize("kinds", [[], [["text", 1]]])
def test_kinds_that_do_not_cover_the_chunks(kinds: list[list[Any]]) -> None:
    assert draw(exchange(), chunks(200, 300, kinds=kinds), 20)
