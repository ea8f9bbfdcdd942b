from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.schemas import Schemas
from qm_proxy.detect.tool_schema import ToolSchema, nearest_name
from qm_proxy.events import (
    Asked,
    Began,
    Cut,
    EmptyRecord,
    Event,
    Failed,
    Finished,
    Message,
    Nanoseconds,
    OfferedTool,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.detect.calls import DECLARED_ONLY, LEAKS, WHOLE_ONLY

T = Nanoseconds(7)
WEATHER = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 14}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
).encode()
TOOLS = (
    OfferedTool("get_weather", "function", WEATHER),
    OfferedTool("list_files", "function", None),
    OfferedTool("shell", "local_shell"),
)


def asked(tools: tuple[OfferedTool, ...] = TOOLS, **more: object) -> Asked:
    return Asked(T, "ollama", "chat", "m", True, tools=tools, **more)  # type: ignore[arg-type]


def call(name: str = "get_weather", arguments: str = '{"city": "Paris"}', index: int = 0) -> ToolCall:
    return ToolCall(T, index, f"c{index}", name, arguments)


def found(*events: Event, request: Asked | None = None, detector: ToolSchema | None = None) -> list[Finding]:
    detector = detector or ToolSchema(request or asked(), Schemas())
    return [finding for event in events for finding in detector.see(event)]


def test_a_good_call_is_no_finding() -> None:
    detector = ToolSchema(asked(), Schemas())
    assert found(call(), call("list_files", "", 1), call("shell", "whatever", 2), Finished(T, "stop"), detector=detector) == []
    assert [(verdict.name, verdict.valid) for verdict in detector.verdicts] == [("get_weather", True), ("list_files", True)]


@pytest.mark.parametrize(
    ("arguments", "kind", "severity", "problems"),
    [
        ('{"city": "Paris", "days": "x"}', "tool.schema", "violation", [("/days", "type", True)]),
        ('{"city": "Paris", "unit": "k"}', "tool.schema", "violation", [("/unit", "enum", True)]),
        ("{}", "tool.schema", "violation", [("", "required", True)]),
        ('{"city": "Paris", "days": 99}', "tool.schema", "suspect", [("/days", "maximum", False)]),
        ('{"city": "Paris", "zip": 1}', "tool.schema", "suspect", [("", "additionalProperties", False)]),
        ('{"city": "Paris", "days": "3"}', "tool.coercible", "info", [("/days", "type", True)]),
    ],
)
def test_arguments(arguments: str, kind: str, severity: str, problems: list[tuple[str, str, bool]]) -> None:
    detector = ToolSchema(asked(), Schemas())
    (finding,) = found(call(arguments=arguments), detector=detector)
    assert (finding.kind, finding.severity) == (kind, severity)
    assert finding.evidence["problems"] == [{"pointer": p, "keyword": k, "visible": v} for p, k, v in problems]
    assert detector.verdicts[0].valid is False
    assert "Paris" not in finding.summary


@pytest.mark.parametrize(
    "arguments", ["", "   ", "{", "[1]", '"x"', "null", "NaN", '{"city": Infinity}', "{'city': 'Paris'}", '{"a":1}}']
)
def test_bad_json(arguments: str) -> None:
    (finding,) = found(call(arguments=arguments))
    assert (finding.kind, finding.severity) == ("tool.bad_json", "violation")


def test_empty_arguments_of_a_tool_that_needs_none() -> None:
    assert found(call("list_files", "")) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("getWeather", "get_weather"),
        ("get-weather", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("get_wether", "get_weather"),
        ("get_waether", "get_weather"),
        ("mcp__files__list_files", "list_files"),
        ("bake_bread", None),
        ("", None),
        ("x" * 5000, None),
    ],
)
def test_an_unknown_tool_and_its_neighbour(name: str, nearest: str | None) -> None:
    (finding,) = found(call(name))
    assert (finding.kind, finding.severity, finding.evidence["nearest"]) == ("tool.unknown", "violation", nearest)


def test_ten_thousand_tools() -> None:
    tools = tuple(OfferedTool(f"tool_{i}_of_many", "function", b'{"type": "object"}') for i in range(10_000))
    detector = ToolSchema(asked(tools), Schemas())
    assert found(Began(T, "m", None), call("tool_9999_of_many", "{}"), detector=detector) == []
    (finding,) = found(call("tool_nowhere", "{}", 1), detector=detector)
    assert finding.kind == "tool.unknown"


def test_calls_that_nobody_asked_for() -> None:
    (finding,) = found(call(), request=asked(()))
    assert (finding.kind, finding.severity) == ("tool.not_offered", "violation")
    (finding,) = found(call(), request=asked(tool_choice="none"))
    assert (finding.kind, finding.severity) == ("tool.choice", "violation")
    (finding,) = found(call("list_files", "{}"), request=asked(tool_choice="get_weather"))
    assert (finding.kind, finding.evidence["tool_choice"]) == ("tool.choice", "get_weather")
    (finding,) = found(call(), call(index=1), call(index=2), request=asked(options={"parallel_tool_calls": False}))
    assert finding.evidence["parallel_tool_calls"] is False


def test_calls_that_were_demanded_and_did_not_come() -> None:
    answer = TextDelta(T, "It is sunny.")
    for choice in ("required", "get_weather"):
        (finding,) = found(answer, Finished(T, "stop"), request=asked(tool_choice=choice))
        assert finding.kind == "tool.choice"
        assert found(answer, Finished(T, "length"), request=asked(tool_choice=choice)) == []
        assert found(call(), Finished(T, "stop"), request=asked(tool_choice=choice)) == []
    assert found(answer, Finished(T, "stop"), request=asked(tool_choice="auto")) == []


def test_swallowed() -> None:
    end = (Usage(T, output_tokens=40), Finished(T, "stop"))
    (finding,) = found(EmptyRecord(T), *end)
    assert finding.kind == "tool.swallowed"
    assert found(*end, request=asked(())) == []
    assert found(ThinkingDelta(T, "hm"), *end) == []
    assert found(Usage(T, output_tokens=3), Finished(T, "stop")) == []
    assert found(Usage(T, output_tokens=40, estimated=True), Finished(T, "stop")) == []


def test_parser_errors() -> None:
    (finding,) = found(Failed(T, 500, "error parsing tool call: raw='{\"a\":', err=unexpected end of JSON input"))
    assert finding.kind == "tool.parser_error"
    assert found(Failed(T, 500, "model runner has unexpectedly stopped")) == []
    assert found(Failed(T, 400, '"m" does not support tools')) == []


def test_the_clients_broken_schema_is_told_once_for_all_exchanges() -> None:
    schemas = Schemas()
    tools = (OfferedTool("bad", "function", b'{"type": "strng"}'), *TOOLS)
    kinds = []
    for _ in range(3):
        detector = ToolSchema(asked(tools), schemas)
        kinds += [f.kind for f in found(Began(T, "m", None), call("bad", '{"a": 1}'), detector=detector)]
        assert detector.verdicts[0].valid is None
    assert kinds == ["tool.bad_schema"]


def test_a_mad_answer_gives_few_findings_and_all_verdicts() -> None:
    detector = ToolSchema(asked(), Schemas())
    assert len(found(*(call("bake", "{}", i) for i in range(300)), Finished(T, "stop"), detector=detector)) == 32
    assert len(detector.verdicts) == 256


def test_what_is_too_large_is_not_judged() -> None:
    detector = ToolSchema(asked(), Schemas())
    deep = '{"city": ' + "[" * 5000 + "]" * 5000 + "}"
    wide = json.dumps({"city": "x" * 1_100_000})
    assert (
        found(
            call(arguments=deep),
            call(arguments=wide, index=1),
            call(arguments='{"city": "\\ud800"}', index=2),
            detector=detector,
        )
        == []
    )
    assert [verdict.valid for verdict in detector.verdicts] == [None, None, True]


def answer(text: str, size: int = 3) -> list[Event]:
    return [TextDelta(T, text[i : i + size]) for i in range(0, len(text), size)]


@pytest.mark.parametrize("family", LEAKS)
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_leaks_of_every_family_however_cut(family: str, size: int) -> None:
    text = LEAKS[family]("get_weather", {"city": "Paris"})
    if family not in WHOLE_ONLY:
        text = "I look it up. " * 40 + "\n" + text
    (finding,) = found(*answer(text, size), Finished(T, "stop"))
    assert (finding.kind, finding.severity, finding.evidence["tool"]) == ("tool.leaked", "violation", "get_weather")
    assert len(str(finding.evidence["excerpt"])) <= 80


@pytest.mark.parametrize("family", [family for family in LEAKS if family not in DECLARED_ONLY])
def test_a_leaked_call_of_an_invented_tool_is_a_suspicion(family: str) -> None:
    (finding,) = found(*answer(LEAKS[family]("fetch_weather", {"city": "Paris"})), Finished(T, "stop"))
    assert (finding.kind, finding.severity, finding.evidence["declared"]) == ("tool.leaked", "suspect", False)


def test_what_is_no_leak() -> None:
    leak = LEAKS["hermes"]("get_weather", {"city": "Paris"})
    assert found(*answer(leak), call(), Finished(T, "stop")) == [], "a structured call of that name came"
    assert found(*answer(leak), Finished(T, "stop"), request=asked(())) == [], "no tools offered: a prompted agent"
    assert found(*(ThinkingDelta(T, leak) for _ in range(2)), Finished(T, "stop")) == [], "thinking"
    assert found(*answer(f"For example:\n\n```\n{leak}\n```\n"), Finished(T, "stop")) == [], "an example"
    assert found(*answer(f"```\n{leak}\n```\nand more text follows here."), Finished(T, "stop")) == [], "a listing"
    quoted = asked(messages=(Message("tool", f"file: {leak}"),))
    assert found(*answer(f"The file says {leak}"), Finished(T, "stop"), request=quoted) == [], "it stood in the request"
    other = LEAKS["hermes"]("other", {}) + "\n\nThat is what such a call looks like, and it is not one of yours."
    assert found(*answer(other), Finished(T, "stop")) == []


def test_a_leak_in_the_last_fence_and_behind_much_text() -> None:
    leak = LEAKS["hermes"]("get_weather", {"city": "Paris"})
    (finding,) = found(*answer(f"I call it now.\n```xml\n{leak}\n```\n"), Finished(T, "stop"))
    assert finding.severity == "violation"
    code = "```python\n" + "total += 1\n" * 4000 + "```\n"
    (finding,) = found(*answer(code + leak, 100), Cut(T, "upstream_truncated"))
    assert finding.severity == "violation"


def test_many_leaks_are_few_findings() -> None:
    text = "".join(LEAKS["hermes"](f"tool_{i}", {}) + "\n" for i in range(50))
    tools = tuple(OfferedTool(f"tool_{i}", "function", None) for i in range(50))
    assert len(found(*answer(text), Finished(T, "stop"), request=asked(tools))) <= 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(max_size=40) | st.sampled_from([*(r("f", {"a": 1}) for r in LEAKS.values()), "```\n", "`"]), max_size=12),
    st.randoms(),
)
def test_leak_verdicts_do_not_depend_on_the_cut(pieces: list[str], rng: object) -> None:
    text = "".join(pieces)
    request = asked((OfferedTool("f", "function", None),))
    whole = [(f.kind, f.evidence) for f in found(TextDelta(T, text), Finished(T, "stop"), request=request)]
    assert [(f.kind, f.evidence) for f in found(*answer(text, 5), Finished(T, "stop"), request=request)] == whole
    assert [(f.kind, f.evidence) for f in found(*answer(text, 1), Finished(T, "stop"), request=request)] == whole


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=60))
def test_it_never_raises(name: str, arguments: str) -> None:
    found(call(name, arguments), call("get_weather", arguments, 1), Finished(T, "stop"))
    nearest_name(name, ["get_weather", arguments])
