"""The Inspector's spike rule on streams whose truth is known: false flags without a stall, recall with one.

    python benchmarks/bench_spikes.py [--streams 200] [--seed 1]

Baselines in the same run: the origin's rule (median + 5.19 MAD of whole-ms gaps, else mean + 2 sigma) and mean + 2 sd.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable

from probes.inspector.spikes import bursts, flagged, legacy_threshold

N = 256
PACE = 16.5
Stream = Callable[[random.Random], list[float]]


def lognormal(spread: float, drift: float = 0.0) -> Stream:
    return lambda draw: [PACE * (1 + drift * i / N) * math.exp(draw.gauss(0, spread)) for i in range(N)]


def gamma(draw: random.Random) -> list[float]:
    return [12 + draw.gammavariate(1.5, 3.0) for _ in range(N)]


def student(draw: random.Random) -> list[float]:
    def t3() -> float:
        return draw.gauss(0, 1) / math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(3)) / 3)

    return [max(1.0, PACE * (1 + 0.04 * t3())) for _ in range(N)]


def coalesced(draw: random.Random) -> list[float]:
    gaps = lognormal(0.05)(draw)
    for place in range(N - 1):
        if draw.random() < 0.02:
            gaps[place + 1] += gaps[place]
            gaps[place], gaps[place + 1] = gaps[place + 1], 0.0
    return gaps


def whole_ms(draw: random.Random) -> list[float]:
    return [float(round(gap)) for gap in lognormal(0.03)(draw)]


def speculative(draw: random.Random) -> list[float]:
    gaps: list[float] = []
    while len(gaps) < N:
        gaps.append(PACE * 3 * math.exp(draw.gauss(0, 0.05)))
        gaps += [0.05] * min(4, int(draw.expovariate(0.5)))
    return gaps[:N]


STREAMS: tuple[tuple[str, Stream], ...] = (
    ("lognormal 5 %", lognormal(0.05)),
    ("lognormal 15 %", lognormal(0.15)),
    ("gamma tail", gamma),
    ("Student t3, 4 %", student),
    ("drift +25 %", lognormal(0.05, 0.25)),
    ("2 % coalesced reads", coalesced),
    ("whole-ms stamps", whole_ms),
    ("speculative bursts", speculative),
)


def two_sigma(gaps: list[float]) -> int:
    mean = sum(gaps) / len(gaps)
    sd = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    return sum(gap > mean + 2 * sd for gap in gaps)


def main(streams: int, seed: int) -> None:
    print(f"false flags per 1 000 gaps, {streams} streams of {N} gaps\n  {'':22} {'origin':>8} {'mean+2sd':>9} {'ours':>8}")
    for name, make in STREAMS:
        draw = random.Random(f"{seed}/{name}")
        origin = plain = ours = off = 0
        for _ in range(streams):
            gaps = make(draw)
            whole = [round(gap) for gap in gaps]
            origin += sum(gap > legacy_threshold(whole) for gap in whole)
            plain += two_sigma(gaps)
            ours += len(flagged(gaps))
            off += bursts(gaps) is not None
        per = 1000 / (streams * N)
        note = f"  (told as bursts in {off / streams:.0%})" if off else ""
        print(f"  {name:22} {origin * per:8.2f} {plain * per:9.2f} {ours * per:8.2f}{note}")
    print("\nrecall of one stall, by its length beyond the pace")
    for name, make in (STREAMS[0], STREAMS[1], STREAMS[4]):
        found = []
        for extra in (8, 12, 20, 33, 50, 100):
            draw = random.Random(f"{seed}/{name}/{extra}")
            hits = 0
            for _ in range(streams):
                gaps = make(draw)
                place = draw.randrange(3, N)
                gaps[place] += extra
                hits += any(index == place for index, _ in flagged(gaps))
            found.append(f"+{extra} ms {hits / streams:.0%}")
        print(f"  {name:22} {', '.join(found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.streams, arguments.seed)
