"""The native dialect's own: durations, metrics."""

from __future__ import annotations

from typing import Any

import pytest

from probes.sim import native
from probes.sim.dialect import BadRequest, Metrics


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0),
        (5, 5),
        (-1, -1),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("-1s", -1),
        ("0", 0),
    ],
)
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert native.keep_alive_seconds(value) == seconds


@pytest.mark.parametrize("value", ["", "10", "soon", [], True])
def test_keep_alive_that_is_none(value: Any) -> None:
    with pytest.raises(BadRequest):
        native.keep_alive_seconds(value)


def test_usage_zero_is_left_out() -> None:
    assert native.metrics_json(Metrics(5, 0, 0, 0, 3, 2)) == ',"total_duration":5,"eval_count":3,"eval_duration":2'
    assert native.metrics_json(None) == ""
