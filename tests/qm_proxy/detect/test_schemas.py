from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.schemas import MAX_DEPTH, MAX_PROBLEMS, Schema, Schemas, depth_of, is_visible, measure

NULL = {"type": "null"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def judged(schema: object, arguments: object) -> list[tuple[str, str, bool, str | None]] | None:
    problems = Schema(json.dumps(schema).encode()).problems(arguments, *measure(arguments))
    return None if problems is None else [(p.pointer, p.keyword, p.visible, p.coercion) for p in problems]


def object_of(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "arguments", "expected"),
    [
        (object_of(a={"type": "integer"}), {"a": 1}, []),
        (object_of(a={"type": "integer"}), {"a": "five"}, [("/a", "type", True, None)]),
        (object_of(a={"type": "integer"}), {"a": "5"}, [("/a", "type", True, "a number in a string")]),
        (object_of(a={"type": "boolean"}), {"a": "True"}, [("/a", "type", True, "a boolean in a string")]),
        (object_of(a={"type": "array"}), {"a": "[1]"}, [("/a", "type", True, "JSON in a string")]),
        (object_of(a={"type": "array"}), {"a": "x"}, [("/a", "type", True, "one value for a list of one")]),
        (object_of(a={"type": "string"}), {"a": None}, [("/a", "type", True, "null for a value that may be left out")]),
        (object_of(a={"type": "string"}) | {"required": ["a"]}, {"a": None}, [("/a", "type", True, None)]),
        (
            object_of(a={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            {"a": "7"},
            [("/a", "anyOf", True, "a number in a string")],
        ),
        (object_of(a={"type": "string"}) | {"required": ["a"]}, {}, [("", "required", True, None)]),
        (object_of(a={"enum": ["x", "y"]}), {"a": "z"}, [("/a", "enum", True, None)]),
        (object_of(a={"type": "integer", "maximum": 9}), {"a": 10}, [("/a", "maximum", False, None)]),
        (object_of() | {"additionalProperties": False}, {"q": 1}, [("", "additionalProperties", False, None)]),
        (object_of(**{"a/b~c": {"type": "null"}}), {"a/b~c": 1}, [("/a~1b~0c", "type", True, None)]),
        (object_of(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": {"type": "null"}}}, {"a": 1}, [("/a", "type", False, None)]),
        (object_of(a={"type": "array", "items": {"minimum": 3}}), {"a": [1]}, [("/a/0", "minimum", True, None)]),
    ],
)
def test_problems(schema: object, arguments: object, expected: object) -> None:
    assert judged(schema, arguments) == expected


@pytest.mark.parametrize(
    ("path", "visible"),
    [
        (["type"], True),
        (["enum"], False),
        (["properties", "a", "enum"], True),
        (["properties", "a", "anyOf"], True),
        (["properties", "a", "anyOf", 1, "type"], True),
        (["properties", "a", "properties", "b", "required"], True),
        (["properties", "a", "const"], False),
        (["properties", "a", "$ref", "type"], False),
        (["oneOf"], False),
        (["anyOf", 0, "type"], False),
        (["$ref", "type"], False),
    ],
)
def test_what_ollama_shows_to_the_model(path: list[str | int], visible: bool) -> None:
    assert is_visible(path) is visible


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type": "strng"}',
        b'{"type": "object", "properties": {"a": {"type": "string", "required": true}}}',
        b'{"type": "OBJECT"}',
        b'"object"',
        b"[1]",
        b"{",
        b'{"$ref": "#/nowhere"}',
        b"\xff",
    ],
)
def test_the_clients_fault(raw: bytes) -> None:
    schema = Schema(raw)
    assert schema.fault
    assert schema.unjudged is None
    assert schema.problems({"a": 1}, 1, 2) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"null",
        b"true",
        b"{}",
        b'{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}',
        b'{"$schema": "https://example.org/mine", "type": "object"}',
        b'{"properties": {"a": {"type": "number", "exclusiveMinimum": true, "minimum": 0}}}',  # draft 4
        b'{"properties": {"a": {"type": "array", "items": [{"type": "string"}]}}}',  # draft 7
        b'{"properties": {"a": {"type": "string", "pattern": "(?<n>a)\\\\k<n>"}}}',  # a pattern our engine lacks
        b'{"type": "object", "properties": {"a": {"type": "string", "nullable": true, "x-mine": 1}}}',
    ],
)
def test_nobodys_fault(raw: bytes) -> None:
    schema = Schema(raw)
    assert (schema.fault, schema.unjudged) == (None, None)
    assert schema.problems({}, 1, 1) == []


def test_no_reference_leaves_the_document() -> None:
    for reference in ("http://127.0.0.1:9/x", "file:///etc/hostname", "other.json"):
        schema = Schema(json.dumps({"$ref": reference}).encode())
        assert schema.unjudged == "refers to another document"
        assert schema.problems({}, 1, 1) is None


def doubling(levels: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, levels + 1):
        definitions[f"d{level}"] = {"anyOf": [{"$ref": f"#/$defs/d{level - 1}"}, {"$ref": f"#/$defs/d{level - 1}"}]}
    return {"$ref": f"#/$defs/d{levels}", "$defs": definitions}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (doubling(30), 5),
        (object_of(x={"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}) | {"required": ["q"]}, nested(60)),
        ({"$ref": "#"}, {}),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, {}),
        (object_of(a={"type": "string", "pattern": "^(?=(a+)+$)(a|aa)+\\1$"}), {"a": "a" * 5000 + "!"}),
        (object_of(a={"type": "string", "pattern": "(a{1000}){1000}"}), {"a": "a" * 5000}),
        (object_of(**{f"p{i}": {"enum": list(range(20))} for i in range(3000)}), {f"p{i}": -1 for i in range(3000)}),
        ({"type": "array", "uniqueItems": True}, list(range(100_000))),
        (object_of(a={"type": "array", "items": {"$ref": "#"}}), {"a": [nested(50)] * 1000}),
    ],
    ids=["doubling", "recursive doubling", "self", "self twice", "catastrophic", "huge pattern", "wide", "unique", "recursive"],
)
def test_hostile_schemas_do_little_work(schema: object, arguments: object) -> None:
    """Unbounded, each of these takes minutes to for ever, and the suite's time limit ends the test."""
    problems = judged(schema, arguments)
    assert problems is None or len(problems) <= MAX_PROBLEMS


def test_what_would_be_too_much_work_is_not_judged() -> None:
    assert judged(doubling(30), 5) is None
    assert judged(doubling(4), 5) == [("", "anyOf", False, None)]
    assert judged(doubling(30), "fits") is None


def test_bounds_are_nobodys_fault() -> None:
    deep = b'{"properties":{"a":' * 500 + b"{}" + b"}}" * 500
    assert Schema(deep).unjudged == f"deeper than {MAX_DEPTH} levels"
    assert Schema(b"[" * 200_000).unjudged is not None
    wide = json.dumps(object_of(**{f"property_{i}": {"type": "string"} for i in range(20_000)})).encode()
    assert "larger" in (Schema(wide).unjudged or "")


def test_lone_surrogates_and_huge_numbers_are_not_judged_or_judged_right() -> None:
    assert judged(object_of(a={"type": "string"}), {"a": "\ud800"}) in ([], None)
    assert judged(object_of(a={"pattern": "^x"}), {"a": "\ud800"}) is None
    assert judged(object_of(a={"type": "integer"}), {"a": 10**400}) in ([], None)


def test_a_schema_is_compiled_once_and_the_cache_is_bounded() -> None:
    schemas = Schemas()
    raw = json.dumps(object_of(a={"type": "string"})).encode()
    assert schemas.get(raw) is schemas.get(bytes(raw))
    assert schemas.compiled == 1
    for i in range(3000):
        schemas.get(b'{"minLength": %d}' % i)
    assert len(schemas._kept) <= 2048
    big = Schemas()
    for i in range(200):
        big.get(json.dumps({"description": str(i) + "x" * 200_000}).encode())
    assert big._bytes <= 16 * 1024 * 1024


def test_a_broken_schema_is_told_once() -> None:
    schemas = Schemas()
    assert schemas.first_blame("a", b"{")
    assert not schemas.first_blame("a", b"{")
    assert schemas.first_blame("b", b"{")


@settings(max_examples=80, deadline=None)
@given(JSON, JSON)
def test_any_document_as_schema_and_instance(schema: object, arguments: object) -> None:
    judged(schema, arguments)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_measure_counts(value: object) -> None:
    def count(item: Any) -> int:
        return 1 + sum(
            count(child) for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        )

    assert measure(value)[1] == count(value)
    assert depth_of(nested(7)) == 8


def test_of_many_possible_problems_only_the_first_is_looked_for() -> None:
    problems = judged(object_of(a=doubling(10)) | {"$defs": doubling(10)["$defs"], "required": ["b"]}, {"a": 5})
    assert problems is not None
    assert len(problems) == 1


def test_at_most_eight_problems_are_told() -> None:
    many = judged({"additionalProperties": {"type": "string"}}, {f"k{i}": i for i in range(50)})
    assert many is not None
    assert len(many) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"allOf": [{"required": ["a"]}, {"not": {"required": ["b"]}}]}, {"a": 1}, {"a": 1, "b": 2}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}}, {"c": 1}, {"a": 1}),
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}),
        ({"patternProperties": {"^x": {"type": "string"}}}, {"x1": "y"}, {"x1": 1}),
        (object_of(a={"prefixItems": [{"type": "string"}, {"type": "null"}]}), {"a": ["x", None]}, {"a": [1]}),
        (object_of(a={"$ref": "#/$defs/list/1"}) | {"$defs": {"list": [{}, {"type": "null"}]}}, {"a": None}, {"a": 1}),
        (object_of(a={"contains": {"const": 1}}), {"a": [1]}, {"a": [2]}),
        ({"propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}),
        (object_of(a={"oneOf": [{"type": "integer"}, {"type": "null"}]}), {"a": 1}, {"a": "x"}),
        (object_of(a={"type": "array"}), {"a": [1]}, {"a": {}}),
        (object_of(a={"type": "string"}), {"a": "x"}, {"a": True}),
        (object_of(a={"type": "array"}), {"a": []}, {"a": "[not json"}),
        (object_of(a={"type": "null"}), {"a": None}, {"a": "none"}),
    ],
)
def test_the_other_keywords(schema: object, good: object, bad: object) -> None:
    assert judged(schema, good) == []
    assert judged(schema, bad)


def test_null_for_a_value_behind_a_reference() -> None:
    place = {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}, "required": ["lat"]}
    schema = object_of(at={"$ref": "#/$defs/place"}, all={"type": "array", "items": [{}]}) | {"$defs": {"place": place}}
    problems = judged(schema, {"at": {"lat": None, "lon": None}})
    assert problems is not None
    assert [coercion for *_, coercion in problems] == [None, "null for a value that may be left out"]


def test_a_pattern_that_gives_up_blames_nobody() -> None:
    hard = {"type": "string", "pattern": "^(?=(x+x+)+y)(x|xx)*\\1{2}z"}
    assert judged(object_of(a=hard), {"a": "x" * 60}) in (None, [("/a", "pattern", False, None)])


def test_what_was_blamed_is_forgotten_in_time() -> None:
    schemas = Schemas()
    for i in range(2100):
        assert schemas.first_blame(f"t{i}", b"{")
    assert schemas.first_blame("t0", b"{")
    assert not schemas.first_blame("t2099", b"{")


def test_schemas_with_too_many_nodes_to_count_are_not_judged() -> None:
    wide = {"anyOf": [{"properties": {f"p{i}": {"type": "string"}}} for i in range(6000)]}
    raw = json.dumps({"allOf": [wide, wide, wide]}).encode()[: 256 * 1024 - 1]
    schema = Schema(raw)
    assert schema.fault or schema.problems({"p1": 1}, 1, 2) is None
