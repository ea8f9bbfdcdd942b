"""The catalogue of tool calls that leak into the answer's text: what each model family's call looks like when nobody parsed it.

A leak is an opener of its family *and* a call-shaped body with a name. What is quoted (code fences that explain, inline
code, text that stood in the request) is not a leak. Pure functions; the caller keeps the text and decides what to say.
Sources: the chat templates and parsers of the families, and the reports of Ollama's users (research/detectors.md 2.4).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import NamedTuple

__all__ = ["BODY", "OPENER", "Leak", "is_quoted", "leaks_at", "whole_content_leaks"]

BODY = 4_096
"""So many characters behind an opener are looked at for its body."""

_NAME = r"([A-Za-z_][\w.\-:/]{0,127})"
_JSON_NAME = (
    r'\{\s*+(?:"(?:id|type|tool_call_id)"\s*+:\s*+"[^"]{0,80}"\s*+,\s*+)*"(?:name|tool_name|function|tool)"\s*+:\s*+"'
    + _NAME
    + '"'
)
_JSON_ARGUMENTS = r'\s*+,\s*+"(?:arguments|parameters|args|input)"\s*+:'

OPENER = re.compile(
    r"<tool_call|</tool_call|<function[=_]|<\|python_tag|\[TOOL_CALLS|<[｜|]\s?tool|<[｜|]DSML|to=functions\.|```tool_c"
    r"|<start_function_call|<\|START_ACTION|<\|action_start|functools\s?\[|<(?:\w{1,12}:)?invoke name=|Action:"
    r"|<(?P<xml>[A-Za-z_][\w-]{1,63})>\s{0,4}</?[A-Za-z_]"
)
"""Finds every place worth a closer look; cheap on text that has none. `xml`: only worth it if that is an offered tool."""

_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (family, re.compile(shape, re.DOTALL))
    for family, shape in (
        ("hermes", r"<tool_call>\s*+" + _JSON_NAME + r'(?:\s*+\}|\s*+,\s*+"(?:arguments|parameters)"\s*+:)'),
        ("granite", r"<\|?tool_call\|?>\s*+\[\s*+" + _JSON_NAME + _JSON_ARGUMENTS),
        ("glm", r"<tool_call>\s*+" + _NAME + r"\s*+(?:<arg_key>|</tool_call>)"),
        ("qwen3-coder", r"(?:<tool_call>\s*+)?<function=" + _NAME + r">\s*+(?:<parameter=|\{|</function>)"),
        ("llama", r"<\|python_tag\|>\s*+(?:" + _JSON_NAME + "|" + _NAME + r"(?:\.call)?\()"),
        (
            "mistral",
            r"\[TOOL_CALLS\]\s*+(?:\[\s*+" + _JSON_NAME + "|" + _NAME + r"\s*+(?:\[CALL_ID\][^\[{]{0,64})?(?:\[ARGS\]\s*+)?\{)",
        ),
        (
            "deepseek",
            r"<[｜|]tool[▁_ ]calls?[▁_ ]begin[｜|]>(?:\s*+<[｜|]tool[▁_ ]call[▁_ ]begin[｜|]>)?\s*+(?:function\s*+)?"
            r"(?:<[｜|]tool[▁_ ]sep[｜|]>\s*+)?" + _NAME + r"(?:\s*+(?:<[｜|]tool[▁_ ]sep[｜|]>|```json|\{)|\n)",
        ),
        ("deepseek", r'<[｜|]DSML[｜|]\s?(?:function_calls>\s*+<[｜|]DSML[｜|]\s?)?invoke name="' + _NAME + '"'),
        ("harmony", r"to=functions\." + _NAME + r"(?:\s*+<\|\w++\|>\s*+\w*+|\s++(?:code|json|commentary))*+\s*+\{"),
        ("gemma", r"```tool_c(?:ode|all)[ \t]*+\n\s*+(?:print\(|\[|\w{1,32}\s*+=\s*+)*" + _NAME + r"\("),
        ("gemma", r"(?:<start_function_call>|<\|tool_call>)\s*+call:" + _NAME + r"\s*+\{"),
        ("cohere", r"<\|START_ACTION\|>\s*+\[\s*+" + _JSON_NAME + _JSON_ARGUMENTS),
        ("cohere", r"Action:\s*+```json\s*+\[\s*+" + _JSON_NAME),
        ("lfm2", r"<\|tool_call_start\|>\s*+\[?\s*+" + _NAME + r"\("),
        ("olmo", r"<function_calls>\s*+" + _NAME + r"\("),
        ("agent-xml", r'<(?:\w{1,12}:)?invoke name="' + _NAME + r'">\s*+(?:<(?:\w{1,12}:)?parameter name=|</)'),
        ("phi", r"functools\s?\[\s*+" + _JSON_NAME + _JSON_ARGUMENTS),
        (
            "kimi",
            r"(?:<\|tool_calls_section_begin\|>\s*+)?<\|tool_call_begin\|>\s*+(?:functions\.)?"
            + _NAME
            + r":\d+\s*+<\|tool_call_argument",
        ),
        ("internlm", r"<\|action_start\|>\s*+(?:<\|plugin\|>\s*+)?" + _JSON_NAME),
        ("react", r"Action:[ \t]*" + _NAME + r"[ \t]*\n[ \t]*Action[ \t]Input:"),
        ("prompt-xml", r"<" + _NAME + r">\s*+(?:<([A-Za-z_]\w{0,63})>.{0,2048}?</\2>|</\1>)"),
    )
)
_DECLARED_ONLY = ("react", "prompt-xml")
"""Shapes that ordinary text has as well: a leak only with the name of an offered tool."""

_BEFORE_CLOSER = re.compile(_JSON_NAME + _JSON_ARGUMENTS + r".{0,4000}\}\s*+$", re.DOTALL)
_WHOLE_JSON = re.compile(
    r"(?:```(?:json|tool_call|tool_code)?\s*+)?\[?\s*+" + _JSON_NAME + _JSON_ARGUMENTS + r".*\}\s*+\]?\s*+(?:```)?", re.DOTALL
)
_WHOLE_FUNCTION = re.compile(
    r'(?:```(?:json)?\s*+)?\[?\s*+\{\s*+(?:"id"\s*+:\s*+"[^"]{0,80}"\s*+,\s*+)?"type"\s*+:\s*+"function"\s*+,\s*+"function"\s*+:\s*+'
    + _JSON_NAME
    + _JSON_ARGUMENTS
    + r".*",
    re.DOTALL,
)
_WHOLE_PYTHON = re.compile(r"\[\s*+" + _NAME + r"\((?:\s*+\w+\s*+=.*)?\)\s*+\]", re.DOTALL)
_ARGUMENT_OBJECT = re.compile(r'"(?:arguments|parameters|args|input)"\s*+:\s*+\{')
_EXPLAINS = re.compile(
    r"\b(?:example|e\.g|format|syntax|looks? like|documentation|template|snippet|would|for instance|schema|such as|sample)\b",
    re.I,
)


class Leak(NamedTuple):
    family: str
    name: str
    at: int  # where in the searched text it starts


def leaks_at(text: str, at: int, names: Container[str]) -> Iterator[Leak]:
    """The calls that start at an opener found at `at`. Offered names win over longer guesses."""
    body = text[at : at + BODY]
    if body.startswith("</tool_call"):
        found = _BEFORE_CLOSER.search(text[max(at - BODY, 0) : at])
        if found is not None:
            yield Leak("hermes", found.group(1), max(at - BODY, 0) + found.start())
        return
    for family, shape in _SHAPES:
        match = shape.match(body)
        if match is None:
            continue
        name = next((group for group in match.groups() if group), "")
        if family == "llama" and name not in names:
            name = name.removesuffix(".call")
        if family in _DECLARED_ONLY and name not in names:
            continue
        yield Leak(family, name, at)
        return


def whole_content_leaks(content: str, names: Container[str]) -> Iterator[Leak]:
    """The answer as a whole is one call and nothing else: bare or fenced JSON, or a list of Python calls."""
    content = content.strip()
    for family, shape in (("json", _WHOLE_JSON), ("json", _WHOLE_FUNCTION), ("python", _WHOLE_PYTHON)):
        match = shape.fullmatch(content)
        if match is not None:
            if match.group(1) in names or (family == "json" and _ARGUMENT_OBJECT.search(content) is not None):
                yield Leak(family, match.group(1), 0)
            return


def is_quoted(text: str, at: int, *, fenced: bool, last: bool) -> bool:
    """Is the call at `at` shown rather than made? `fenced`: inside a code fence; `last`: nothing but its end follows."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    if line.count("`") % 2 and "```" not in line and "`" in text[at:].partition("\n")[0]:
        return True
    if not fenced:
        return False
    return not last or _EXPLAINS.search(text[max(at - 400, 0) : at]) is not None
