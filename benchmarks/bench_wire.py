"""What reading costs: ns of CPU per record, from the relay's copy to events, for each dialect, beside `json.loads` per record.

    python benchmarks/bench_wire.py [--batches 200] [--json]

Every row is one stream, one record a read, as a server flushes them. "HTTP" is HttpConnection alone, "all" is HttpConnection
and the dialect's decoder, "json.loads" the same payloads through the standard library with nothing done to the result. All
are measured in short batches in turn, process CPU time; a figure is the batches' tenth percentile (what else the machine does
can only add: shared caches and a sibling thread cost up to half again, which is what "median" shows for "all").
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from qm_proxy.events import Nanoseconds
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import HttpConnection, ResponseBody
from qm_proxy.wire.request import read_request
from qm_proxy.wire.routes import route_of

GOAL_NS = 2500
"""CPU per token record for NDJSON."""

_WORDS = ("the", " model", " said", " that", " it", " was", " done", ".", "\n", "é", " 🙂", " int", "(x)", " <b>")


@dataclass(slots=True)
class Row:
    name: str
    bytes_per_record: int
    http_ns: float
    all_ns: float
    json_ns: float
    all_median_ns: float


@dataclass(slots=True)
class Stream:
    name: str
    path: bytes
    kind: bytes
    first: list[bytes]
    records: list[bytes]
    payloads: list[bytes]


def _chunk(record: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(record), record)


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _streams(n: int) -> list[Stream]:
    words = [_WORDS[i % len(_WORDS)] for i in range(n)]
    stamp = [f"2026-11-23T08:02:{24 + i // 60 % 30:02d}.{i * 7919 % 10**9:09d}Z" for i in range(n)]

    def lines(name: str, path: bytes, make: Callable[[int], object]) -> Stream:
        payloads = [_dump(make(i)) for i in range(n)]
        return Stream(name, path, b"application/x-ndjson", [], [payload + b"\n" for payload in payloads], payloads)

    def events(
        name: str, path: bytes, make: Callable[[int], object], event: bytes = b"", first: list[object] | None = None
    ) -> Stream:
        payloads = [_dump(make(i)) for i in range(n)]
        head = b"event: %s\n" % event if event else b""
        opening = [b"data: " + _dump(record) + b"\n\n" for record in first or ()]
        return Stream(name, path, b"text/event-stream", opening, [head + b"data: " + p + b"\n\n" for p in payloads], payloads)

    def native(i: int, **message: str) -> object:
        return {"model": "qwen3:8b", "created_at": stamp[i], "message": {"role": "assistant", **message}, "done": False}

    def chat(i: int) -> object:
        choice = {"index": 0, "delta": {"content": words[i]}, "finish_reason": None}
        return {
            "id": "chatcmpl-417",
            "object": "chat.completion.chunk",
            "created": 1787306401,
            "model": "qwen3:8b",
            "system_fingerprint": "fp_ollama",
            "choices": [choice],
        }

    def completion(i: int) -> object:
        choice = {"text": words[i], "index": 0, "finish_reason": None}
        return {
            "id": "cmpl-12",
            "object": "text_completion",
            "created": 1787306409,
            "choices": [choice],
            "model": "qwen2.5-coder",
            "system_fingerprint": "fp_ollama",
        }

    def response(i: int) -> object:
        return {
            "content_index": 0,
            "delta": words[i],
            "item_id": "msg_100379",
            "logprobs": [],
            "output_index": 0,
            "sequence_number": i,
            "type": "response.output_text.delta",
        }

    def anthropic(i: int) -> object:
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": words[i]}}

    start: list[object] = [{"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 9}}}]
    return [
        lines("native chat", b"/api/chat", lambda i: native(i, content=words[i])),
        lines("native chat, thinking", b"/api/chat", lambda i: native(i, content="", thinking=words[i])),
        lines(
            "native generate",
            b"/api/generate",
            lambda i: {"model": "qwen3:8b", "created_at": stamp[i], "response": words[i], "done": False},
        ),
        events("OpenAI chat", b"/v1/chat/completions", chat),
        events("OpenAI completions", b"/v1/completions", completion),
        events("OpenAI Responses", b"/v1/responses", response, b"response.output_text.delta"),
        events("Anthropic messages", b"/v1/messages", anthropic, b"content_block_delta", start),
    ]


def _open(stream: Stream) -> HttpConnection:
    http = HttpConnection()
    http.client(b"POST %s HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" % stream.path, Nanoseconds(1))
    http.upstream(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % stream.kind, Nanoseconds(2))
    return http


def _per_record(work: Callable[[], None], records: int) -> float:
    begin = time.process_time_ns()
    work()
    return (time.process_time_ns() - begin) / records


class Measured:
    """One stream's three ways, run batch by batch."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reads = [_chunk(record) for record in stream.records]
        self.http = _open(stream)
        self.whole = _open(stream)
        route = route_of("POST", stream.path)
        self.decoder = decoder_for(route, streamed=True, status=200, content_type=stream.kind.decode())
        for record in stream.first:
            self.decoder.feed(record, Nanoseconds(3))
        self.figures: tuple[list[float], list[float], list[float]] = ([], [], [])

    def batch(self) -> None:
        for figures, way in zip(self.figures, (self._http_only, self._everything, self._by_json), strict=True):
            figures.append(_per_record(way, len(self.reads)))

    def _http_only(self) -> None:
        upstream = self.http.upstream
        for read in self.reads:
            upstream(read, 1)  # type: ignore[arg-type]

    def _everything(self) -> None:
        upstream, feed = self.whole.upstream, self.decoder.feed
        seen = 0
        for read in self.reads:
            for event in upstream(read, 1):  # type: ignore[arg-type]
                if type(event) is ResponseBody:
                    seen += len(feed(event.data, event.t_ns))
        assert seen >= len(self.reads), f"{self.stream.name}: {seen} events of {len(self.reads)} records"

    def _by_json(self) -> None:
        loads = json.loads
        for payload in self.stream.payloads:
            loads(payload)

    def row(self) -> Row:
        http, every, by_json = [sorted(figures)[len(figures) // 10] for figures in self.figures]
        records = self.stream.records
        median = sorted(self.figures[1])[len(self.figures[1]) // 2]
        return Row(self.stream.name, sum(map(len, records)) // len(records), http, every, by_json, median)


def _request_ms(kilobytes: int) -> tuple[float, float]:
    """CPU of reading one agent's request of that size: ours, and json.loads alone."""
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "d" * 60} for i in range(12)}}
    tools = [
        {"type": "function", "function": {"name": f"tool_{i}", "description": "x" * 400, "parameters": schema}} for i in range(24)
    ]
    body = _dump({"model": "m", "stream": True, "tools": tools, "messages": []})
    turn = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "function": {"name": "tool_1", "arguments": '{"p1":"x"}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "line of a file\n" * 60},
    ]
    turns = max(1, (kilobytes * 1024 - len(body)) // len(_dump(turn)))
    body = _dump({"model": "m", "stream": True, "tools": tools, "messages": turn * turns})
    route = route_of("POST", b"/v1/chat/completions")
    ours = min(_per_record(lambda: _drop(read_request(route, (), body, Nanoseconds(1))), 1) for _ in range(7))
    theirs = min(_per_record(lambda: _drop(json.loads(body)), 1) for _ in range(7))
    return ours / 1e6, theirs / 1e6


def _drop(_: object) -> None:
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=200, help="of 500 records, for each row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = [Measured(stream) for stream in _streams(500)]
    for _ in range(options.batches):
        for one in measured:
            one.batch()
    rows = [one.row() for one in measured]
    requests = {kilobytes: _request_ms(kilobytes) for kilobytes in (50, 500, 5000)}
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "requests_ms": requests, "goal_ns": GOAL_NS}))
        return 0
    print(f"{'one record a read':24}{'bytes':>7}{'HTTP ns':>9}{'all ns':>9}{'json.loads':>12}{'ratio':>8}{'all, median':>13}")
    for row in rows:
        ratio = row.all_ns / row.json_ns
        print(
            f"{row.name:24}{row.bytes_per_record:7}{row.http_ns:9.0f}{row.all_ns:9.0f}{row.json_ns:12.0f}{ratio:8.2f}{row.all_median_ns:13.0f}"
        )
    print()
    print(f"{'one request':24}{'':>7}{'':>9}{'ours ms':>9}{'json.loads':>12}{'ratio':>8}")
    for kilobytes, (ours, theirs) in requests.items():
        print(f"{kilobytes:>5} kB{'':24}{'':>8}{ours:9.2f}{theirs:12.2f}{ours / theirs:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
