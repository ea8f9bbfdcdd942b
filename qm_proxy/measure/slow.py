"""Why an exchange was slow: one plain sentence with its evidence, or nothing when nothing was.

A cause is named when it took long enough for a person to notice and a fair share of the whole; of several, the longest.

    cause                           at least      and of the total
    upload of the request           0.5 s         20 %
    queue                           0.25 s        20 %
    load of the model               0.5 s         20 %
    prefill                         1 s           30 %
    client does not take            0.5 s         20 %
    stalls inside the stream        0.5 s         15 %     (time above the median of gaps > 250 ms and > 8 medians)
    long output, stalls left out    10 s          50 %
    wait that cannot be divided     2 s           30 %     (dialects without the server's durations)
    wait for a token, none came     2 s           30 %
    server's own remainder          1 s           30 %

Nothing is said about a cause that was not measured: what the numbers do not separate, the sentence does not either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qm_proxy.measure.phases import Phases

__all__ = ["STALL_LEAST_NS", "STALL_MEDIANS", "THRESHOLDS", "Seen", "Stalls", "slow_because"]

STALL_LEAST_NS = 250_000_000
STALL_MEDIANS = 8


class Threshold(NamedTuple):
    least_ns: int
    share: float


THRESHOLDS = {
    "upload": Threshold(500_000_000, 0.2),
    "queue": Threshold(250_000_000, 0.2),
    "load": Threshold(500_000_000, 0.2),
    "prefill": Threshold(1_000_000_000, 0.3),
    "client": Threshold(500_000_000, 0.2),
    "stalls": Threshold(500_000_000, 0.15),
    "output": Threshold(10_000_000_000, 0.5),
    "wait": Threshold(2_000_000_000, 0.3),
    "unanswered": Threshold(2_000_000_000, 0.3),
    "remainder": Threshold(1_000_000_000, 0.3),
}


class Stalls(NamedTuple):
    """Gaps far above the stream's own pace, and the time they took beyond it."""

    n: int
    cost_ns: int
    longest_ns: int
    longest_at: int  # index of the chunk that came late


@dataclass(slots=True)
class Seen:
    """What the sentence may speak of."""

    phases: Phases
    model: str | None = None
    others: int | None = None
    stalls: Stalls | None = None
    wait_ns: int | None = None  # request's last byte → first record; of a whole answer → the answer
    bytes_in: int = 0
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int = 0
    tokens_per_s: float | None = None
    whole: bool = False  # not streamed
    only_loaded: bool = False  # the answer to an empty request: the model is loaded, nothing was generated


def slow_because(seen: Seen) -> str | None:
    """The sentence for the cause that took longest, of those that count."""
    found: tuple[int, str] | None = None
    for cause, ns in _causes(seen).items():
        least = THRESHOLDS[cause]
        if ns >= least.least_ns and ns >= least.share * seen.phases.total_ns and (found is None or ns > found[0]):
            found = ns, cause
    return None if found is None else _SENTENCES[found[1]](seen, found[0])


def _causes(seen: Seen) -> dict[str, int]:
    phases = seen.phases
    stalls = seen.stalls.cost_ns if seen.stalls else 0
    causes = {
        "upload": phases.upload_ns,
        "client": phases.client_wait_ns - phases.upload_ns,
        "queue": phases.queue_ns or 0,
        "load": phases.load_ns or 0,
        "prefill": phases.prefill_ns or 0,
        "stalls": stalls,
        "output": (phases.decode_ns or 0) - stalls,
    }
    told = (phases.load_ns, phases.prefill_ns, phases.decode_ns, seen.wait_ns)
    if not seen.chunks and not seen.whole and told == (None,) * 4:
        causes["unanswered"] = phases.unexplained_ns
    elif phases.prefill_ns is None and phases.load_ns is None:
        causes["wait"] = min(phases.unexplained_ns, seen.wait_ns or 0)
    else:
        causes["remainder"] = phases.unexplained_ns
    return causes


def _of(ns: int, seen: Seen) -> str:
    return f"{_time(ns)} of {_time(seen.phases.total_ns)}"


def _time(ns: int) -> str:
    seconds = ns / 1e9
    if seconds < 1:
        return f"{ns / 1e6:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _size(n: int) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} kB"


def _upload(seen: Seen, ns: int) -> str:
    return f"The client took {_of(ns, seen)} to send its request of {_size(seen.bytes_in)}."


def _queue(seen: Seen, ns: int) -> str:
    waited = f"It waited {_of(ns, seen)} for a free slot"
    if seen.others:
        return f"{waited} behind {_count(seen.others, 'other request')} for {seen.model or 'the same model'}."
    if seen.others == 0:
        return f"{waited}, though no other request for {seen.model or 'the model'} was in flight through this proxy."
    return f"{waited}."


def _load(seen: Seen, ns: int) -> str:
    ready = f"Ollama took {_of(ns, seen)} to have {seen.model or 'the model'} ready"
    return f"{ready}: loading it, and waiting for what stood in the way."


def _prefill(seen: Seen, ns: int) -> str:
    if seen.input_tokens is None:
        return f"Prefill of the prompt took {_of(ns, seen)}."
    if seen.cached_tokens is not None:
        fresh = max(seen.input_tokens - seen.cached_tokens, 0)
        return (
            f"Prefill took {_of(ns, seen)}: {_count(fresh, 'new prompt token')} at {fresh / ns * 1e9:,.0f} per second"
            f" ({seen.cached_tokens:,} more came from the cache)."
        )
    rate = seen.input_tokens / ns * 1e9
    return f"Prefill took {_of(ns, seen)}: {_count(seen.input_tokens, 'prompt token')}, at most {rate:,.0f} per second."


def _client(seen: Seen, ns: int) -> str:
    return f"The client did not take the answer for {_of(ns, seen)}; the model was not the brake."


def _stalls(seen: Seen, ns: int) -> str:
    stalls = seen.stalls
    assert stalls is not None
    longest = f"{_time(stalls.longest_ns)} before chunk {stalls.longest_at + 1:,}"
    if stalls.n == 1:
        return f"The stream stalled once and lost {_of(ns, seen)}: {longest}."
    return f"The stream stalled {stalls.n:,} times and lost {_of(ns, seen)}; the longest was {longest}."


def _output(seen: Seen, ns: int) -> str:
    if seen.output_tokens is not None:
        amount = _count(seen.output_tokens, "token")
    elif seen.whole:
        amount = "the answer"
    else:
        amount = _count(seen.chunks, "chunk")
    pace = f" at {seen.tokens_per_s:.3g} per second" if seen.tokens_per_s else ""
    return f"Writing {amount}{pace} took {_of(ns, seen)}."


def _wait(seen: Seen, ns: int) -> str:
    if seen.only_loaded:
        return f"The request only loaded {seen.model or 'the model'}, which took {_of(ns, seen)}."
    until = "the whole answer came at once" if seen.whole else "the first token came"
    company = f" ({_count(seen.others, 'other request')} for the model in flight)" if seen.others else ""
    return f"{_of(ns, seen)} passed before {until}; this API does not tell queue, load and prefill apart{company}."


def _unanswered(seen: Seen, ns: int) -> str:
    return f"{_of(ns, seen)} passed, and no token came."


def _remainder(seen: Seen, ns: int) -> str:
    if seen.phases.prefill_ns is None and seen.phases.decode_ns is None:
        return f"{_of(ns, seen)} passed in the server once the model was ready; this route does not tell what on."
    return f"{_of(ns, seen)} are in none of the server's durations and in no wait for the client."


_SENTENCES = {
    "upload": _upload,
    "queue": _queue,
    "load": _load,
    "prefill": _prefill,
    "client": _client,
    "stalls": _stalls,
    "output": _output,
    "wait": _wait,
    "unanswered": _unanswered,
    "remainder": _remainder,
}
