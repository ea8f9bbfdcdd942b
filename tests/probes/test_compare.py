"""Known differences are told with an interval that holds them; equal models are told apart only by chance."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from probes.commands import Options, Session, audit_context, inspect_model
from probes.compare import compare, incomparable
from probes.result import Result
from qm_proxy.errors import InvalidMeasurement
from tests.probes.fakes import FakeModel


def measured(model: FakeModel, **changes: Any) -> Result:
    opts = Options(model.name, hardware="cpu:64GiB", **{"seed": 7, "quick": True, "max_tokens": 4096, "paired": 30, **changes})
    inspected = asyncio.run(inspect_model(opts, Session("inspect", opts, model.ask)))
    audited = asyncio.run(audit_context(opts, Session("audit", opts, model.ask)))
    inspected.audit = audited.audit
    inspected.target.thinking = audited.target.thinking
    return inspected


def test_equal_models_show_no_difference_and_say_what_could_have_been_seen() -> None:
    made = compare(measured(FakeModel(seed=1)), measured(FakeModel(seed=2)))
    assert (made.worse, made.better, made.exit_code) == ([], [], 0)
    accuracy = next(metric for metric in made.metrics if metric.name == "accuracy, all lengths")
    assert accuracy.verdict == "no difference detected"
    assert "could have seen ≥" in accuracy.words
    assert "no difference in context retention detected" in made.sentence.lower()


def test_a_known_loss_of_context_and_gain_of_memory_answers_the_posts_question() -> None:
    a = measured(FakeModel())
    b = measured(FakeModel(accuracy=lambda n: 1.0 if n < 3000 else 0.3, intercept=2_600_000_000, token_ms=9.4))
    made = compare(a, b)
    lost = next(metric for metric in made.metrics if metric.name == "accuracy at 4096 tokens")
    assert lost.verdict == "B worse"
    assert lost.difference is not None
    assert lost.difference.ci is not None
    low, high = lost.difference.ci
    assert low is not None
    assert high is not None
    assert low <= -0.7 <= high
    assert made.sentence.startswith("Yes, B trades context retention for headroom")
    assert made.exit_code == 1
    faster = next(metric for metric in made.metrics if metric.name == "decode, ms per token")
    assert faster.verdict == "B better"
    assert faster.difference is not None
    assert faster.difference.value == pytest.approx(9.4 / 16 - 1, abs=0.02)


def test_less_memory_and_the_same_context() -> None:
    made = compare(measured(FakeModel()), measured(FakeModel(intercept=2_600_000_000)))
    assert made.sentence.startswith("No trade of context retention for headroom was detected")


def test_equal_speeds_are_called_the_same_within_five_percent() -> None:
    made = compare(measured(FakeModel(seed=1), quick=False, paired=12), measured(FakeModel(seed=2), quick=False, paired=12))
    decode = next(metric for metric in made.metrics if metric.name == "decode, ms per token")
    assert decode.verdict == "same"
    assert "the same within ± 5%" in decode.words


def test_what_stands_on_different_ground_is_refused_unless_forced() -> None:
    a, b = measured(FakeModel(), paired=6), measured(FakeModel(), paired=6, seed=8)
    assert incomparable(a, b)
    with pytest.raises(InvalidMeasurement, match="different seeds"):
        compare(a, b)
    forced = compare(a, b, force=True)
    assert forced.warnings
    assert not [metric for metric in forced.metrics if metric.name.startswith("accuracy")]
    b.run.seed = 7
    b.tool["grammar"] = "0"
    b.target.family = "other"
    b.host.memory_bytes = 1
    b.target.thinking = True
    reasons = " ".join(incomparable(a, b))
    assert all(word in reasons for word in ("grammars", "families", "machines", "thinking"))


def test_nothing_in_common_is_said() -> None:
    a = measured(FakeModel(), paired=6)
    b = a.model_copy(deep=True)
    b.inspector = b.audit = None
    assert compare(a, b).sentence == "Nothing in common was measured."
