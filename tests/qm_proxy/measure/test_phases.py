from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import Nanoseconds, Usage
from qm_proxy.measure.phases import Observed, Phases, divide

MS = 1_000_000
DURATION = st.one_of(st.none(), st.integers(0, 10**12), st.integers(-(10**9), 10**9))
SPAN = st.integers(-(10**9), 10**12)
USAGE = st.builds(Usage, st.just(Nanoseconds(0)), total_ns=DURATION, load_ns=DURATION, prefill_ns=DURATION, decode_ns=DURATION)


def total(phases: Phases) -> int:
    rows = (phases.queue_ns, phases.load_ns, phases.prefill_ns, phases.decode_ns, phases.client_wait_ns, phases.unexplained_ns)
    return sum(row or 0 for row in rows)


def account(total_ms: float, load: float, prefill: float, decode: float) -> Usage:
    return Usage(
        Nanoseconds(0),
        total_ns=int(total_ms * MS),
        load_ns=int(load * MS),
        prefill_ns=int(prefill * MS),
        decode_ns=int(decode * MS),
    )


@given(
    st.builds(Observed, SPAN, SPAN, SPAN, SPAN, DURATION, DURATION, st.sampled_from([None, 0, 3])), st.one_of(st.none(), USAGE)
)
def test_rows_add_up_to_the_total_and_none_is_negative(observed: Observed, server: Usage | None) -> None:
    phases = divide(observed, server)
    assert total(phases) == phases.total_ns == max(observed.total_ns, 0)
    assert all((getattr(phases, f.name) or 0) >= 0 for f in fields(phases))
    assert phases.upload_ns <= phases.client_wait_ns


def test_a_native_stream_is_divided_by_the_servers_durations() -> None:
    found = divide(Observed(1000 * MS, wait_ns=603 * MS, span_ns=380 * MS), account(990, 100, 490, 385))
    assert found == Phases(1000 * MS, 0, 100 * MS, 490 * MS, 385 * MS, 0, 25 * MS)


def test_a_queued_stream_shows_the_wait_that_no_field_has() -> None:
    """The second of three requests on one slot, as captured: load 4.6 ms, remainder 1446.8 ms."""
    server = account(2160, 4.6, 8.6, 700)
    found = divide(Observed(2170 * MS, wait_ns=1466 * MS, span_ns=700 * MS, others=1), server)
    assert found.queue_ns == pytest.approx(1446.8 * MS, abs=MS)
    assert total(found) == 2170 * MS


@pytest.mark.parametrize(("left_over", "others", "queue"), [(40, None, 0), (40, 0, 0), (40, 1, 40), (4, 1, 0), (60, None, 60)])
def test_a_small_remainder_is_no_queue_unless_others_were_there(left_over: int, others: int | None, queue: int) -> None:
    server = account(500 + left_over, 100, 200, 200)
    found = divide(Observed(600 * MS, wait_ns=(300 + left_over) * MS, span_ns=200 * MS, others=others), server)
    assert found.queue_ns == queue * MS


def test_back_pressure_inside_the_stream_is_client_wait_and_no_queue() -> None:
    """The client stops reading for 2 s: the server's total grows, its durations do not."""
    found = divide(Observed(3000 * MS, wait_ns=310 * MS, span_ns=500 * MS, paused_ns=2000 * MS), account(2900, 10, 290, 600))
    assert found.queue_ns == 0
    assert found.client_wait_ns == 2000 * MS
    assert found.unexplained_ns == 100 * MS


def test_what_the_server_computed_while_the_client_paused_is_the_servers() -> None:
    found = divide(Observed(1000 * MS, wait_ns=100 * MS, span_ns=100 * MS, paused_ns=700 * MS), account(950, 0, 90, 850))
    assert (found.decode_ns, found.client_wait_ns, found.excess_ns) == (850 * MS, 60 * MS, 0)


def test_the_upload_is_taken_out_of_the_load() -> None:
    found = divide(
        Observed(3000 * MS, upload_ns=2000 * MS, body_ns=1990 * MS, wait_ns=500 * MS, span_ns=480 * MS),
        account(2985, 2000, 480, 490),
    )
    assert (found.client_wait_ns, found.upload_ns, found.load_ns) == (2000 * MS, 2000 * MS, 10 * MS)
    assert found.queue_ns == 0


def test_a_server_whose_load_does_not_hold_the_upload_keeps_it() -> None:
    found = divide(Observed(3000 * MS, upload_ns=2000 * MS, body_ns=1990 * MS, wait_ns=500 * MS), account(995, 20, 480, 490))
    assert found.load_ns == 20 * MS


def test_a_server_that_claims_more_than_passed_is_cut_and_told() -> None:
    found = divide(Observed(1000 * MS, wait_ns=400 * MS), account(5000, 300, 600, 900))
    assert (found.load_ns, found.prefill_ns, found.decode_ns, found.unexplained_ns) == (300 * MS, 600 * MS, 100 * MS, 0)
    assert found.excess_ns == 800 * MS
    assert divide(Observed(1000 * MS), account(1001, 0, 500, 501)).excess_ns == 0


def test_without_durations_only_decode_and_client_wait_are_known() -> None:
    found = divide(
        Observed(1000 * MS, upload_ns=MS, wait_ns=600 * MS, span_ns=300 * MS, paused_ns=50 * MS), Usage(Nanoseconds(0), 7, 9)
    )
    assert (found.queue_ns, found.load_ns, found.prefill_ns, found.decode_ns) == (None, None, None, 300 * MS)
    assert (found.client_wait_ns, found.unexplained_ns) == (51 * MS, 649 * MS)


def test_a_whole_answer_without_durations_is_unexplained() -> None:
    found = divide(Observed(1000 * MS))
    assert (found.decode_ns, found.client_wait_ns, found.unexplained_ns) == (None, 0, 1000 * MS)


def test_the_remainder_of_embeddings_is_computing_and_no_queue() -> None:
    found = divide(Observed(900 * MS), Usage(Nanoseconds(0), 12, total_ns=890 * MS, load_ns=100 * MS))
    assert (found.queue_ns, found.load_ns, found.unexplained_ns) == (None, 100 * MS, 800 * MS)
