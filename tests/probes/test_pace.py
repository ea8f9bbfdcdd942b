"""The pace of a plan: from answers, from an earlier result, assumed in words."""

from __future__ import annotations

import pytest

from probes.ask import Ask
from probes.inspector import inspect, plan_for
from probes.pace import Pace, pace_of, pace_of_result, spell
from probes.result import AuditSection, Result, Run, Rung, Target
from probes.runner import replay
from tests.probes.fakes import FakeModel


def asked(model: FakeModel, *lengths: int, output: int = 16):  # type: ignore[no-untyped-def]
    options = {"num_ctx": 16384, "num_predict": output}
    body = {"model": model.name, "raw": True, "stream": True, "options": options}
    return [model.answer(Ask(f"q{n}", "/api/generate", {**body, "prompt": f"{n} " + "word " * n})) for n in lengths]


def test_the_longest_prompts_say_how_fast_it_reads() -> None:
    model = FakeModel(prefill_fixed_ms=50, prefill_ms_per_token=2.0, token_ms=20, load_ms=2500)
    pace = pace_of(asked(model, 20, 3000))
    assert pace.prefill_per_s == pytest.approx(500, rel=0.05)  # the short one would say 200
    assert pace.decode_per_s == pytest.approx(50, rel=0.1)
    assert pace.load_s == pytest.approx(2.5, rel=0.01)


def test_nothing_known_is_assumed_in_words() -> None:
    assert pace_of([]) == Pace()
    assert Pace().words() == "assumed: 1000 prompt tokens/s, 60 output tokens/s; said again when measured"
    assert Pace(148.6, 7.25, 0.0).words(2) == "measured: 149 prompt tokens/s, 7.2 output tokens/s, 0 s a load"
    assert Pace(150, 60).seconds(3000, 120, 0) == pytest.approx(22)


def test_an_earlier_result_knows_it_by_its_inspector_or_its_longest_rung() -> None:
    model = FakeModel(prefill_ms_per_token=2.0, token_ms=20)
    result = Result(
        tool={},
        run=Run(id="x", kind="inspect", started_at="2026-01-01T00:00:00Z", seed=1),
        target=Target(endpoint="http://x", name="m"),
    )
    assert pace_of_result(result, "there") is None
    result.audit = AuditSection(verdict="maintained", sentence="")
    result.audit.rungs = [
        Rung(target_tokens=n, measured_tokens=n, n=4, correct=4, verdict="ok", seconds=4 * n / 100) for n in (512, 4096)
    ]
    found = pace_of_result(result, "there")
    assert found is not None
    assert found.prefill_per_s == pytest.approx(100)
    result.inspector = replay(inspect(plan_for(model.name, "http://x", seed=1, quick=True)), model.answer)
    found = pace_of_result(result, "there")
    assert found is not None
    assert found.prefill_per_s == pytest.approx(500, rel=0.02)
    assert found.words().startswith("there: 500 prompt tokens/s, 50 output")


@pytest.mark.parametrize(("seconds", "words"), [(71.4, "71 s"), (438, "7 min"), (9000, "2.5 h")])
def test_times_are_spelled_for_one_who_waits(seconds: float, words: str) -> None:
    assert spell(seconds) == words
