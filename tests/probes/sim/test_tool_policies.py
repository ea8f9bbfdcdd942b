"""The sensible tool user makes valid calls; the bad one breaks each rule it names, and only that."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from jsonschema_rs import validator_for

from probes.sim.personas import Persona
from probes.sim.policies import Turn
from probes.sim.speech import Message, Said
from probes.sim.tool_policies import KINDS, BadCalls, Mute, ToolUser, fitting_arguments

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 3, "maxLength": 80},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "lines": {"type": "integer", "minimum": 1, "maximum": 500},
        "deep": {"type": "object", "properties": {"flag": {"type": "boolean"}}, "required": ["flag"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
    },
    "required": ["path", "unit", "lines", "deep", "tags"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "write_notes", "parameters": SCHEMA}},
                    {"type": "function", "function": {"name": "read_notes", "parameters": SCHEMA}}]  # fmt: skip


def turn(*messages: Message, tools: list[Any] | None = None) -> Turn:
    return Turn(Persona(name="m"), list(messages), "p", 9, TOOLS if tools is None else tools)


def test_arguments_fit_their_schema() -> None:
    for user in ("", "look at src/main.py line 40", "weather in Paris in `celsius`", "99999999 things"):
        arguments = fitting_arguments(SCHEMA, turn(Message("user", user)), Random(1))
        validator_for(SCHEMA).validate(arguments)
    assert arguments["lines"] == 500
    path = fitting_arguments(SCHEMA, turn(Message("user", "look at src/main.py line 40")), Random(1))
    assert (path["path"], path["lines"]) == ("src/main.py", 40)


@pytest.mark.parametrize(
    "schema", [None, [], {}, {"type": "object"}, {"properties": None}, {"required": "x"}, {"properties": {"a": 3}}]
)
def test_strange_schemas_are_survived(schema: Any) -> None:
    assert isinstance(fitting_arguments(schema, turn(Message("user", "x")), Random(1)), dict)


def test_a_recursive_schema_ends() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {}, "required": ["again"]}
    schema["properties"]["again"] = schema
    assert fitting_arguments(schema, turn(Message("user", "x")), Random(1))


def test_the_tool_user_reads_first_or_what_is_named_and_then_answers() -> None:
    policy = ToolUser(calls=2)
    first = policy.answer(turn(Message("user", "what do my notes say?")), Random(1))
    named = policy.answer(turn(Message("user", "use write_notes now")), Random(1))
    assert first is not None
    assert named is not None
    assert first.calls[0].name == "read_notes"
    assert named.calls[0].name == "write_notes"
    for call in (*first.calls, *named.calls):
        validator_for(SCHEMA).validate(json.loads(call.arguments))
    history = [
        Message("user", "x"),
        Message("assistant"),
        Message("tool", "one"),
        Message("assistant"),
        Message("tool", "two  results"),
    ]
    last = policy.answer(turn(*history), Random(1))
    assert last is not None
    assert not last.calls
    assert "two results" in "".join(last.text)
    assert policy.answer(turn(Message("user", "hi"), tools=[]), Random(1)) is None
    parallel = ToolUser(calls=1, parallel=2).answer(turn(Message("user", "x")), Random(1))
    assert parallel is not None
    assert len(parallel.calls) == 2


def bad(kind: str, tools: list[Any] | None = None) -> Said:
    said = BadCalls().answer(turn(Message("user", f"kind:{kind}"), tools=tools), Random(1))
    assert said is not None
    return said


ONLY = {
    "missing_required": "required",
    "wrong_type": "type",
    "extra_property": "additionalProperties",
    "enum": "enum",
    "coercible": "type",
    "hidden": "minLength",
}
"""Kind → the JSON Schema keyword that must be the one broken."""


@pytest.mark.parametrize(("kind", "keyword"), ONLY.items())
def test_schema_violations_are_just_the_one(kind: str, keyword: str) -> None:
    said = bad(kind)
    assert said.note == f"bad call: {kind}"
    (call,) = said.calls
    arguments = json.loads(call.arguments)
    errors = list(validator_for(SCHEMA).iter_errors(arguments))
    assert len(errors) == 1
    if kind == "hidden":
        assert errors[0].instance_path in (["path"], ["lines"])
    else:
        assert keyword in str(errors[0].schema_path)
    if kind == "coercible":
        assert arguments["lines"] == "3"


def test_names_and_text_that_are_wrong() -> None:
    assert bad("unknown").calls[0].name in ("write-notes", "read-notes")
    assert bad("invented").calls[0].name == "apply_hotfix_everywhere"
    assert bad("enum", [{"type": "function", "function": {"name": "bare"}}]).note == "bad call: unknown"  # no handle for it
    assert bad("enum", []).note == "bad call: not_offered"
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(bad("bad_json").calls[0].arguments)
    swallowed = bad("swallowed").misbehaviour
    assert swallowed is not None
    assert swallowed.swallow
    error = bad("parser_error").misbehaviour
    assert error is not None
    assert (error.error_before or "").startswith("error parsing tool call: raw='{")


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("leaked_")])
def test_leaks_name_the_tool_and_call_nothing(kind: str) -> None:
    said = bad(kind)
    text = "".join(said.text)
    assert not said.calls
    assert "write_notes" in text or "read_notes" in text


def test_kinds_take_turns() -> None:
    policy = BadCalls(kinds=["invented", "no_call"])
    notes = []
    for _ in range(4):
        said = policy.answer(turn(Message("user", "x")), Random(1))
        assert said is not None
        notes.append(said.note)
    assert notes == ["bad call: invented", "bad call: no_call"] * 2
    with pytest.raises(ValueError, match="kinds"):
        BadCalls(kinds=["nonsense"])


def test_mute_says_nothing() -> None:
    said = Mute().answer(turn(), Random(1))
    assert said is not None
    assert not list(said.text)
    assert not said.calls
