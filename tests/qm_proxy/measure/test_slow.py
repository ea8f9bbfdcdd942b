from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.measure.phases import Phases
from qm_proxy.measure.slow import THRESHOLDS, Seen, Stalls, slow_because

S = 1_000_000_000


def rows(total: float, **seconds: float) -> Phases:
    return Phases(int(total * S), **{f"{name}_ns": int(value * S) for name, value in seconds.items()})


def test_nothing_is_said_when_nothing_was_slow() -> None:
    assert slow_because(Seen(rows(0.5, queue=0.02, load=0.1, prefill=0.2, decode=0.15, unexplained=0.03))) is None
    assert slow_because(Seen(rows(0))) is None


CASES = {
    "It waited 1.45 s of 2.16 s for a free slot behind 1 other request for tiny.": Seen(
        rows(2.16, queue=1.447, load=0.0046, prefill=0.0086, decode=0.7), model="tiny", others=1
    ),
    "It waited 1.45 s of 2.16 s for a free slot behind 2 other requests for the same model.": Seen(
        rows(2.16, queue=1.447, load=0.0046, prefill=0.0086, decode=0.7), others=2
    ),
    "It waited 1.45 s of 2.16 s for a free slot, though no other request for tiny was in flight through this proxy.": Seen(
        rows(2.16, queue=1.447, load=0.0046, prefill=0.0086, decode=0.7), model="tiny", others=0
    ),
    "It waited 1.45 s of 2.16 s for a free slot.": Seen(rows(2.16, queue=1.447, load=0.01, prefill=0.01, decode=0.6)),
    "Ollama took 2.92 s of 5 s to have llama3 ready: loading it, and waiting for what stood in the way.": Seen(
        rows(5, load=2.924, prefill=0.8, decode=1.2), model="llama3"
    ),
    "Prefill took 3.2 s of 4.1 s: 9,600 prompt tokens, at most 3,000 per second.": Seen(
        rows(4.1, load=0.01, prefill=3.2, decode=0.8), input_tokens=9600
    ),
    "Prefill took 3.2 s of 4.1 s: 9,600 new prompt tokens at 3,000 per second (2,400 more came from the cache).": Seen(
        rows(4.1, load=0.01, prefill=3.2, decode=0.8), input_tokens=12000, cached_tokens=2400
    ),
    "Prefill of the prompt took 3.2 s of 4.1 s.": Seen(rows(4.1, load=0.01, prefill=3.2, decode=0.8)),
    "The client took 12 s of 13 s to send its request of 104.9 MB.": Seen(
        rows(13, load=0.01, prefill=0.2, decode=0.8, client_wait=12, upload=12), bytes_in=104_857_600
    ),
    "The client did not take the answer for 3 s of 4 s; the model was not the brake.": Seen(
        rows(4, load=0.01, prefill=0.2, decode=0.8, client_wait=3)
    ),
    "The stream stalled 3 times and lost 2.4 s of 6.1 s; the longest was 1.2 s before chunk 513.": Seen(
        rows(6.1, load=0.01, prefill=0.2, decode=5.8), stalls=Stalls(3, int(2.4 * S), int(1.2 * S), 512)
    ),
    "The stream stalled once and lost 900 ms of 2 s: 917 ms before chunk 8.": Seen(
        rows(2, load=0.01, prefill=0.2, decode=1.7), stalls=Stalls(1, int(0.9 * S), int(0.917 * S), 7)
    ),
    "Writing 1,830 tokens at 60.8 per second took 30.1 s of 30.5 s.": Seen(
        rows(30.5, load=0.01, prefill=0.2, decode=30.1), output_tokens=1830, tokens_per_s=60.8
    ),
    "Writing 300 chunks at 2 per second took 150 s of 160 s.": Seen(
        rows(160, decode=150, unexplained=10), chunks=300, tokens_per_s=2.0
    ),
    "3.2 s of 4 s passed before the first token came; this API does not tell queue, load and prefill apart"
    " (2 other requests for the model in flight).": Seen(rows(4, decode=0.8, unexplained=3.2), others=2, wait_ns=int(3.2 * S)),
    "3.9 s of 4 s passed before the whole answer came at once; this API does not tell queue, load and prefill apart.": Seen(
        rows(4, unexplained=4), wait_ns=int(3.9 * S), whole=True
    ),
    "The request only loaded llama3, which took 2.9 s of 3 s.": Seen(
        rows(3, unexplained=3), model="llama3", wait_ns=int(2.9 * S), only_loaded=True, whole=True
    ),
    "1.2 s of 3 s are in none of the server's durations and in no wait for the client.": Seen(
        rows(3, load=0.2, prefill=0.9, decode=0.7, unexplained=1.2)
    ),
    "2.1 s of 2.2 s passed in the server once the model was ready; this route does not tell what on.": Seen(
        rows(2.2, load=0.1, unexplained=2.1), whole=True
    ),
}


@pytest.mark.parametrize("sentence", CASES, ids=lambda text: text[:40])
def test_says_the_cause_with_its_evidence(sentence: str) -> None:
    assert slow_because(CASES[sentence]) == sentence


def test_writing_a_whole_answer_names_the_answer() -> None:
    found = slow_because(Seen(rows(20, load=0.01, prefill=0.2, decode=19), whole=True))
    assert found == "Writing the answer took 19 s of 20 s."


def test_a_token_that_never_came_is_no_nothing() -> None:
    """A slot that hangs until the client gives up: nothing came that could be measured."""
    assert slow_because(Seen(rows(29, unexplained=28.9))) == "28.9 s of 29 s passed, and no token came."
    assert slow_because(Seen(rows(29, unexplained=28.9), whole=True)) is None
    assert slow_because(Seen(rows(1.5, unexplained=1.4))) is None


def test_the_longest_of_several_causes_is_named() -> None:
    both = Seen(rows(10, queue=3, load=6, prefill=0.5, decode=0.5), model="m")
    assert (slow_because(both) or "").startswith("Ollama took 6 s")
    assert (slow_because(replace(both, phases=rows(10, queue=6, load=3, prefill=0.5, decode=0.5))) or "").startswith(
        "It waited 6 s"
    )


@pytest.mark.parametrize("cause", ["queue", "load", "prefill"])
def test_a_cause_counts_from_its_thresholds_on(cause: str) -> None:
    least = THRESHOLDS[cause]
    share_total = int(least.least_ns / least.share)
    other = {"load_ns": 1, "prefill_ns": 1} | {f"{cause}_ns": least.least_ns}
    assert slow_because(Seen(Phases(share_total, **other))) is not None
    assert slow_because(Seen(Phases(share_total + 100, **other))) is None
    assert slow_because(Seen(Phases(share_total, **(other | {f"{cause}_ns": least.least_ns - 1})))) is None


@given(
    st.builds(
        Phases,
        *[st.integers(0, 10**12)],
        *[st.one_of(st.none(), st.integers(0, 10**12))] * 4,
        *[st.integers(0, 10**12)] * 3,
    ),
    st.one_of(st.none(), st.builds(Stalls, *[st.integers(0, 10**12)] * 4)),
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.booleans(),
)
def test_it_is_one_sentence_whatever_the_numbers(phases: Phases, stalls: Stalls | None, tokens: int | None, whole: bool) -> None:
    seen = Seen(
        phases, stalls=stalls, input_tokens=tokens, cached_tokens=tokens, output_tokens=tokens, whole=whole, wait_ns=tokens
    )
    found = slow_because(seen)
    assert found is None or (found.endswith(".") and "\n" not in found and len(found) < 250)
