"""The origin's numbers by its own definitions: the ladder of the post to a token, N over the span, its spikes."""

from __future__ import annotations

import pytest

from probes.ask import Answer, Ask
from probes.audit.solver import solve
from probes.quantamind import compat_audit, legacy_stream
from probes.runner import replay
from probes.survey import survey
from qm_proxy.events import Nanoseconds, TextDelta
from tests.probes.fakes import FakeModel


def ladder(model: FakeModel):  # type: ignore[no-untyped-def]
    found = replay(survey(model.name, "http://x"), model.answer)

    def answer(ask: Ask) -> Answer:
        if ask.path == "/api/generate" and ask.body and "system" in ask.body:
            text = f"{ask.body['system']}{ask.body['prompt']}"
            key = solve(text)
            assert key is not None
            return model.answer(Ask(ask.key, ask.path, {**ask.body, "prompt": text}))
        return model.answer(ask)

    return replay(compat_audit(model.name, 5, found), answer)


def test_the_posts_ladder_comes_out_of_its_token_law() -> None:
    legacy = ladder(FakeModel(per_token=5.62))
    assert [round(rung.tokens) for rung in legacy.rungs] == pytest.approx([829, 2134, 3903, 6072, 7902], abs=3)
    assert [rung.sweeps for rung in legacy.rungs] == [1, 2, 2, 2, 1]
    assert all(rung.passed for rung in legacy.rungs)
    assert legacy.maintained == 8000
    assert legacy.collapsed_at is None


def test_of_a_sweep_that_is_thrown_away_one_position_is_asked() -> None:
    model = FakeModel(per_token=5.62)
    ladder(model)
    asked = [ask.key.split("/")[1:3] for ask in model.asked if ask.key.startswith("compat/")]
    counts = {"/".join(key): asked.count(key) for key in asked}
    for rung in (2048, 4096, 6144):
        assert (counts[f"{rung}/0"], counts[f"{rung}/1"]) == (1, 3)
    assert counts["8192/0"] == 3


def test_a_model_that_fails_from_the_start_is_broken_and_one_that_falls_collapses() -> None:
    assert ladder(FakeModel(accuracy=lambda n: 0.0, wrong="empty")).broken
    fallen = ladder(FakeModel(per_token=5.62, accuracy=lambda n: 1.0 if n < 3000 else 0.0, wrong="empty"))
    assert fallen.collapsed_at == pytest.approx(3903, abs=5)


def stream(gaps_ms: list[float], server_ms: list[float] | None = None) -> Answer:
    at = stamp = 10**12
    events: list[TextDelta] = []
    for gap, made in zip([100.0, *gaps_ms], [100.0, *(server_ms or gaps_ms)], strict=True):
        at += int(gap * 1e6)
        stamp += int(made * 1e6)
        events.append(TextDelta(Nanoseconds(at), "a", stamp if server_ms is not None else None))
    return Answer("k", started_ns=10**12, ended_ns=at, status=200, events=list(events))


def test_the_posts_stream_reads_as_in_the_post() -> None:
    gaps = [16.1645] * 313
    for place in (60, 162, 254):
        gaps[place] += 35
    found = legacy_stream(stream(gaps))
    assert found is not None
    assert found.tokens == 314
    assert found.mean_gap_ms == pytest.approx(16.5, abs=0.05)
    assert found.rate == pytest.approx(60.8, abs=0.05)
    assert found.spikes == 3


def test_late_reads_are_flagged_by_its_rule_and_told_from_stalls_of_the_model() -> None:
    made = [16.1645] * 313
    for place in (60, 162, 254):
        made[place] += 35
    read = list(made)
    read[100], read[101], read[102], read[103] = 16.1645 * 4, 0.0, 0.0, 0.0  # we were late; the server's stamps show nothing
    handed = list(made)
    handed[200], handed[201], handed[202] = 16.1645 * 3, 0.0, 0.0  # the server handed over late, and made up for it at once
    for gaps, stamps in ((read, made), (handed, handed)):
        found = legacy_stream(stream(gaps, stamps))
        assert found is not None
        assert (found.flagged, found.spikes) == (4, 3)


def test_a_pause_of_the_probe_is_no_spike_even_without_stamps() -> None:
    gaps = [16.1645] * 313
    gaps[100] = 90
    late = stream(gaps)
    read = late.chunks[101].t_ns
    late.pauses = [(read - 74_000_000, read)]
    found = legacy_stream(late)
    assert found is not None
    assert (found.flagged, found.spikes) == (1, 0)


def test_one_chunk_or_none_is_no_stream() -> None:
    assert legacy_stream(stream([])) is None
    assert legacy_stream(Answer("k")) is None
