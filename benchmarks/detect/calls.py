"""Tool calls: schemas as clients send them, arguments mutated one keyword at a time, calls leaked in every family's style,
and text that talks about calls without making one."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["LEAKS", "about_calls", "mutations", "schema", "tool_name", "valid_arguments"]

_VERBS = ("get", "list", "read", "write", "search", "create", "update", "delete", "run", "fetch", "send", "convert")
_THINGS = (
    "weather",
    "file",
    "issue",
    "page",
    "ticket",
    "branch",
    "invoice",
    "user",
    "record",
    "calendar_event",
    "shell_command",
    "image",
)
_WORDS = (
    "paris",
    "main",
    "src/app.py",
    "open",
    "2026-11-24",
    "relay",
    "hello world",
    "celsius",
    "a b c",
    "über",
    "日本",
    "x=1;",
    "a/b.c",
)
_KEYS = (
    "path",
    "query",
    "limit",
    "unit",
    "title",
    "body",
    "recursive",
    "tags",
    "range",
    "mode",
    "owner",
    "since",
    "options",
    "count",
)


def tool_name(rng: random.Random) -> str:
    return f"{rng.choice(_VERBS)}_{rng.choice(_THINGS)}"


# --- schemas and valid arguments


def schema(rng: random.Random) -> dict[str, Any]:
    """One in the manner of zod and MCP servers, of pydantic, of OpenAI strict mode or of a human."""
    properties = {key: _property(rng, 0) for key in rng.sample(_KEYS, rng.randint(1, 6))}
    made: dict[str, Any] = {"type": "object", "properties": properties}
    style = rng.choice(("zod", "pydantic", "strict", "hand"))
    names = list(properties)
    made["required"] = names if style == "strict" else rng.sample(names, rng.randint(0, len(names)))
    if style == "zod":
        made |= {"$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}
    elif style == "strict":
        made["additionalProperties"] = False
    elif style == "pydantic":
        made["$defs"] = {
            "Place": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}, "required": ["lat"]}
        }
        made["properties"]["place"] = rng.choice(
            ({"$ref": "#/$defs/Place"}, {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}], "default": None})
        )
        made["title"] = "Arguments"
    return made


def _property(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.choice(
        ("string", "enum", "integer", "number", "boolean", "nullable", "array", "object", "bounded", "pattern", "const")
    )
    if depth >= 2 and kind in ("array", "object"):
        kind = "string"
    match kind:
        case "enum":
            return {"type": "string", "enum": rng.sample(("celsius", "fahrenheit", "kelvin", "auto"), 3), "description": "unit"}
        case "nullable":
            inner = rng.choice(("string", "integer", "boolean"))
            return rng.choice(({"type": [inner, "null"]}, {"anyOf": [{"type": inner}, {"type": "null"}], "default": None}))
        case "array":
            return {"type": "array", "items": _property(rng, depth + 1)} | rng.choice(
                ({}, {"minItems": 1}, {"maxItems": 4}, {"uniqueItems": True})
            )
        case "object":
            names = rng.sample(_KEYS, rng.randint(1, 3))
            return {"type": "object", "properties": {name: _property(rng, depth + 1) for name in names}, "required": names[:1]}
        case "bounded":
            return {"type": "integer", "minimum": 1, "maximum": 100}
        case "pattern":
            return {"type": "string", "pattern": "^[a-z]{2,8}$", "minLength": 2, "maxLength": 8}
        case "const":
            return {"const": rng.choice(("v1", 7, True))}
    return {"type": kind}


def valid_arguments(rng: random.Random, made: dict[str, Any]) -> dict[str, Any]:
    value = _valid(rng, made, made)
    assert isinstance(value, dict)
    return value


def _valid(rng: random.Random, made: dict[str, Any], root: dict[str, Any]) -> Any:
    if "$ref" in made:
        return _valid(rng, root["$defs"][made["$ref"].rpartition("/")[2]], root)
    if "const" in made:
        return made["const"]
    if "enum" in made:
        return rng.choice(made["enum"])
    if "anyOf" in made:
        return _valid(rng, rng.choice(made["anyOf"]), root)
    kind = made.get("type", "string")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    match kind:
        case "null":
            return None
        case "integer":
            return rng.randint(made.get("minimum", -5), made.get("maximum", 5000))
        case "number":
            return rng.choice((1.5, -2, 3e7, 0))
        case "boolean":
            return rng.random() < 0.5
        case "array":
            items = [_valid(rng, made["items"], root) for _ in range(rng.randint(1, 3))]
            if made.get("uniqueItems"):
                items = items[:1]
            return items
        case "object":
            required = made.get("required", [])
            return {
                name: _valid(rng, child, root)
                for name, child in made["properties"].items()
                if name in required or rng.random() < 0.6
            }
    if "pattern" in made:
        return "".join(rng.choice("abcxyz") for _ in range(5))
    return rng.choice(_WORDS)


def mutations(rng: random.Random, made: dict[str, Any], valid: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The valid arguments, each time with one thing changed somewhere; some stay valid, the oracle says which."""
    for path in list(_paths(valid)):
        for change in ("type", "null", "drop", "string", "extra", "huge", "negative", "case", "list", "empty"):
            mutant = copy.deepcopy(valid)
            holder: Any = mutant
            for key in path[:-1]:
                holder = holder[key]
            key, value = path[-1], holder[path[-1]]
            match change:
                case "type":
                    holder[key] = rng.choice((1, "x", True, [], {}, 2.5))
                case "null":
                    holder[key] = None
                case "drop":
                    del holder[key]
                case "string":
                    holder[key] = value if isinstance(value, str) else json.dumps(value)
                case "extra" if isinstance(holder, dict):
                    holder[f"{key}_extra"] = 1
                case "huge":
                    holder[key] = value * 1000 if isinstance(value, int | float | str) and not isinstance(value, bool) else value
                case "negative":
                    holder[key] = -value if isinstance(value, int | float) and not isinstance(value, bool) else value
                case "case":
                    holder[key] = value.upper() if isinstance(value, str) else value
                case "list":
                    holder[key] = [value]
                case "empty":
                    holder[key] = type(value)() if isinstance(value, list | dict | str) else value
            yield mutant


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*at, key)
        yield from _paths(child, (*at, key))


# --- leaked calls

Render = Callable[[str, dict[str, Any]], str]


def _j(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _py(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def _parameters(arguments: dict[str, Any], pattern: str) -> str:
    return "".join(
        pattern.format(k=key, v=value if isinstance(value, str) else json.dumps(value)) for key, value in arguments.items()
    )


_QWEN = "<parameter={k}>\n{v}\n</parameter>\n"
_DSML = "<｜DSML｜parameter name={k}>{v}</｜DSML｜parameter>"
_GLM = "<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n"
_ESCAPE = "{k}:<escape>{v}<escape>"
_GEMMA = '{k}:<|"|>{v}<|"|>'
_AGENT = "<parameter name={k}>{v}</parameter>\n"
_PLAIN = "<{k}>{v}</{k}>\n"

LEAKS: dict[str, Render] = {
    "hermes": lambda n, a: f'<tool_call>\n{{"name": "{n}", "arguments": {_j(a)}}}\n</tool_call>',
    "hermes, opener lost": lambda n, a: f'{{"name": "{n}", "arguments": {_j(a)}}}\n</tool_call>',
    "hermes, closer lost": lambda n, a: f'<tool_call>{{"name": "{n}", "arguments": {_j(a)}}}',
    "qwen3-coder": lambda n, a: f"<tool_call>\n<function={n}>\n{_parameters(a, _QWEN)}</function>\n</tool_call>",
    "qwen3-coder, opener lost": lambda n, a: f"<function={n}>\n{_parameters(a, _QWEN)}</function>\n</tool_call>",
    "llama tag": lambda n, a: f'<|python_tag|>{{"name": "{n}", "parameters": {_j(a)}}}',
    "llama tag, call": lambda n, a: f"<|python_tag|>{n}.call({_py(a)})",
    "llama bare": lambda n, a: f'{{"name": "{n}", "parameters": {_j(a)}}}',
    "llama function": lambda n, a: f"<function={n}>{_j(a)}</function>",
    "llama pythonic": lambda n, a: f"[{n}({_py(a)})]",
    "mistral": lambda n, a: f'[TOOL_CALLS] [{{"name": "{n}", "arguments": {_j(a)}}}]',
    "mistral, newer": lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{_j(a)}",
    "mistral, call id": lambda n, a: f"[TOOL_CALLS]{n}[CALL_ID]a1b2c3d4e[ARGS]{_j(a)}",
    "deepseek v3": lambda n, a: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{_j(a)}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek v3.1": lambda n, a: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{_j(a)}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek ascii": lambda n, a: (
        f"<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>{n}\n```json\n{_j(a)}\n```<|tool_call_end|>"
    ),
    "deepseek dsml": lambda n, a: (
        f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="{n}">\n{_parameters(a, _DSML)}</｜DSML｜invoke>'
    ),
    "glm": lambda n, a: f"<tool_call>{n}\n{_parameters(a, _GLM)}</tool_call>",
    "harmony": lambda n, a: f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{_j(a)}<|call|>",
    "harmony debris": lambda n, a: f"commentary to=functions.{n} json {_j(a)}",
    "gemma code": lambda n, a: f"```tool_code\n{n}({_py(a)})\n```",
    "gemma print": lambda n, a: f"```tool_code\nprint({n}({_py(a)}))\n```",
    "functiongemma": lambda n, a: f"<start_function_call>call:{n}{{{_parameters(a, _ESCAPE)}}}<end_function_call>",
    "gemma 4": lambda n, a: f"<|tool_call>call:{n}{{{_parameters(a, _GEMMA)}}}<tool_call|>",
    "cohere": lambda n, a: (
        f'<|START_ACTION|>[\n  {{"tool_call_id": "0", "tool_name": "{n}", "parameters": {_j(a)}}}\n]<|END_ACTION|>'
    ),
    "cohere debris": lambda n, a: f'Action: ```json\n[\n  {{"tool_name": "{n}", "parameters": {_j(a)}}}\n]```',
    "lfm2": lambda n, a: f"<|tool_call_start|>[{n}({_py(a)})]<|tool_call_end|>",
    "olmo": lambda n, a: f"<function_calls>\n{n}({_py(a)})\n</function_calls>",
    "agent xml": lambda n, a: f'<function_calls>\n<invoke name="{n}">\n{_parameters(a, _AGENT)}</invoke>\n</function_calls>',
    "phi": lambda n, a: f'functools[{{"name": "{n}", "arguments": {_j(a)}}}]',
    "granite": lambda n, a: f'<|tool_call|>[{{"name": "{n}", "arguments": {_j(a)}}}]',
    "kimi": lambda n, a: (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{n}:0<|tool_call_argument_begin|>{_j(a)}<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "internlm": lambda n, a: f'<|action_start|><|plugin|>{{"name": "{n}", "parameters": {_j(a)}}}<|action_end|>',
    "json fence": lambda n, a: f'```json\n{{"name": "{n}", "arguments": {_j(a)}}}\n```',
    "openai object": lambda n, a: f'{{"type": "function", "function": {{"name": "{n}", "arguments": {_j(a)}}}}}',
    "react": lambda n, a: f"Thought: I need the tool.\nAction: {n}\nAction Input: {_j(a)}",
    "prompt xml": lambda n, a: f"<{n}>\n{_parameters(a, _PLAIN)}</{n}>",
}

WHOLE_ONLY = ("llama bare", "llama pythonic", "json fence", "openai object")
"""Shapes that are a leak only when they are the whole answer."""
DECLARED_ONLY = ("react", "prompt xml", "llama pythonic")


# --- talk about calls


def about_calls(rng: random.Random, name: str, arguments: dict[str, Any]) -> str:
    """Clean text that mentions calls: documentation, code, JSON answers, chat templates, HTML."""
    family = rng.choice(list(LEAKS))
    shown = LEAKS[family](name, arguments)
    kind = rng.randrange(9)
    if kind == 0:
        fence = "````" if "```" in shown else "```"
        return f"A tool call of this family has the following format, for example:\n\n{fence}\n{shown}\n{fence}\n\nThe client parses it and answers."
    if kind == 1:
        mark = "`" if "\n" not in shown and "`" not in shown else ""
        shown = shown if mark else "<tool_call>"
        return f"Hermes models write {mark or '`'}{shown}{mark or '`'} into their answer, and the server turns it into a structured call. Nothing is run here."
    if kind == 2:
        return f'```python\nif text.startswith("<tool_call>"):\n    call = json.loads(text[11:-12])\n    assert call["name"] == "{name}"\n```\nThis is how it is parsed.'
    if kind == 3:
        rows = ",\n".join(json.dumps({"name": rng.choice(_WORDS), "arguments": rng.randint(1, 9), "id": i}) for i in range(5))
        return f"Here are the functions and how many arguments each takes:\n\n```json\n[\n{rows}\n]\n```\nTell me if you need others."
    if kind == 4:
        return "{% for tool in tools %}<tool_call>{{ tool.name }}</tool_call>{% endfor %}\nThis template prints every tool."
    if kind == 5:
        return "<ul>\n  <li>one</li>\n  <li>two</li>\n</ul>\n<table><tr><td>1</td></tr></table>\n<invoice><number>7</number></invoice>"
    if kind == 6:
        return "Action: none needed.\nThe report is done. Action items: call the office, then write to the owner.\nAction Input is a term of ReAct prompts."
    if kind == 7:
        return (
            json.dumps({"name": "Ada", "age": 36, "parameters": None})
            if rng.random() < 0.5
            else json.dumps({"function": "sin", "value": 0.5})
        )
    return f"I called {name} with {_py(arguments)} and it answered. In Python that is {name}({_py(arguments)}), in the shell: ./{name} --help."
