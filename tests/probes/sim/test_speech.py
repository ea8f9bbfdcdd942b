"""From an answer to sampled tokens: limits, stop strings, the repeat guard, faults, calls."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for

from probes.sim.personas import Misbehaviour
from probes.sim.speech import Call, Said, Step, instance, prose, steps
from probes.sim.tokens import pieces


def run(said: Said, **options: Any) -> list[Step]:
    return list(steps(said, **({"limit": 10_000} | options)))


def text(found: Iterable[Step]) -> str:
    return "".join(s.text for s in found)


def test_a_plain_answer_ends_with_its_end_of_sequence() -> None:
    found = run(Said(pieces("one two three")))
    assert [s.text for s in found] == ["one", " two", " three", ""]
    assert found[-1].end == "stop"
    assert found[-1].eos


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["a", " bc", "stop", "st", "op", " x"]), max_size=30), st.integers(1, 12),
       st.lists(st.sampled_from(["stop", "bc x", "a"]), max_size=2))  # fmt: skip
def test_whatever_is_said_the_limit_and_the_stops_hold(said: list[str], limit: int, stop: list[str]) -> None:
    found = run(Said(said), limit=limit, stop=tuple(stop), guard=False)
    assert len(found) <= limit
    assert [s.end for s in found if s.end] == [found[-1].end]
    spoken = text(found)
    whole = "".join(said)
    assert whole.startswith(spoken)
    assert not any(s in spoken for s in stop)
    if found[-1].end == "stop" and not any(s in whole for s in stop):
        assert spoken == whole


def test_length_is_reached_with_the_last_token() -> None:
    found = run(Said(["a", "b", "c"]), limit=2)
    assert [(s.text, s.end) for s in found] == [("a", None), ("b", "length")]
    exact = run(Said(["a", "b"]), limit=3)
    assert exact[-1].end == "stop"
    wanted = run(Said(["a"], ends="length"))
    assert (wanted[-1].end, wanted[-1].eos) == ("length", False)


@pytest.mark.parametrize(("n", "sent"), [(31, 31), (32, 31), (100, 31)])
def test_the_repeat_guard_swallows_the_thirty_second(n: int, sent: int) -> None:
    found = run(Said([" a", "a"] * (n // 2) + ["a"] * (n % 2)))
    assert sum(s.text.strip() == "a" for s in found) == sent
    assert found[-1].end == ("stop" if n == 31 else "repeat")
    assert run(Said(["a"] * 100), guard=False)[-1].end == "stop"


def test_an_endless_answer_is_taken_lazily() -> None:
    found = run(Said(f" {n}" for n in count()), limit=50)
    assert len(found) == 50
    assert found[-1].end == "length"


def test_thinking_is_between_two_withheld_tags() -> None:
    found = run(Said(["yes"], ["hm", " so"]))
    assert [(s.thinking, s.text) for s in found] == [("", ""), ("hm", ""), (" so", ""), ("", ""), ("", "yes"), ("", "")]
    assert run(Said(["yes"], ["hm"]), think=False)[0].text == "yes"


def test_calls_in_their_own_record_or_in_the_last() -> None:
    calls = [Call("f", '{"a":1}'), Call("g", "{}")]
    own = run(Said(["ok"], calls=calls))
    assert [len(s.calls) for s in own if s.calls] == [1, 1]
    assert not own[-1].calls
    last = run(Said(["ok"], calls=calls), calls_in_done=True)
    assert [c.name for c in last[-1].calls] == ["f", "g"]
    assert last[-1].eos


def test_a_native_call_that_is_cut_short_is_a_crash() -> None:
    said = Said(calls=[Call("get_weather", '{"city":"a long name of a town"}')])
    assert run(said, limit=3, native=True, calls_in_done=True)[-1].failure == (
        'llama-server returned invalid tool call arguments for "get_weather": unexpected end of JSON input'
    )
    assert run(said, limit=3)[-1].end == "length"


@pytest.mark.parametrize(
    ("wrong", "end"),
    [
        ({"error_after": 2}, "crash"),
        ({"cut_after": 2}, "cut"),
        ({"no_done_after": 2}, "no_done"),
        ({"silent_after": 2}, "silent"),
    ],
)
def test_faults_come_after_their_tokens(wrong: dict[str, int], end: str) -> None:
    found = run(Said(list("abcdef"), misbehaviour=Misbehaviour.model_validate(wrong)))
    assert text(found) == "ab"
    assert found[-1].end == end


def test_swallowing_keeps_the_count() -> None:
    found = run(Said(list("abc"), misbehaviour=Misbehaviour(swallow=True)))
    assert len(found) == 4
    assert text(found) == ""
    assert found[-1].end == "stop"


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers())
def test_prose_has_exactly_the_pieces_asked_for(n: int, seed: int) -> None:
    found = list(prose(n, Random(seed)))
    assert len(found) == n
    assert all(found)


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    {"const": "x"},
    {"enum": [3, 4]},
    {"type": "string", "minLength": 12, "maxLength": 14},
    {"type": "array", "items": {"type": "integer", "minimum": 5}, "minItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "string"}]},
    {"type": ["number", "null"]},
    {"type": "object", "properties": {"deep": {"type": "object", "properties": {"n": {"type": "number"}}}}},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_structured_answers_are_valid(schema: Any) -> None:
    validator_for(schema).validate(instance(schema, Random(1)))


def test_a_recursive_schema_ends() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema["properties"]["self"] = schema
    assert isinstance(instance(schema, Random(1)), dict)
