"""The Responses dialect's own: sorted keys, numbered events, whole answers."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from probes.sim import responses
from probes.sim.dialect import Record
from probes.sim.responses import Raw, ordered_json, sorted_json
from tests.probes.sim.test_dialect import METRICS, ask, events


def test_maps_are_sorted_and_raw_parts_kept() -> None:
    value = {"b": [{"d": 1, "c": 2}], "a": Raw('{"z":1,"y":2}')}
    assert sorted_json(value) == '{"a":{"z":1,"y":2},"b":[{"c":2,"d":1}]}'
    assert ordered_json(value) == '{"b":[{"d":1,"c":2}],"a":{"z":1,"y":2}}'


def test_the_answer_repeats_what_was_asked() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    body: dict[str, Any] = {
        "model": "m",
        "instructions": "be brief",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}},
    }
    writer = responses.ResponsesWriter(ask("openai-responses"), body, Random(1))
    first = events(writer.record(Record(10**18, "a")))[0]["response"]
    whole = json.loads(
        responses.ResponsesWriter(ask("openai-responses"), body, Random(1)).whole(Record(10**18, "a", metrics=METRICS))
    )
    for answer in (first, whole):
        assert answer["instructions"] == "be brief"
        assert answer["max_output_tokens"] == 9
        assert answer["temperature"] == 0.5
        assert answer["reasoning"] == {"effort": "low", "summary": None}
        assert list(answer["text"]["format"]["schema"]) == ["type", "properties"]  # raw: not sorted
    assert list(first) == sorted(first)
    assert whole["usage"]["total_tokens"] == 27


def test_ids_belong_together() -> None:
    writer = responses.ResponsesWriter(ask("openai-responses"), {}, Random(1))
    found = events([f for r in (Record(1, thinking="hm"), Record(1, "a"), Record(1, "b")) for f in writer.record(r)])
    found += events(writer.record(Record(1, done=True, reason="stop", metrics=METRICS)))
    by_kind: dict[str, set[str]] = {}
    for event in found:
        if "item_id" in event:
            by_kind.setdefault(event["type"].split(".")[1], set()).add(event["item_id"])
    assert {len(ids) for ids in by_kind.values()} == {1}
    assert by_kind["output_text"] == by_kind["content_part"]
    final = found[-1]["response"]["output"]
    assert [item["id"] for item in final] == [*by_kind["reasoning_summary_text"], *by_kind["output_text"]]
