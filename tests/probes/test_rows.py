"""rows.jsonl: what is written comes back, and a crash in mid-row costs that row only."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from probes.ask import Answer, Ask
from probes.rows import Rows, decode, encode
from qm_proxy.events import Finished, HostSample, Nanoseconds, TextDelta, ToolCall, Usage

ASK = Ask("P5/1", "/api/generate", {"model": "m", "prompt": "p" * 3000})


def answer(text: str = "hé\u2028llo", start: int = 10**15) -> Answer:
    return Answer(
        "P5/1",
        started_ns=start,
        ended_ns=start + 999,
        at_unix_s=1.5,
        connect_ns=12,
        head_ns=start + 5,
        status=200,
        events=[
            TextDelta(Nanoseconds(start + 7), text, 123),
            ToolCall(Nanoseconds(start + 8), 0, "", "f", '{"a": 1}'),
            Usage(Nanoseconds(start + 9), input_tokens=4, load_ns=5),
            Finished(Nanoseconds(start + 9), None),
        ],
        host=[HostSample(Nanoseconds(start + 1), cpu=0.5)],
        pauses=[(start + 2, start + 6)],
    )


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.integers(0, 2**62))
def test_a_row_is_the_answer(text: str, start: int) -> None:
    row = json.loads(json.dumps(encode(ASK, answer(text, start))))
    back = decode(row)
    assert back.replayed
    back.replayed = False
    assert back == answer(text, start)


def test_a_long_body_is_shortened_and_still_recognised(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "deep" / "rows.jsonl")
    rows.add(ASK, answer())
    rows.close()
    again = Rows(rows.path)
    assert again.load() == 1
    assert again.recall(ASK) is not None
    assert again.recall(Ask("P5/1", "/api/generate", {"model": "m", "prompt": "q"})) is None
    assert again.recall(Ask("P5/2", "/api/generate", ASK.body)) is None
    assert len(json.loads((tmp_path / "deep" / "rows.jsonl").read_text())["body"]) < 2100


def test_a_row_cut_by_a_crash_is_dropped_and_the_file_goes_on_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.add(ASK, answer())
    rows.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    again = Rows(path)
    assert again.load() == 1
    again.add(Ask("next", "/api/ps", None, "GET"), Answer("next", document={"models": []}))
    again.close()
    assert [json.loads(line)["key"] for line in path.read_text().rstrip("\n").split("\n")] == ["P5/1", "next"]


def test_without_a_file_nothing_is_kept() -> None:
    rows = Rows(None)
    rows.add(ASK, answer())
    assert (rows.load(), rows.written, rows.recall(ASK)) == (0, 1, None)


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    assert Rows(tmp_path / "none.jsonl").load() == 0
