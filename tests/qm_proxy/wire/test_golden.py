"""Recorded and composed exchanges, end to end: two byte streams in, what was asked and what was answered out."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import Asked, Event, Nanoseconds, TextDelta, ThinkingDelta
from qm_proxy.wire.clients import recognise
from qm_proxy.wire.coding import ContentDecoder
from qm_proxy.wire.decoder import Decoder
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import (
    Broken,
    Headers,
    HttpConnection,
    HttpEvent,
    Informational,
    RequestBody,
    RequestEnd,
    RequestHead,
    ResponseBody,
    ResponseEnd,
    ResponseHead,
    Skipped,
)
from qm_proxy.wire.request import read_request
from qm_proxy.wire.routes import Route, route_of

GOLDEN = Path(__file__).parents[2] / "golden" / "wire"
CASES = sorted(str(path.relative_to(GOLDEN))[: -len(".request.bin")] for path in GOLDEN.glob("*/*.request.bin"))


class Reading:
    """What an observer makes of one exchange: the smallest one possible."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []
        self.asked: Asked | None = None
        self._route: Route | None = None
        self._head: RequestHead | None = None
        self._body: list[bytes] = []
        self._decoder: Decoder | None = None
        self._coding, self._identity = ContentDecoder("identity"), True

    def see(self, events: list[HttpEvent]) -> None:
        for event in events:
            match event:
                case RequestHead():
                    self._head = event
                    self._route = route_of(event.method, event.target)
                    self.told.append(["Route", dict(self._route._asdict())])
                case RequestBody(data=data):
                    self._body.append(data)
                case RequestEnd():
                    self._ask(event.t_ns)
                case ResponseHead():
                    self._answer(event)
                case ResponseBody(data=data):
                    assert self._decoder is not None
                    self._add(self._decoder.feed(self._coding.feed(data), event.t_ns))
                case ResponseEnd():
                    self._end(event)
                case Broken():
                    self.told.append(["Broken", {"side": event.side}])
                case Skipped(side="upstream"):
                    self._coding.missed()
                    if self._decoder is not None:
                        self._add(self._decoder.missed(event.n_bytes, event.t_ns))
                case Skipped() | Informational():
                    pass

    def see_chunks(self, bodies: list[bytes], t_ns: Nanoseconds) -> int:
        """Whole chunks at once, where the decoder can; how many were told so."""
        kind = {"TextDelta": TextDelta, "ThinkingDelta": ThinkingDelta}.get(self.told[-1][0])
        assert self._decoder is not None
        deltas = None
        if kind is not None and self._identity:
            deltas = self._decoder.deltas(kind, bodies, [t_ns] * len(bodies))  # type: ignore[arg-type]
        if deltas is None:
            for body in bodies:
                self._add(self._decoder.feed(self._coding.feed(body), t_ns))
            return 0
        self._add(list(deltas))
        return len(deltas)

    def _ask(self, t_ns: Nanoseconds) -> None:
        assert self._head is not None
        assert self._route is not None
        body = b"".join(self._body)
        if body:
            self.asked = read_request(self._route, self._head.headers, body, t_ns)
            self.told.append(["Asked", plain(self.asked)])
        self.told.append(["ClientSeen", plain(recognise(self._head.headers, self.asked))])

    def _answer(self, event: ResponseHead) -> None:
        assert self._route is not None
        streamed = self._route.streams_by_default if self.asked is None else self.asked.streamed
        kind = _header(event.headers, b"content-type")
        coding = _header(event.headers, b"content-encoding")
        self._coding, self._identity = ContentDecoder(coding or ""), not coding
        self._decoder = decoder_for(self._route, streamed=streamed, status=event.status, content_type=kind)
        self.told.append(["ResponseHead", {"status": event.status, "decoder": type(self._decoder).__name__}])

    def _end(self, event: ResponseEnd) -> None:
        if self._decoder is not None:
            self._add(self._decoder.close("complete" if event.clean else "upstream_truncated", event.t_ns))
        self.told.append(["ResponseEnd", {"clean": event.clean, "how": event.how}])

    def _add(self, events: list[Event]) -> None:
        self.told += [[type(event).__name__, plain(event)] for event in events]


def _header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


def plain(value: Any) -> Any:
    """JSON of a dataclass, without times and defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name != "t_ns" and (field.default is dataclasses.MISSING or getattr(value, field.name) != field.default)
        }
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def read(case: str, request_pieces: list[bytes] | None = None, answer_pieces: list[bytes] | None = None) -> list[list[Any]]:
    reading, http = Reading(), HttpConnection()
    t = 0
    for piece in request_pieces or [(GOLDEN / f"{case}.request.bin").read_bytes()]:
        reading.see(http.client(piece, Nanoseconds(t := t + 1)))
    answer = GOLDEN / f"{case}.bin"
    if answer.exists():
        for piece in answer_pieces or [answer.read_bytes()]:
            reading.see(http.upstream(piece, Nanoseconds(t := t + 1)))
        reading.see(http.upstream_end("eof", Nanoseconds(t + 1)))
    return reading.told


def dump(told: list[list[Any]]) -> str:
    return "[\n" + ",\n".join(json.dumps(line, ensure_ascii=False) for line in told) + "\n]\n"


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool) -> None:
    told = read(case)
    expected = GOLDEN / f"{case}.events.json"
    if update_golden:
        expected.write_text(dump(told), encoding="utf-8")
    assert json.loads(expected.read_text(encoding="utf-8")) == json.loads(dump(told))


def test_every_expectation_has_its_bytes() -> None:
    assert {str(path.relative_to(GOLDEN))[: -len(".events.json")] for path in GOLDEN.glob("*/*.events.json")} == set(CASES)
    assert len(CASES) > 100


# --- what must be read, in words ------------------------------------------------------------------------------------

FIXTURES = {  # expected: how many of each, and how it ended
    "ollama/F1": ({"TextDelta": 3, "Usage": 1}, "stop"),
    "ollama/F2": ({"ThinkingDelta": 1, "TextDelta": 1, "Usage": 1}, "stop"),
    "ollama/F3": ({"ThinkingDelta": 1, "ToolCall": 1, "Usage": 1}, "stop"),
    "ollama/F4": ({"TextDelta": 1, "Failed": 1}, "upstream_error"),
    "ollama/F5": ({"TextDelta": 2}, "upstream_truncated"),
    "ollama/F6": ({"TextDelta": 1, "Usage": 1}, "stop"),
    "openai-chat/F7": ({"ThinkingDelta": 1, "TextDelta": 1, "Usage": 1}, "stop"),
    "openai-chat/F8": ({"ToolCall": 1}, "tool_calls"),
    "openai-chat/F9": ({"TextDelta": 1, "Failed": 1}, "upstream_error"),
    "openai-completions/F10": ({"TextDelta": 1, "Usage": 1}, "stop"),
    "openai-responses/F11": ({"ThinkingDelta": 1, "TextDelta": 1, "Usage": 1}, "completed"),
    "openai-responses/F12": ({"ToolArguments": 1, "ToolCall": 1, "Usage": 1}, "completed"),
    "openai-responses/F13": ({"ThinkingDelta": 1, "TextDelta": 1}, "upstream_truncated"),
    "anthropic/F14": ({"ThinkingDelta": 1, "TextDelta": 1, "ToolArguments": 1, "ToolCall": 1, "Usage": 2}, "tool_use"),
    "anthropic/F15": ({"ThinkingDelta": 1, "TextDelta": 1, "Usage": 1}, "upstream_truncated"),
    "ollama/F16": ({"EmptyRecord": 5}, "success"),
    "ollama/F17": ({"Failed": 1}, "upstream_error"),
    "openai-chat/F17": ({"Failed": 1}, "upstream_error"),
    "anthropic/F17": ({"Failed": 1}, "upstream_error"),
}
_AROUND = ("Route", "Asked", "ClientSeen", "ResponseHead", "ResponseEnd", "Began", "Finished", "Cut")


@pytest.mark.parametrize("case", FIXTURES)
def test_23_fixtures(case: str) -> None:
    counts, end = FIXTURES[case]
    told = read(case)
    found = Counter(line[0] for line in told)
    assert {kind: n for kind, n in found.items() if kind not in _AROUND} == counts
    assert [line[1].get("reason") or line[1].get("ending") for line in told if line[0] in ("Finished", "Cut")] == [end]


def _usage(case: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in read(case):
        if line[0] == "Usage":
            found |= line[1]
    return found


def test_27_rates_have_what_they_need() -> None:
    """eval_count over eval_duration; prefill only where the cached part is known."""
    usage = _usage("ollama/chat_stream.tiny")
    assert (usage["output_tokens"], usage["decode_ns"]) == (12, 4112000)
    assert "cached_tokens" not in usage
    assert _usage("ollama/cloud_stub_with_remote_host")["cached_tokens"] == 4


def test_29_the_wait_for_a_slot_is_what_no_field_says() -> None:
    first, second = _usage("ollama/queued_generate_1"), _usage("ollama/queued_generate_2")
    rest = [u["total_ns"] - u["load_ns"] - u["prefill_ns"] - u["decode_ns"] for u in (first, second)]
    assert 0 <= rest[0] < 5_000_000
    assert rest[1] == 1_102_088_073


def test_30_a_stream_that_was_not_asked_for_usage_has_none() -> None:
    assert _usage("openai-chat/v1_chat_stream.tiny") == {}
    assert _usage("openai-chat/v1_chat_stream_usage.tiny")["output_tokens"] == 23


def test_31_the_count_at_the_end_replaces_the_estimate() -> None:
    told = [line[1] for line in read("anthropic/trunc_v1_messages_4096") if line[0] == "Usage"]
    assert told == [{"input_tokens": 1151, "estimated": True}, {"input_tokens": 2051, "output_tokens": 4}]


# --- any cut ----------------------------------------------------------------------------------------------------------


def pieces(data: bytes, marks: list[int]) -> list[bytes]:
    edges = [0, *sorted({mark % (len(data) + 1) for mark in marks}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("case", CASES)
def test_11_any_cut_gives_the_same_events(case: str) -> None:
    """Byte by byte for what is short, 40 random cuts otherwise."""
    rng = random.Random(case)
    request = (GOLDEN / f"{case}.request.bin").read_bytes()
    answer = (GOLDEN / f"{case}.bin").read_bytes() if (GOLDEN / f"{case}.bin").exists() else b""
    short = [len(data) < 2500 for data in (request, answer)]
    cuts = [
        list(range(len(data))) if whole else [rng.randrange(len(data)) for _ in range(40)]
        for data, whole in zip((request, answer), short, strict=True)
    ]
    assert dump(read(case, pieces(request, cuts[0]), pieces(answer, cuts[1]))) == dump(read(case))


_INTERESTING = [case for case in CASES if (GOLDEN / f"{case}.bin").exists() and not case.startswith(("other", "clients"))]


@settings(max_examples=200)
@given(st.sampled_from(_INTERESTING), st.lists(st.integers(0, 10**6), max_size=12))
def test_11_any_cut_property(case: str, marks: list[int]) -> None:
    assert dump(read(case, None, pieces((GOLDEN / f"{case}.bin").read_bytes(), marks))) == dump(read(case))


def chunked(answer: bytes) -> list[bytes]:
    """The head, and each chunk; the last one with what follows."""
    at = answer.index(b"\r\n\r\n") + 4
    found = [answer[:at]]
    while match := re.compile(rb"([0-9a-f]+)\r\n").match(answer, at):
        if int(match[1], 16) == 0:
            break
        end = match.end() + int(match[1], 16) + 2
        found.append(answer[at:end])
        at = end
    return [*found, answer[at:]]


_CHUNKED = [
    case for case in _INTERESTING if b"\r\nTransfer-Encoding: chunked\r\n" in (GOLDEN / f"{case}.bin").read_bytes()[:2000]
]


def _in_runs(case: str, sizes: list[int], *, cut: bool = False) -> tuple[list[list[Any]], int]:
    """The answer read as the observer does: whole chunks are gathered and told together, `sizes` at a time. Also how many deltas
    were told so. `cut`: in the middle a read is cut elsewhere."""
    reading, http, together = Reading(), HttpConnection(), 0
    reading.see(http.client((GOLDEN / f"{case}.request.bin").read_bytes(), Nanoseconds(1)))
    reads = chunked((GOLDEN / f"{case}.bin").read_bytes())
    if cut:
        middle = len(reads) // 2
        half = len(reads[middle]) // 2
        reads[middle : middle + 1] = [reads[middle][:half], reads[middle][half:]]
    waiting: list[bytes] = []
    for i, data in enumerate(reads):
        body = http.chunk(data)
        if body is not None:
            waiting.append(body)
        if waiting and (body is None or len(waiting) >= sizes[i % len(sizes)]):
            together += reading.see_chunks(waiting, Nanoseconds(i))
            waiting = []
        if body is None:
            reading.see(http.upstream(data, Nanoseconds(i)))
    if waiting:
        together += reading.see_chunks(waiting, Nanoseconds(len(reads)))
    reading.see(http.upstream_end("eof", Nanoseconds(len(reads) + 1)))
    return reading.told, together


@pytest.mark.parametrize("case", _CHUNKED)
def test_11_chunks_told_together_say_the_same(case: str) -> None:
    rng = random.Random(case)
    whole = dump(read(case))
    for sizes in ([2], [5], [10**6], [rng.randrange(1, 9) for _ in range(7)]):
        for cut in (False, True):
            assert dump(_in_runs(case, sizes, cut=cut)[0]) == whole


def test_11_nearly_all_deltas_are_told_together() -> None:
    """So that the test above is about something: in every dialect most deltas go the short way."""
    n, short = Counter[str](), Counter[str]()
    for case in _CHUNKED:
        told, together = _in_runs(case, [4])
        n[case.partition("/")[0]] += sum(line[0] in ("TextDelta", "ThinkingDelta") for line in told)
        short[case.partition("/")[0]] += together
    assert {dialect: short[dialect] > n[dialect] // 2 for dialect in n if n[dialect]} == {
        "ollama": True,
        "openai-chat": True,
        "openai-responses": True,
        "anthropic": True,
        "openai-completions": False,
    }


# --- gaps and damage --------------------------------------------------------------------------------------------------


def _said(told: list[list[Any]]) -> list[tuple[str, str]]:
    keys = {"TextDelta": "text", "ThinkingDelta": "text", "ToolArguments": "fragment", "ToolCall": "arguments"}
    return [(line[0], line[1][keys[line[0]]]) for line in told if line[0] in keys]


@settings(max_examples=200)
@given(st.sampled_from(_INTERESTING), st.integers(0, 10**6), st.integers(1, 3000), st.integers(0, 10**6))
def test_what_is_read_around_a_gap_was_really_said(case: str, start: int, size: int, seed: int) -> None:
    """Reads as a server flushes them, one range of bytes lost: nothing is invented, nothing joined over the gap."""
    answer = (GOLDEN / f"{case}.bin").read_bytes()
    gap = range(start % len(answer), min(start % len(answer) + size, len(answer)))
    reading, http = Reading(), HttpConnection()
    reading.see(http.client((GOLDEN / f"{case}.request.bin").read_bytes(), Nanoseconds(0)))
    at = 0
    for piece in re.split(rb"(?<=\n\r\n)", answer):
        before = piece[: max(0, gap.start - at)] if at < gap.stop else piece
        behind = piece[max(0, gap.stop - at) :] if at < gap.stop else b""
        reading.see(http.upstream(before, Nanoseconds(1)))
        if at <= gap.start < at + len(piece):
            reading.see(http.upstream_skipped(len(gap), Nanoseconds(1)))
        reading.see(http.upstream(behind, Nanoseconds(1)))
        at += len(piece)
    reading.see(http.upstream_end("eof", Nanoseconds(2)))
    reading.see(http.closed(Nanoseconds(3)))
    left = iter(_said(read(case)))
    assert all(any(said == one for one in left) for said in _said(reading.told) if said[0] != "ToolCall")
    assert sum(line[0] == "ResponseEnd" for line in reading.told) == 1


@settings(max_examples=200)
@given(st.sampled_from(CASES), st.randoms(use_true_random=False))
def test_damaged_bytes_never_raise_and_every_exchange_ends(case: str, rng: random.Random) -> None:
    reading, http = Reading(), HttpConnection()
    damaged = []
    for path in (GOLDEN / f"{case}.request.bin", GOLDEN / f"{case}.bin"):
        data = bytearray(path.read_bytes() if path.exists() else b"")
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(3):
                case 0:
                    data[at : at + 1] = rng.randbytes(1)
                case 1:
                    del data[at : at + rng.randrange(40)]
                case _:
                    data[at:at] = rng.choice([b"\r\n", b"\n\n", b"0\r\n\r\n", b"}", b'"', b"data: ", b"HTTP/1.1 200 OK\r\n\r\n"])
        damaged.append(bytes(data))
    events = [event for piece in pieces(damaged[0], [rng.randrange(10**6)]) for event in http.client(piece, Nanoseconds(1))]
    events += [
        event for piece in pieces(damaged[1], [rng.randrange(10**6)] * 3) for event in http.upstream(piece, Nanoseconds(2))
    ]
    events += http.upstream_end("eof", Nanoseconds(3)) + http.closed(Nanoseconds(4))
    assert {e.n for e in events if isinstance(e, RequestHead)} <= {e.n for e in events if isinstance(e, ResponseEnd)}
    reading.see([event for event in events if event.n == 0 and _has_a_head(events)])


def _has_a_head(events: list[HttpEvent]) -> bool:
    return any(isinstance(event, RequestHead) and event.n == 0 for event in events)


# --- an independent reading -------------------------------------------------------------------------------------------


def _dechunked(wire: bytes) -> bytes:
    head, _, body = wire.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return body
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            break
        out += body[:n]
        body = body[n + 2 :]
    return out


def _naive(case: str) -> tuple[str, str, int]:
    """(text, thinking, records with either) by json.loads and the obvious places, nothing shared with the decoders."""
    text: list[str] = []
    thinking: list[str] = []
    records = 0
    body = _dechunked((GOLDEN / f"{case}.bin").read_bytes()).decode()
    if body.startswith(("data:", "event:")):
        lines = [line[5:].strip() for line in body.split("\n") if line.startswith("data:")]
    else:
        lines = [line for line in body.split("\n") if line.strip()]
    for line in lines:
        if line == "[DONE]":
            continue
        record = json.loads(line)
        message = record.get("message") or {}
        choice = (record.get("choices") or [{}])[0]
        delta = choice.get("delta") or choice.get("message") or {}
        said = [
            message.get("content") if isinstance(message.get("content"), str) else None,
            record.get("response") if isinstance(record.get("response"), str) else None,
            delta.get("content"),
            choice.get("text"),
            record.get("delta") if record.get("type") == "response.output_text.delta" else None,
            record["delta"].get("text") if record.get("type") == "content_block_delta" else None,
        ]
        for item in record.get("output") or ():
            said += [part["text"] for part in item.get("content") or ()]
        if record.get("type") == "message":
            said += [block.get("text") for block in record["content"]]
        thought = [
            message.get("thinking"),
            record.get("thinking"),
            delta.get("reasoning"),
            record.get("delta") if record.get("type") == "response.reasoning_summary_text.delta" else None,
            record["delta"].get("thinking") if record.get("type") == "content_block_delta" else None,
        ]
        text += [part for part in said if part]
        thinking += [part for part in thought if part]
        records += any(said) + any(thought)
    return "".join(text), "".join(thinking), records


_MARKS = ("chat_", "generate_", "v1_", "queued")
_RECORDED = [case for case in _INTERESTING if any(mark in case.rpartition("/")[2] for mark in _MARKS)]


@pytest.mark.parametrize("case", [case for case in _RECORDED if "err_" not in case])
def test_text_agrees_with_an_independent_reading(case: str) -> None:
    told = read(case)
    text, thinking, records = _naive(case)
    assert "".join(line[1]["text"] for line in told if line[0] == "TextDelta") == text
    assert "".join(line[1]["text"] for line in told if line[0] == "ThinkingDelta") == thinking
    assert sum(line[0] in ("TextDelta", "ThinkingDelta") for line in told) == records
