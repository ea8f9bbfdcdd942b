"""The published document: schema, round trip, and what may be absent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema_rs
import pytest
from pydantic import ValidationError

import probes.result as module
from probes.result import Result, Run, Statistic, Target, schema
from probes.stats.intervals import Interval


def small() -> Result:
    run = Run(id="i", kind="inspect", started_at="2026-01-01T00:00:00Z", seed=1)
    return Result(run=run, target=Target(endpoint="http://x", name="m"))


def test_the_published_schema_is_the_codes() -> None:
    path = Path(module.__file__).parent / "result.schema.json"
    assert json.loads(path.read_text()) == schema(), "regenerate probes/result.schema.json"


def test_a_document_fits_its_schema_and_comes_back() -> None:
    text = small().to_json()
    jsonschema_rs.validator_for(schema()).validate(json.loads(text))
    assert Result.from_json(text) == small()
    assert json.loads(text)["schema"] == "qm-probes/1"


def test_a_newer_writers_fields_survive() -> None:
    document = json.loads(small().to_json())
    document["later"] = {"x": 1}
    document["run"]["new"] = "y"
    again = json.loads(Result.from_json(json.dumps(document)).to_json())
    assert again["later"] == {"x": 1}
    assert again["run"]["new"] == "y"


def test_another_schema_is_refused() -> None:
    document = json.loads(small().to_json())
    document["schema"] = "qm-probes/2"
    with pytest.raises(ValidationError):
        Result.from_json(json.dumps(document))


def test_an_unbounded_end_is_null_and_an_absent_interval_is_absent() -> None:
    open_ended = Statistic.of(1.0, Interval(0.5, math.inf, 0.95, "m"), n=3, unit="ms")
    assert json.loads(open_ended.model_dump_json())["ci"] == [0.5, None]
    alone = Statistic.of(1.0, Interval(-math.inf, math.inf, 0.95, "none"), n=1, unit="ms")
    assert (alone.ci, alone.level, alone.method) == (None, None, "single observation")
    assert Statistic.of(1.0, None, n=1, unit="ms").ci is None


def test_scaling_keeps_the_doubt() -> None:
    scaled = Statistic.of(2.0, Interval(1.0, math.inf, 0.95, "m"), n=3, unit="s").scaled(1000, "ms")
    assert (scaled.value, scaled.ci, scaled.unit, scaled.n) == (2000.0, (1000.0, None), "ms", 3)


def test_a_warning_is_given_once() -> None:
    result = small()
    result.warn("a", "x")
    result.warn("a", "x")
    result.warn("a", "y")
    assert [warned.text for warned in result.warnings] == ["x", "y"]
