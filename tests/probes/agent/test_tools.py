from __future__ import annotations

import jsonschema_rs
import pytest

from probes.agent.tools import DECOYS, REAL, TRAPS, problem_with, tool_json

ALL = {**REAL, **DECOYS, **TRAPS}


@pytest.mark.parametrize("name", sorted(ALL))
def test_our_judgement_agrees_with_the_schema_that_is_shown(name: str) -> None:
    """What a model is told and what it is judged by must be one thing."""
    shown = tool_json(name)["function"]
    assert isinstance(shown, dict)
    schema = {**shown["parameters"], "additionalProperties": False}
    validator = jsonschema_rs.validator_for(schema)
    good = dict.fromkeys(schema["required"], "on")
    if "status" in good:
        good["status"] = "success"
    cases: list[dict[str, object]] = [dict(good), {}, {**good, "extra": "x"}]
    cases += [{**good, argument: value} for argument in schema["required"] for value in (1, None, ["a"], "nonsense")]
    for arguments in cases:
        assert (problem_with(name, arguments) is None) is validator.is_valid(arguments), arguments


def test_nothing_marks_a_decoy_or_a_trap() -> None:
    for name in (*DECOYS, *TRAPS):
        text = f"{name} {ALL[name].description}".lower()
        assert not [word for word in ("decoy", "trap", "forbidden", "useless", "irrelevant", "danger", "do not") if word in text]
    assert len(ALL) == len(REAL) + len(DECOYS) + len(TRAPS)
    assert len(DECOYS) >= 14
