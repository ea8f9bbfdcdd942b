"""What observing costs from the pipe to the database: CPU µs per token by stage, and bytes held per token of a live stream.

    python benchmarks/bench_observe.py [--streams 64] [--tokens 1000] [--rate 200] [--rounds 5]

Streams of prose, `--rate` tokens a second each, a record a read, as Ollama frames them natively and as OpenAI chat. In process and as
fast as it goes: every stage is the one before and one part more, made as in wiring; the figure is this process's CPU time (the writer's
thread included) divided by tokens, least and median of the rounds. What the relay spends (socket reads, its half of the pipe) is in
bench_relay.py; here only packing its records is. The bound (≤ 5 µs, aim 3) speaks of copy, pipe, decoding, measuring and row; what all
detectors cost beside is the last stage.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from qm_proxy.across import Across
from qm_proxy.console.live import Live
from qm_proxy.detect.detector import Detector
from qm_proxy.detect.suite import Suite
from qm_proxy.events import Nanoseconds, TextDelta
from qm_proxy.exchange import Exchange
from qm_proxy.ids import new_id
from qm_proxy.observer import Fanout, Observer
from qm_proxy.record import Opened
from qm_proxy.relay.pipe import Kind, Reader
from qm_proxy.relay.tap import FLUSH_S, Tap
from qm_proxy.sessions import Sessions
from qm_proxy.sinks import Sink
from qm_proxy.store.queries import Ring
from qm_proxy.store.writer import Writer
from qm_proxy.telemetry.metrics import Metrics
from qm_proxy.wire.decoder import Decoder
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import HttpConnection, ResponseBody
from qm_proxy.wire.routes import route_of
from qm_proxy.wiring import Busy

WORDS = (Path(__file__).parent.parent / "README.md").read_text().split()


class Wire(NamedTuple):
    """How a server frames a stream."""

    target: bytes
    content_type: bytes
    token: Callable[[int, str], bytes]
    last: bytes


def _native(i: int, text: str) -> bytes:
    stamp = f"2026-11-23T08:02:20.{i * 4_999_661 % 10**9:09d}Z"
    record = {"model": "bench", "created_at": stamp, "message": {"role": "assistant", "content": text}, "done": False}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _openai(i: int, text: str) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    record = {"id": "chatcmpl-417", "object": "chat.completion.chunk", "created": 1795000000 + i, "model": "bench"}
    record |= {"system_fingerprint": "fp_ollama", "choices": [choice]}
    return b"data: " + json.dumps(record, separators=(",", ":")).encode() + b"\n\n"


WIRES = {
    "native": Wire(
        b"/api/chat",
        b"application/x-ndjson",
        _native,
        b'{"model":"bench","created_at":"2026-11-23T08:02:29Z","message":{"role":"assistant","content":""},"done":true,'
        b'"done_reason":"stop","total_duration":9000000,"load_duration":1000000,"prompt_eval_count":10,"prompt_eval_duration":1000000,'
        b'"eval_count":100,"eval_duration":7000000}\n',
    ),
    "openai-chat": Wire(b"/v1/chat/completions", b"text/event-stream", _openai, b"data: [DONE]\n\n"),
}


def records(wire: Wire, streams: int, tokens: int, rate: float) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """What the relay saw, in order: (kind, connection, t_ns, offset, lag_ns, data)."""
    chance = random.Random(1)
    body = b'{"model":"bench","stream":true,"messages":[{"role":"user","content":"go"}]}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nUser-Agent: bench/1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % wire.content_type
    now = 10**12
    for c in range(streams):
        yield Kind.OPENED, c, now, 0, 0, b"127.0.0.1:1"
        yield Kind.CONNECTED, c, now, 0, 0, b""
        yield Kind.CLIENT_DATA, c, now, 0, 0, head % (wire.target, len(body)) + body
    offsets = [0] * streams
    for i in range(tokens + 1):
        for c in range(streams):
            now += int(1e9 / rate / streams)
            record = wire.token(i, " " + chance.choice(WORDS)) if i < tokens else wire.last
            data = b"%x\r\n%s\r\n" % (len(record), record)
            data = answer + data if i == 0 else data + b"0\r\n\r\n" if i == tokens else data
            yield Kind.UPSTREAM_DATA, c, now + chance.randrange(50_000), offsets[c], int(chance.lognormvariate(10.4, 0.5)), data
            offsets[c] += len(data)
    for c in range(streams):
        yield Kind.CLOSED, c, now, 0, 0, b""


class Clock:
    """As much of a loop as the tap asks for: the flush that it wants 25 ms from now."""

    def __init__(self) -> None:
        self.due: Callable[[], None] | None = None

    def call_later(self, _: float, flush: Callable[[], None]) -> None:
        self.due = flush


class Pipe:
    """Takes all there is."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: memoryview) -> int:
        self.sent.append(bytes(data))
        return len(data)


class NoTap:
    """What calling costs, and this program."""

    failures = 0

    def add(self, kind: int, connection: int, t_ns: int, offset: int, lag_ns: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


def batches(seen: list[tuple[int, int, int, int, int, bytes]], *, pack: bool = True) -> list[bytes]:
    """As the relay's tap sends them: what 25 ms bring, or 64 KiB."""
    clock, pipe = Clock(), Pipe()
    tap = Tap(clock, pipe, 1) if pack else NoTap()  # type: ignore[arg-type]
    due_ns = None
    for record in seen:
        if due_ns is not None and record[2] >= due_ns and clock.due is not None:
            flush, clock.due, due_ns = clock.due, None, None
            flush()
        tap.add(*record)
        if due_ns is None and clock.due is not None:
            due_ns = record[2] + int(FLUSH_S * 1e9)
    tap.flush()
    assert not tap.failures
    return pipe.sent


class Parts:
    """The observer's parts as wiring joins them, as many as the stage has."""

    def __init__(self, *, detectors: bool, sinks: bool | str, db: Path | None) -> None:
        self.suite = Suite()
        self.across = Across(self.suite, lambda finding: self.fanout.found(finding), lambda _: None)
        self.sessions = Sessions(key=b"k" * 32, new_id=lambda _: new_id(time.time_ns()), excerpts=True)
        self.writer = None if db is None else Writer(db)
        chosen: list[Sink] = []
        if sinks == "ring":
            chosen.append(Ring())
        elif sinks:
            chosen += [self.sessions, self.across, Busy(lambda _: 4096, lambda: None), Metrics(), Ring()]
        if self.writer is not None:
            self.writer.start()
            chosen.append(self.writer)
        if sinks is True:
            chosen.append(Live())
        self.fanout = Fanout(chosen)
        self.troubles: list[str] = []
        make = self._detectors if detectors else (lambda _: [])
        self.observer = Observer(
            lambda head, connection, _: Exchange(
                head, self.fanout, connection=connection, trouble=self.troubles.append, detectors=make, window_of=lambda _: 4096
            )
        )
        self.reader = Reader()

    def _detectors(self, opened: Opened) -> list[Detector]:
        found = self.suite.detectors_for(opened, window_tokens=4096, surroundings=self.across.beside(opened.id))
        watch = self.sessions.watch(opened.id)
        return found if watch is None else [*found, watch]

    def take(self, packed: list[bytes]) -> None:
        for piece in packed:
            for batch in self.reader.feed(piece):
                self.observer.take(batch)

    def end(self) -> None:
        assert not self.troubles, self.troubles
        assert not self.observer.troubles, self.observer.troubles
        assert not self.fanout.failures, self.fanout.failures
        if self.writer is not None:
            assert self.writer.stop(60)


def unpack(packed: list[bytes]) -> None:
    reader = Reader()
    for piece in packed:
        for batch in reader.feed(piece):
            for _ in batch.records():
                pass


def http(packed: list[bytes]) -> None:
    _decode(packed, None)


def decode(packed: list[bytes], wire: Wire) -> None:
    route, kind = route_of("POST", wire.target), wire.content_type.decode()
    _decode(packed, lambda: decoder_for(route, streamed=True, status=200, content_type=kind))


def _decode(packed: list[bytes], decoder: Callable[[], Decoder] | None) -> None:
    """As the observer reads: the whole chunks that a batch holds of a connection are decoded together."""
    reader = Reader()
    connections: dict[int, HttpConnection] = {}
    decoders: dict[int, Decoder] = {}
    for piece in packed:
        for batch in reader.feed(piece):
            waiting: dict[int, tuple[list[bytes], list[Nanoseconds]]] = {}
            for kind, c, t_ns, _, _, data in batch.records():
                if kind == Kind.CLIENT_DATA:
                    connections[c] = HttpConnection()
                    if decoder is not None:
                        decoders[c] = decoder()
                    connections[c].client(data, Nanoseconds(t_ns))
                elif kind == Kind.UPSTREAM_DATA:
                    body = connections[c].chunk(data)
                    if body is not None:
                        bodies, times = waiting.setdefault(c, ([], []))
                        bodies.append(body)
                        times.append(Nanoseconds(t_ns))
                        continue
                    for event in connections[c].upstream(data, Nanoseconds(t_ns)):
                        if type(event) is ResponseBody and c in decoders:
                            decoders[c].feed(event.data, event.t_ns)
            for c, (bodies, times) in waiting.items() if decoder is not None else ():
                if decoders[c].deltas(TextDelta, bodies, times) is None:
                    for body, at in zip(bodies, times, strict=True):
                        decoders[c].feed(body, at)


def observed(packed: list[bytes], *, detectors: bool = False, sinks: bool = False, db: Path | None = None) -> None:
    parts = Parts(detectors=detectors, sinks=sinks, db=db)
    parts.take(packed)
    parts.end()


def spent(work: Callable[[], object], rounds: int, tokens: int) -> tuple[float, float]:
    """CPU µs per token: least and median."""
    times = []
    work()  # imports and caches
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        work()
        times.append((time.process_time() - began) / tokens * 1e6)
    return min(times), statistics.median(times)


def held(packed: list[bytes], streams: int, tokens: int, *, detectors: bool) -> tuple[float, float]:
    """Bytes held while all streams run, everything counted: per token of the first half, and per token of the third quarter."""
    parts = Parts(detectors=detectors, sinks=True, db=None)
    gc.collect()
    tracemalloc.start()
    half, more = len(packed) // 2, len(packed) * 3 // 4
    parts.take(packed[:half])
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    parts.take(packed[half:more])
    gc.collect()
    second = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(parts.observer.in_flight()) == streams
    return first / (streams * tokens / 2), (second - first) / (streams * tokens / 4)


def begun(wire: Wire, *, detectors: bool, sinks: bool | str) -> float:
    """KiB held per stream of which 20 tokens have come: what 800 streams hold beyond 200, so that what is there once is not in it."""
    held_kib = []
    for streams in (200, 800):
        seen = list(records(wire, streams, 60, 60.0))
        packed = batches(seen[: streams * (3 + 20)])
        del seen
        parts = Parts(detectors=detectors, sinks=sinks, db=None)
        gc.collect()
        tracemalloc.start()
        parts.take(packed)
        gc.collect()
        held_kib.append(tracemalloc.get_traced_memory()[0] / 1024)
        tracemalloc.stop()
        assert len(parts.observer.in_flight()) == streams
    return (held_kib[1] - held_kib[0]) / 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    n = given.streams * given.tokens
    print(f"{given.streams} streams × {given.tokens} tokens at {given.rate:.0f} tok/s: n = {n} tokens, {given.rounds} rounds")
    for name, wire in WIRES.items():
        seen = list(records(wire, given.streams, given.tokens, given.rate))
        packed = batches(seen)
        with tempfile.TemporaryDirectory() as directory:
            files = (Path(directory) / f"{i}.db" for i in range(10**6))
            stages: list[tuple[str, Callable[[], object]]] = [
                ("unpacking the pipe", lambda packed=packed: unpack(packed)),  # type: ignore[misc]
                ("+ HTTP", lambda packed=packed: http(packed)),  # type: ignore[misc]
                ("+ decoding", lambda packed=packed, wire=wire: decode(packed, wire)),  # type: ignore[misc]
                ("+ exchange and timeline", lambda packed=packed: observed(packed)),  # type: ignore[misc]
                ("+ sinks without store", lambda packed=packed: observed(packed, sinks=True)),  # type: ignore[misc]
                ("+ store", lambda packed=packed, files=files: observed(packed, sinks=True, db=next(files))),  # type: ignore[misc]
                (
                    "+ detectors",
                    lambda packed=packed, files=files: observed(packed, sinks=True, detectors=True, db=next(files)),  # type: ignore[misc]
                ),
            ]
            print(f"\n{name}: CPU µs per token{'':14}{'least':>8}{'median':>8}{'stage':>8}")
            whole = spent(lambda seen=seen: batches(seen), given.rounds, n)  # type: ignore[misc]
            rest = spent(lambda seen=seen: batches(seen, pack=False), given.rounds, n)  # type: ignore[misc]
            pack = (whole[0] - rest[0], whole[1] - rest[1])
            print(f"  {'packing, in the relay':34}{pack[0]:8.2f}{pack[1]:8.2f}{pack[0]:8.2f}")
            before = 0.0
            for stage, work in stages:
                if stage == "+ detectors":
                    print(f"  {'observation: copy to row':34}{before + pack[0]:8.2f}{'':16} (to be ≤ 5)")
                least, median = spent(work, given.rounds, n)
                print(f"  {stage:34}{least:8.2f}{median:8.2f}{least - before:8.2f}")
                before = least
            print(f"  {'in all, without sockets':34}{before + pack[0]:8.2f}")
        print(
            "  KiB held per stream of which 20 tokens have come (to be ≤ 12 for what the wire needs; detectors have 32 of their own)"
        )
        for what, detectors, sinks in (
            ("connection, exchange, timeline, ring", False, "ring"),
            ("… sessions, metrics, live feed", False, True),
            ("… all detectors", True, True),
        ):
            print(f"    {what:40}{begun(wire, detectors=detectors, sinks=sinks):8.1f}")
        print(
            f"  bytes held per token of a live stream: after {given.tokens // 2} tokens, what a stream costs once in it; each further one"
        )
        for detectors in (False, True):
            everything, more = held(packed, given.streams, given.tokens, detectors=detectors)
            print(f"    {'with all detectors' if detectors else 'without detectors':32}{everything:8.1f}{more:8.1f} (to be ≤ 24)")


if __name__ == "__main__":
    main()
