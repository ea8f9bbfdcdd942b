from __future__ import annotations

import json
from dataclasses import replace
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import Asked, Nanoseconds
from qm_proxy.findings import Finding, Kind
from qm_proxy.ids import Ids
from qm_proxy.measure.series import pack, pack_lags
from qm_proxy.measure.wall_clock import iso
from qm_proxy.record import Chunks, InterToken, Opened, Placed, Progress, Record, ToolCallSeen
from qm_proxy.store.queries import Ring, chunks_json, finding_json, opened_json, record_json

START = 1_795_521_600_000_000_000
CONTRACT = """
id started_at method route dialect operation model response_model streamed http_status ending session_id session_source turn
client user_agent origin ttft_s ttft_content_s queue_s load_s prefill_s decode_s client_wait_s unexplained_s total_s slow_because
itl tokens_per_s rate_source input_tokens output_tokens chunks thinking_chunks context_window_tokens finish_reason tool_calls
findings bytes_in bytes_out written_lag_s proxy_overhead_s trace_id
"""
FINDING = "id exchange_id session_id kind severity t_s chunk summary evidence tokens_wasted"


class Makes:
    """Exchanges a second apart, each opened and closed when told."""

    def __init__(self) -> None:
        self.ids = Ids()
        self.n = 0

    def opened(self, model: str | None = "m", client: str = "curl", session: str | None = None) -> Opened:
        self.n += 1
        unix_ns = START + self.n * 1_000_000_000
        placed = None if session is None else Placed(session, "header", "start", 0, 1)
        return Opened(
            self.ids.new(unix_ns), Nanoseconds(self.n), iso(unix_ns), "POST", "/api/chat", "ollama", "chat", model, True, client,
            "curl/8", "client", Asked(Nanoseconds(0), "ollama", "chat", model, True), placed=placed,
        )  # fmt: skip

    def record(self, opened: Opened, findings: list[Finding] | None = None, series: Chunks | None = None) -> Record:
        placed = opened.placed
        calls, itl = [ToolCallSeen("c", "f", 0.4, 2, True, [])], InterToken(2, 0.02, 0.02, 0.02, 0.02, 0.02)
        return Record(
            opened.id, opened.started_at, "POST", "/api/chat", "ollama", "chat", opened.model, "m", True, 200, "complete",
            placed.session_id if placed else None, placed.source if placed else None, 1 if placed else None, opened.client,
            "curl/8", "client", 0.5, 0.5, 0.0, 0.1, 0.3, 0.4, 0.0, 0.1, 0.9, None, itl, 50.0,
            "server", 9, 4, 3, 0, 4096, "stop", calls, findings or [], 100, 400, 1e-4, 3e-5,
            None, series=series, opened=opened,
        )  # fmt: skip

    def finding(self, opened: Opened | None, kind: Kind = "stall", *, late_ns: int = 0) -> Finding:
        unix_ns = START + self.n * 1_000_000_000 + late_ns
        return Finding(
            kind, "suspect", "It stalled.", 5, {"gap_s": 2.0}, 7, None, self.ids.new(unix_ns), opened.id if opened else None
        )


def ids(page: dict[str, object]) -> list[str]:
    items = page["items"]
    assert isinstance(items, list)
    return [item["id"] for item in items]


def test_a_closed_exchange_bears_the_contracts_names() -> None:
    makes = Makes()
    opened = makes.opened(session="s")
    found = record_json(makes.record(opened, [makes.finding(opened)]))
    assert set(found) >= set(CONTRACT.split())
    assert found["itl"] == {"n": 2, "mean_s": 0.02, "p50_s": 0.02, "p90_s": 0.02, "p99_s": 0.02, "max_s": 0.02}
    assert found["tool_calls"] == [{"id": "c", "name": "f", "t_s": 0.4, "argument_bytes": 2, "valid": True, "problems": []}]
    assert [set(f) for f in found["findings"]] == [{"id", "kind", "severity"}]
    assert (found["session_id"], found["ending"], found["phase"]) == ("s", "complete", None)
    json.dumps(found, allow_nan=False)


def test_one_in_flight_has_the_same_keys_and_no_ending() -> None:
    makes = Makes()
    opened = makes.opened(session="s")
    progress = Progress(opened.id, Nanoseconds(9), "thinking", 12, 1.5, 0.5, 60.0)
    found = opened_json(opened, progress, [makes.finding(opened)])
    assert set(found) == set(record_json(makes.record(opened)))
    assert (found["ending"], found["total_s"], found["phase"], found["chunks"]) == (None, None, "thinking", 12)
    assert (found["ttft_s"], found["tokens_per_s"], found["rate_source"]) == (0.5, 60.0, "client")
    assert found["session_id"] == "s"
    assert len(found["findings"]) == 1
    bare = opened_json(makes.opened())
    assert (bare["phase"], bare["chunks"], bare["tokens_per_s"], bare["rate_source"]) == ("waiting", 0, None, None)


def test_a_finding_bears_the_contracts_names() -> None:
    makes = Makes()
    found = finding_json(makes.finding(makes.opened()))
    assert set(found) == set(FINDING.split())


def test_chunks_are_unpacked_into_the_contracts_format() -> None:
    makes = Makes()
    series = Chunks(
        3, START, 20_000, pack([40_000, 60_000, 60_000]), pack_lags([20_000, -1, 0]), [("thinking", 1), ("text", 2)], [2], [1]
    )
    record = makes.record(makes.opened(), series=series)
    found = chunks_json(record)
    assert found == {
        "format": 1,
        "start_unix_ns": START,
        "resolution_ns": 20_000,
        "arrival_ns": [40_000, 60_000, 60_000],
        "written_ns": [60_000, None, 60_000],
        "kinds": [["thinking", 1], ["text", 2]],
        "coalesced": [2],
        "suspended": [1],
    }
    assert chunks_json(replace(record, series=None)) is None
    unheard = chunks_json(replace(record, series=replace(series, written=None)))
    assert unheard is not None
    assert unheard["written_ns"] is None


def test_an_exchange_is_seen_from_its_opening_to_its_end_in_one_place() -> None:
    makes, ring = Makes(), Ring()
    first, second = makes.opened(), makes.opened()
    ring.opened(first)
    ring.opened(second)
    ring.progress(Progress(first.id, Nanoseconds(9), "answering", 3, 1.0, 0.5, None))
    ring.progress(Progress("unknown", Nanoseconds(9), "answering", 3, 1.0, 0.5, None))
    finding = makes.finding(first)
    ring.found(finding)
    assert ids(ring.exchanges()) == [second.id, first.id]
    flying = ring.exchange(first.id)
    assert flying is not None
    assert (flying["phase"], flying["ending"], flying["findings"][0]["id"]) == ("answering", None, finding.id)
    assert ring.chunks(first.id) is None
    assert (ring.in_flight("m"), ring.in_flight("m:latest"), ring.in_flight("n")) == (2, 2, 0)
    ring.closed(makes.record(first, [finding]))
    assert ids(ring.exchanges()) == [second.id, first.id]
    landed = ring.exchange(first.id)
    assert landed is not None
    assert (landed["ending"], landed["phase"]) == ("complete", None)
    assert ring.in_flight("m") == 1
    assert (ring.status()["exchanges"], ring.status()["in_flight"], ring.status()["findings"]) == (1, 1, 1)
    assert ring.exchange("unknown") is None
    assert ring.chunks("unknown") is None


def test_content_is_told_of_one_exchange_only_when_it_was_captured() -> None:
    makes, ring = Makes(), Ring()
    opened = makes.opened()
    ring.closed(replace(makes.record(opened), captured_request="{}", captured_answer="hi", answer_pieces=b"\x01\x01"))
    one = ring.exchange(opened.id)
    assert one is not None
    assert (one["captured_request"], one["captured_answer"], one["captured_thinking"]) == ("{}", "hi", None)
    assert (one["captured_answer_pieces"], one["captured_thinking_pieces"]) == ([1, 1], None)
    assert "captured_answer" not in ring.exchanges()["items"][0]


def test_nothing_of_the_request_is_held() -> None:
    makes, ring = Makes(), Ring()
    opened = makes.opened()
    ring.opened(opened)
    assert opened.asked is not None
    kept = ring._kept[opened.id]
    assert kept.opened is not None
    assert kept.opened.asked is None
    ring.closed(makes.record(opened))
    record = ring._kept[opened.id].record
    assert record is not None
    assert record.opened is None


def test_filters() -> None:
    makes, ring = Makes(), Ring()
    a = makes.opened(model="llama3:latest", client="aider", session="one")
    b = makes.opened(model="qwen", client="codex", session="two")
    c = makes.opened(model=None)
    for opened in (a, b, c):
        ring.opened(opened)
    found = makes.finding(b, "loop.token")
    ring.found(found)
    for closing in (False, True):
        if closing:
            ring.closed(makes.record(a))
            ring.closed(makes.record(b, [found]))
        assert ids(ring.exchanges(model="llama3")) == [a.id]
        assert ids(ring.exchanges(model="qwen:latest")) == [b.id]
        assert ids(ring.exchanges(client="codex")) == [b.id]
        assert ids(ring.exchanges(session="one")) == [a.id]
        assert ids(ring.exchanges(finding="loop.token")) == ids(ring.exchanges(finding="loop")) == [b.id]
        assert ids(ring.exchanges(finding="loo")) == ids(ring.exchanges(finding="stall")) == []
        assert ids(ring.exchanges(since=b.started_at)) == [c.id, b.id]
        assert ids(ring.exchanges(since="2026-11-24T13:00:02+01:00", client="aider")) == []
        assert ids(ring.exchanges(since="2026-11-24T12:00:01Z", client="aider")) == [a.id]
    assert ids(ring.findings(kind="loop")) == [found.id]
    assert ids(ring.findings(kind="stall")) == []
    assert ids(ring.findings(since="2026-11-24T12:00:03Z")) == [found.id]
    assert ids(ring.findings(since="2026-11-24T12:00:04Z")) == []


@pytest.mark.parametrize("ask", ["exchanges", "findings"])
def test_wrong_questions_say_what_was_expected(ask: str) -> None:
    asking = getattr(Ring(), ask)
    for wrong in ({"limit": 0}, {"limit": 501}, {"cursor": "x"}, {"since": "yesterday"}):
        with pytest.raises(ValueError, match="Expected"):
            asking(**wrong)
    assert asking() == {"items": [], "next_cursor": None}


@given(st.integers(1, 40), st.integers(1, 9), st.lists(st.booleans(), min_size=60, max_size=60))
def test_pages_are_honest_while_others_arrive_and_close(n: int, limit: int, arrivals: list[bool]) -> None:
    makes, ring = Makes(), Ring()
    there = [makes.opened() for _ in range(n)]
    for opened in there:
        ring.opened(opened)
    seen: list[str] = []
    cursor, page = None, 0
    while True:
        got = ring.exchanges(limit=limit, cursor=cursor)
        assert len(got["items"]) == limit or got["next_cursor"] is None
        seen += ids(got)
        cursor = got["next_cursor"]
        if cursor is None:
            break
        if arrivals[page]:
            ring.opened(makes.opened())
            ring.closed(makes.record(there[page % n]))
        page += 1
    assert seen == [opened.id for opened in reversed(there)]
    assert page == (n - 1) // limit


def test_no_cursor_when_the_last_page_is_full() -> None:
    makes, ring = Makes(), Ring()
    for _ in range(4):
        ring.opened(makes.opened())
    first = ring.exchanges(limit=2)
    assert first["next_cursor"] == first["items"][-1]["id"]
    assert ring.exchanges(limit=2, cursor=first["next_cursor"])["next_cursor"] is None


def test_bounded_by_number_and_what_is_in_flight_stays() -> None:
    makes, ring = Makes(), Ring(limit=3)
    flying = makes.opened()
    ring.opened(flying)
    closed = [makes.opened() for _ in range(5)]
    for opened in closed:
        ring.opened(opened)
        ring.closed(makes.record(opened))
    assert ids(ring.exchanges()) == [*(o.id for o in reversed(closed[2:])), flying.id]
    assert (ring.status()["exchanges"], ring.status()["forgotten"]) == (3, 2)
    assert ring.exchange(closed[0].id) is None
    ring.closed(makes.record(flying))
    assert ids(ring.exchanges()) == [closed[4].id, closed[3].id, flying.id]


def test_bounded_by_bytes() -> None:
    makes, ring = Makes(), Ring(limit=1000, max_bytes=105_000)
    big = Chunks(9, START, 20_000, b"x" * 20_000, b"y" * 10_000, [("text", 9)], [])
    for _ in range(20):
        ring.closed(makes.record(makes.opened(), series=big))
    assert 0 < ring.status()["bytes"] <= 105_000
    assert ring.status()["exchanges"] == 3
    alone = Ring(max_bytes=10)
    alone.closed(makes.record(makes.opened(), series=big))
    assert alone.status()["exchanges"] == 1


def test_a_record_told_twice_is_kept_once() -> None:
    makes, ring = Makes(), Ring()
    opened = makes.opened()
    for _ in range(2):
        ring.closed(makes.record(opened))
    assert (ids(ring.exchanges()), ring.status()["exchanges"]) == ([opened.id], 1)
    size = ring.status()["bytes"]
    ring.closed(makes.record(opened))
    assert ring.status()["bytes"] == size


def test_findings_are_bounded_and_newest_first() -> None:
    makes, ring = Makes(), Ring()
    made = [makes.finding(None, late_ns=i) for i in range(10_050)]
    for finding in (*made[1:], made[0]):
        ring.found(finding)
    ring.found(made[-1])
    assert ring.status()["findings"] == 10_000
    page = ring.findings(limit=500)
    assert ids(page) == [f.id for f in reversed(made[-500:])]
    assert ids(ring.findings(limit=1, cursor=page["next_cursor"])) == [made[-501].id]


def test_asked_from_another_thread_while_being_told() -> None:
    makes, ring = Makes(), Ring(limit=50)
    trouble: list[BaseException] = []
    done = False

    def ask() -> None:
        try:
            while not done:
                ring.exchanges(limit=50, model="m")
                ring.findings()
                ring.status()
                ring.in_flight("m")
        except BaseException as exc:
            trouble.append(exc)

    thread = Thread(target=ask)
    thread.start()
    for _ in range(600):
        opened = makes.opened()
        ring.opened(opened)
        ring.found(makes.finding(opened))
        ring.closed(makes.record(opened))
    done = True
    thread.join()
    assert trouble == []
    assert ring.status()["exchanges"] == 50


def test_exchanges_whose_end_was_lost_do_not_pile_up() -> None:
    makes, ring = Makes(), Ring()
    for _ in range(10_050):
        ring.opened(makes.opened())
    assert ring.status()["in_flight"] == 10_000
