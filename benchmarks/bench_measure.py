"""What measuring costs: ns per token of an exchange, bytes per token of a series, bytes held by a live stream.

    python benchmarks/bench_measure.py [--tokens 2000] [--rounds 15]

Streams are made here, with gaps of lognormal jitter and lags as loopback shows them. Times are CPU time of this thread, the least of
the rounds (other work only adds), beside the decoder alone on the same bytes in the same round. `own` is what Exchange and Timeline,
and the calls of `--watchers` idle detectors, add to the decoder, the final Record included.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import NamedTuple

from qm_proxy.events import Event, Nanoseconds
from qm_proxy.exchange import Exchange
from qm_proxy.findings import Finding
from qm_proxy.measure.series import Arrivals, Lags, pack, pack_lags, unpack
from qm_proxy.record import Opened, Progress, Record
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import RequestBody, RequestEnd, RequestHead, ResponseBody, ResponseEnd, ResponseHead
from qm_proxy.wire.routes import route_of

START = 10**12


class Silent:
    """A sink that costs nothing."""

    def opened(self, opened: Opened) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def found(self, finding: Finding) -> None: ...
    def closed(self, record: Record) -> None: ...


class Idle:
    """A detector that costs its call."""

    def see(self, event: Event) -> Iterable[Finding]:
        return ()


class Stream(NamedTuple):
    name: str
    target: bytes
    content_type: bytes
    record: Callable[[int], bytes]
    last: bytes


def _native(i: int) -> bytes:
    stamp = f"2026-11-23T08:02:20.{i * 16_666_667 % 10**9:09d}Z"
    message = {"role": "assistant", "content": f" tok{i}"}
    return (
        json.dumps({"model": "m", "created_at": stamp, "message": message, "done": False}, separators=(",", ":")).encode() + b"\n"
    )


def _openai(i: int) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": f" tok{i}"}, "finish_reason": None}
    record = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(record, separators=(",", ":")).encode() + b"\n\n"


STREAMS = (
    Stream("native", b"/api/chat", b"application/x-ndjson", _native, b'{"done":true,"done_reason":"stop"}\n'),
    Stream("openai", b"/v1/chat/completions", b"text/event-stream", _openai, b"data: [DONE]\n\n"),
)


def times(n: int, rate: float, jitter: float, seed: int = 1) -> tuple[list[int], list[int]]:
    """Arrival stamps and lags of a stream: the first token after 400 ms, lags about 33 µs."""
    chance = random.Random(seed)
    now, arrivals = START + 400_000_000, []
    for _ in range(n):
        arrivals.append(now)
        now += max(int(1e9 / rate * chance.lognormvariate(-jitter * jitter / 2, jitter)), 1000)
    return arrivals, [int(chance.lognormvariate(10.4, 0.5)) for _ in range(n)]


def begun(stream: Stream, watchers: int) -> Exchange:
    t = Nanoseconds(START)
    exchange = Exchange(
        RequestHead(t, t, 0, "POST", stream.target, ()), Silent(), detectors=lambda _: [Idle() for _ in range(watchers)]
    )
    exchange.see(RequestBody(t, 0, b'{"model":"m","stream":true}'))
    exchange.see(RequestEnd(t, 0))
    exchange.see(ResponseHead(t, 0, 200, ((b"content-type", stream.content_type),)))
    return exchange


def cost(stream: Stream, tokens: int, rate: float, watchers: int, rounds: int) -> tuple[float, float, float]:
    """ns per token: the decoder alone, the exchange while it runs (decoder included), its end."""
    arrivals, lags = times(tokens, rate, 0.1)
    reads = [
        (ResponseBody(Nanoseconds(t), 0, stream.record(i)), lag) for i, (t, lag) in enumerate(zip(arrivals, lags, strict=True))
    ]
    least = [float("inf")] * 3
    for _ in range(rounds):
        decoder = decoder_for(
            route_of("POST", stream.target), streamed=True, status=200, content_type=stream.content_type.decode()
        )
        exchange = begun(stream, watchers)
        t0 = time.thread_time()
        for read, _ in reads:
            decoder.feed(read.data, read.t_ns)
        t1 = time.thread_time()
        see, written = exchange.see, exchange.written
        for read, lag in reads:
            written(read.t_ns, lag)
            see(read)
        t2 = time.thread_time()
        see(ResponseBody(reads[-1][0].t_ns, 0, stream.last))
        see(ResponseEnd(reads[-1][0].t_ns, 0, True, "framing"))
        t3 = time.thread_time()
        assert exchange.record is not None
        assert exchange.record.chunks == tokens
        least = [min(a, b) for a, b in zip(least, (t1 - t0, t2 - t1, t3 - t2), strict=True)]
    decode, run, end = (seconds / tokens * 1e9 for seconds in least)
    return decode, run, end


def held(stream: Stream, tokens: int) -> float:
    """Bytes per token that a live exchange holds, everything counted, by tracemalloc."""
    arrivals, lags = times(tokens, 60, 0.1)
    tracemalloc.start()
    exchange = begun(stream, 0)
    before = tracemalloc.get_traced_memory()[0]
    for i, (t, lag) in enumerate(zip(arrivals, lags, strict=True)):
        exchange.written(Nanoseconds(t), lag)
        exchange.see(ResponseBody(Nanoseconds(t), 0, stream.record(i)))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--watchers", type=int, default=0)
    given = parser.parse_args()

    print(f"ns per token, {given.tokens} tokens a stream, {given.watchers} idle detectors, least of {given.rounds} rounds")
    print(f"{'':8} {'tok/s':>6} {'decoder':>8} {'running':>8} {'end':>6} {'own':>6}")
    for stream in STREAMS:
        for rate in (60, 200):
            decode, run, end = cost(stream, given.tokens, rate, given.watchers, given.rounds)
            print(f"{stream.name:8} {rate:6} {decode:8.0f} {run:8.0f} {end:6.0f} {run + end - decode:6.0f}")

    print("\nbytes per token of the stored series (20 µs steps)")
    print(f"{'tok/s':>6} {'jitter':>7} {'tokens':>7} {'arrival':>8} {'written':>8}")
    for rate in (5, 20, 60, 200, 1000):
        for jitter in (0.05, 0.15, 0.4):
            for n in (100, 1000, 10_000):
                arrivals, lags = times(n, rate, jitter)
                sizes = len(pack(arrivals, zero_ns=START)) / n, len(pack_lags(lags)) / n
                print(f"{rate:6} {jitter:7.0%} {n:7} {sizes[0]:8.2f} {sizes[1]:8.2f}")

    arrivals, lags = times(100_000, 60, 0.1)
    packed, waited = Arrivals(START), Lags()
    t0 = time.thread_time()
    for at in range(0, len(arrivals), 256):
        packed.extend(arrivals[at : at + 256])
        waited.extend(lags[at : at + 256])
    t1 = time.thread_time()
    blob = packed.blob()
    waited.blob()
    t2 = time.thread_time()
    unpack(blob)
    t3 = time.thread_time()
    per = 1e9 / len(arrivals)
    print(f"\nseries, ns per token: packing {(t1 - t0) * per:.0f}, blobs {(t2 - t1) * per:.0f}, unpacking {(t3 - t2) * per:.0f}")

    print("\nbytes held per token of a live stream")
    for n in (300, 1000, 10_000, 50_000):
        print(f"{n:7} tokens: {held(STREAMS[0], n):6.1f}")


if __name__ == "__main__":
    main()
