from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.waterfall import cut, draw, draw_session, short, stall_chunks, wrapped

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
    assert draw(exchange(), None, 80)[:4] == [
        "0199  2026-11-24T10:00:00Z",
        "codex → m · openai-chat /v1/chat/completions · complete (stop)",
        "ttft 200 ms · 50.0 tok/s (server) · 12 → 4 tokens · window 4096 · 1.00 s",
        "session s1 turn 2",
    ]
    assert draw(exchange(ending="client_disconnect"), None, 80)[1].endswith("client left (stop)")


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
    lines = draw(x, None, 80)
    assert lines[1] == "codex → – · openai-chat /v1/chat/completions · in flight · HTTP 500"
    assert lines[2] == "ttft – · – · – → 4 tokens · –"
    assert lines[3:] == ["It waited."]


def phases(x: dict[str, Any]) -> list[str]:
    """The bar and its letters."""
    lines = draw(x, None, 60)
    at = lines.index("")
    return lines[at + 1 : at + 3]


def test_phases_are_shares_of_the_total() -> None:
    bar, text = phases(exchange())
    assert bar == "p" * 15 + "d" * 30 + "?" * 15
    assert text == "p=prefill 250 ms · d=decode 500 ms · ?=unexplained 250 ms"
    longer = exchange(prefill_s=3.0)  # phases that sum to more than the total stay within the width
    assert len(phases(longer)[0]) == 60


def test_where_the_server_tells_no_prefill_the_first_token_is_waited_for() -> None:
    bar, text = phases(exchange(prefill_s=None, decode_s=0.75))
    assert bar == "w" * 12 + "d" * 45 + "?" * 3
    assert text == "w=wait for the first token 200 ms · d=decode 750 ms"
    assert phases(exchange(prefill_s=None, queue_s=0.15, decode_s=0.6))[0] == "q" * 9 + "w" * 3 + "d" * 36 + "?" * 12


def test_the_time_line_has_a_cell_for_each_slice() -> None:
    x = exchange(findings=[{"kind": "stall", "severity": "suspect", "chunk": 3, "evidence": {"gap_s": 0.5}}])
    lines = draw(x, chunks(200, 210, 310, 900, kinds=[["thinking", 2], ["text", 1], ["tool", 1]]), 100)
    at = next(i for i, line in enumerate(lines) if line.startswith("each cell"))
    title, line, said, axis, gaps, *_ = lines[at:]
    assert title == "each cell 10 ms, at most 1 chunk; ─ text  ~ thinking  ■ tool call  ! stall"
    assert line == "·" * 20 + "██" + " " * 9 + "█" + " " * 58 + "!"
    assert said == " " * 20 + "~~" + " " * 9 + "─" + " " * 58 + "■"
    assert axis.split() == ["0", "250", "ms", "500", "ms", "750", "ms", "1.00", "s"]
    assert len(axis) == 100
    assert gaps == "gaps p50 100 ms · p90 200 ms · p99 200 ms · n=3"
    assert lines[at + 5] == "longest: 590 ms before chunk 3, 100 ms before chunk 2, 10 ms before chunk 1"


def test_chunks_of_one_read_are_no_gap() -> None:
    text = "\n".join(draw(exchange(), chunks(200, 200, 400, coalesced=[1]), 60))
    assert "before chunk 2" in text
    assert "before chunk 1" not in text


def test_without_chunks_there_is_no_time_line() -> None:
    for none in (None, chunks()):
        assert not any("each cell" in line for line in draw(exchange(), none, 40))


def test_calls_and_findings() -> None:
    calls = [
        {"name": "bash", "t_s": 0.5, "argument_bytes": 20, "valid": True, "problems": [], "turnaround_s": 0.25},
        {"name": "read", "t_s": 0.6, "argument_bytes": 9, "valid": False, "problems": ["/path: required"]},
        {"name": "sum", "t_s": 0.7, "argument_bytes": 2, "valid": None, "problems": []},
    ]
    findings = [
        {"kind": "tool.schema", "severity": "violation", "t_s": 0.6, "summary": "It does not fit."},
        {"kind": "stall", "severity": "info"},
    ]
    lines = draw(exchange(tool_calls=calls, findings=findings), None, 80)
    assert lines[-7:] == [
        "",
        "call bash at 500 ms, 20 bytes, valid, its result came after 250 ms",
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
    assert 0 < len(lines[title + 1]) <= width
    assert len(lines[title + 2]) <= len(lines[title + 1])


@pytest.mark.parametrize("kinds", [[], [["text", 1]]])
def test_kinds_that_do_not_cover_the_chunks(kinds: list[list[Any]]) -> None:
    assert draw(exchange(), chunks(200, 300, kinds=kinds), 20)


# --- sessions ---------------------------------------------------------------------------------------------------------


def turn(n: int, at_s: float, total_s: float, **changes: Any) -> dict[str, Any]:
    place = {"trajectory": 0, "relation": "next", "waited_for": None} | changes.pop("place", {})
    started = f"2026-11-24T10:{int(at_s) // 60:02d}:{at_s % 60:06.3f}Z"
    return exchange(id=f"x{n}", turn=n, started_at=started, total_s=total_s, place=place) | changes


def session(*turns: dict[str, Any], **changes: Any) -> dict[str, Any]:
    s: dict[str, Any] = {
        "id": "s1", "started_at": "2026-11-24T10:00:00Z", "client": "codex", "models": ["m"], "exchanges": len(turns),
        "input_tokens": 12_345, "output_tokens": 40, "tool_calls": 1, "prefix_reused": 0.9, "model_s": 2.0, "tools_s": 1.0,
        "user_s": 0.0, "items": list(turns),
    }  # fmt: skip
    return s | changes


def test_a_session_is_a_line_for_each_request_on_one_time_line() -> None:
    call = [{"name": "bash", "t_s": 1.0, "argument_bytes": 2, "valid": True, "problems": []}]
    phases = {"prefill_s": 0.5, "decode_s": 0.5, "unexplained_s": None}
    first = turn(1, 0, 1.0, tool_calls=call, **phases)
    second = turn(2, 2, 1.0, place={"waited_for": "tools"}, ending="client_disconnect", **phases)
    third = turn(3, 3, 1.0, place={"trajectory": 1, "relation": "side"}, **phases)
    lines = draw_session(session(first, second, third), 84)  # 40 columns for 4 s
    assert lines == [
        "s1  2026-11-24T10:00:00Z",
        "codex → m · 3 requests · 12345 → 40 tokens · 1 tool call · 90% of the prompts reused",
        "time: model 2.00 s · tools 1.00 s",
        "",
        "each column 100 ms: p prefill  d decode  · tools at work",
        "   1 pppppddddd                                1.00 s        12→4  → bash",
        "   2           ··········pppppddddd            1.00 s        12→4  client left",
        " 1.3                               pppppddddd  1.00 s        12→4  side",
        "     0                   2.00 s        4.00 s",
    ]


@given(
    st.lists(st.tuples(st.floats(0, 3000), st.floats(0, 600), st.sampled_from(["tools", "user", None])), min_size=1, max_size=12),
    st.integers(40, 130),
)
def test_any_session_fits_the_width(turns: list[tuple[float, float, str | None]], width: int) -> None:
    at, told = 0.0, []
    for n, (wait, total, waited_for) in enumerate(turns, 1):
        told.append(turn(n, at % 3500, total, place={"waited_for": waited_for}))
        at += wait / len(turns)
    told.sort(key=lambda t: str(t["started_at"]))
    lines = draw_session(session(*told), width)
    rows = lines[lines.index("") + 1 :]
    assert len([line for line in rows if line[:4].strip().isdigit()]) == len(turns)
    assert all(len(line) <= max(64, width) for line in rows)


def test_words_of_sizes() -> None:
    assert [short(n) for n in (None, 0, 9999, 12_345, 123_456, 1_234_567)] == ["–", "0", "9999", "12.3k", "123k", "1.2M"]
    assert cut("abcdef", 4) == "abc…"
    assert wrapped(["aa", "bb", "cc"], 7) == ["aa · bb", "cc"]
