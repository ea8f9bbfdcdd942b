"""The tools that a request offers, in every shape that real clients send, and what it says about choosing among them.

    OpenAI chat    {"type": "function", "function": {"name", "parameters", "strict"}} · {"type": "custom", "custom": {"name"}}
    Responses      {"type": "function", "name", "parameters", "strict"} · {"type": "custom", "name"} · {"type": "local_shell"}
                   {"type": "namespace", "name", "tools": […]}: its members are called "name.member"
    Anthropic      {"name", "input_schema"} · {"type": "web_search_20250305", "name"}
    native         as OpenAI chat

A schema stays the bytes that were sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qm_proxy.events import OfferedTool
from qm_proxy.wire.tolerant import REFUSED

__all__ = ["offered_tools", "tool_choice"]

_MAX_DEPTH = 8


def offered_tools(raw: msgspec.Raw, problems: list[str]) -> tuple[OfferedTool, ...]:
    """From the raw value of `tools` (or OpenAI's former `functions`)."""
    found: list[OfferedTool] = []
    for tool in _read(raw, problems):
        _offer(tool, "", found, 0, problems)
    return tuple(found)


_NULL = msgspec.Raw(b"null")


class _Function(msgspec.Struct, gc=False):
    name: Any = None
    parameters: msgspec.Raw = _NULL
    strict: Any = None


class _Tool(msgspec.Struct, gc=False):
    type: Any = None
    name: Any = None
    function: _Function | None = None
    custom: _Function | None = None
    parameters: msgspec.Raw = _NULL
    input_schema: msgspec.Raw = _NULL
    strict: Any = None
    server_label: Any = None
    tools: msgspec.Raw = _NULL


_decode_tools = msgspec.json.Decoder(list[_Tool]).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode


def _read(raw: msgspec.Raw, problems: list[str]) -> list[_Tool]:
    """All tools in one reading; one by one when that fails, so that an odd one costs only itself."""
    if raw == _NULL:
        return []
    try:
        return _decode_tools(raw)
    except REFUSED:
        pass
    try:
        each = _decode_raws(raw)
    except REFUSED:
        problems.append("tools is no list")
        return []
    tools: list[_Tool] = []
    for one in each:
        try:
            tools.append(_decode_tool(one))
        except REFUSED:
            problems.append(f"tool {len(tools) + 1} has no known shape")
    return tools


def _offer(tool: _Tool, prefix: str, found: list[OfferedTool], depth: int, problems: list[str]) -> None:
    kind = _text(tool.type)
    inner = tool.function if tool.function is not None else tool.custom
    name = _text(inner.name) if inner is not None else _text(tool.name)
    if kind == "namespace":
        if depth < _MAX_DEPTH:
            for member in _read(tool.tools, problems):
                _offer(member, f"{prefix}{name}.", found, depth + 1, problems)
        return
    schema = tool.input_schema if inner is None else inner.parameters
    if schema == _NULL and inner is None:
        schema = tool.parameters
    strict = inner.strict if inner is not None else tool.strict
    if tool.input_schema != _NULL and kind in ("", "custom"):
        kind = "function"  # Anthropic's "custom" is what others call a function
    elif not kind:
        kind = "function"
    found.append(
        OfferedTool(
            name=prefix + (name or _text(tool.server_label) or kind),
            kind=kind,
            parameters=_raw(schema),
            strict=strict if isinstance(strict, bool) else None,
        )
    )


def _raw(schema: msgspec.Raw) -> bytes | None:
    """The schema's bytes as sent; None for none. (What msgspec passes over it does not check for broken UTF-8.)"""
    return None if schema == _NULL else bytes(schema).decode("utf-8", "replace").encode()


def tool_choice(choice: object) -> str | None:
    """ "auto", "none", "required", or the one tool's name; None: nothing was said."""
    if isinstance(choice, str):
        return {"any": "required", "": None}.get(choice, choice[:256])
    if not isinstance(choice, dict):
        return None
    kind = _text(choice.get("type"))
    inner = choice.get("function") or choice.get("custom")
    name = _text(inner.get("name")) if isinstance(inner, dict) else _text(choice.get("name"))
    if name:
        return name[:256]
    allowed = choice.get("allowed_tools")
    mode = _text(choice.get("mode")) or (_text(allowed.get("mode")) if isinstance(allowed, dict) else "")
    return mode or {"any": "required"}.get(kind, kind[:256]) or None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
