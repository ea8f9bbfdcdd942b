"""JSON as Go's encoding/json writes and reads it: what makes the simulated answers equal to real ones byte for byte.

Rules that hold here: no spaces; `<`, `>`, `&`, U+2028 and U+2029 are escaped (SetEscapeHTML is on in every Ollama route);
a float without a fraction has none on the wire; structs keep the order they are given in, Go maps (`ordered=False`) have
sorted keys. Source: encoding/json of Go 1.24, as far as the captures show it.
"""

from __future__ import annotations

import json
import struct
from decimal import Decimal
from json.encoder import encode_basestring as _basestring
from typing import Any, TypeAlias

__all__ = ["JSON", "BadJson", "decode", "encode", "float32", "number", "quote"]

JSON: TypeAlias = Any
"""What json.loads gives. `Any` on purpose: request bodies are foreign, and each dialect reads only what it uses."""


class BadJson(ValueError):
    """A body that Go would refuse; str() is Go's own sentence."""


def quote(text: str) -> str:
    """A JSON string. Hot path: once per streamed record, so the replacements run only when one is needed."""
    quoted: str = _basestring(text)
    if "<" in quoted or ">" in quoted or "&" in quoted:
        quoted = quoted.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    if "\u2028" in quoted or "\u2029" in quoted:
        quoted = quoted.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return quoted


def number(value: float) -> str:
    """A Go float64: no exponent between 1e-6 and 1e21, no trailing `.0`, a one-digit exponent without its zero."""
    if isinstance(value, int):
        return str(value)
    if value != value or value in (float("inf"), float("-inf")):
        raise BadJson(f"json: unsupported value: {value}")
    size = abs(value)
    if size and (size < 1e-6 or size >= 1e21):
        mantissa, _, power = repr(value).partition("e")
        if not power:
            mantissa, _, power = f"{value:e}".partition("e")
        sign, digits = power[0] if power[0] in "+-" else "+", power.lstrip("+-0")
        return f"{mantissa.removesuffix('.0')}e{sign}{digits.rjust(2, '0') if len(digits) > 1 or sign == '+' else digits}"
    text = repr(value)
    return format(Decimal(text), "f") if "e" in text else text.removesuffix(".0")


def float32(value: float) -> str:
    """A Go float32: the shortest decimal that names the same 32-bit number."""
    (single,) = struct.unpack("f", struct.pack("f", value))
    if single == 0:
        return "0"
    for digits in range(6, 10):
        shortest = float(f"{single:.{digits}g}")
        if struct.pack("f", shortest) == struct.pack("f", single):
            return number(shortest)
    return number(single)


def encode(value: JSON, *, ordered: bool = True) -> str:
    """One document. `ordered=False` sorts every object's keys, as Go does with maps."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, dict):
        items = value.items() if ordered else sorted(value.items())
        return "{" + ",".join(f"{quote(str(k))}:{encode(v, ordered=ordered)}" for k, v in items) + "}"
    return "[" + ",".join(encode(v, ordered=ordered) for v in value) + "]"


def decode(body: bytes) -> JSON:
    """Read a request body; raises `BadJson` with the sentence Go's decoder would give.

    The decoder that Ollama uses reads the first document and looks no further, so what follows it is not judged.
    """
    if not body.strip():
        raise BadJson("EOF")
    try:
        text = body.decode("utf-8", "replace")
        value, _ = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
        return value
    except RecursionError:
        raise BadJson("json: exceeded max depth") from None
    except json.JSONDecodeError as bad:
        at = bad.pos
        if bad.msg.startswith("Unterminated string") or at >= len(text.rstrip()):
            raise BadJson("unexpected EOF") from None
        found = text[at]
        shown = f"'{found}'" if found.isprintable() and found != "'" else f"'\\x{ord(found):02x}'"
        where = {
            "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
            "Expecting ':' delimiter": "after object key",
            "Expecting ',' delimiter": "after object key:value pair" if _inside_object(text, at) else "after array element",
            "Invalid control character at": "in string literal",
        }.get(bad.msg, "looking for beginning of value")
        raise BadJson(f"invalid character {shown} {where}") from None


def _inside_object(text: str, at: int) -> bool:
    """Whether position `at` lies directly in an object (strings skipped): only the error's wording hangs on it."""
    stack: list[str] = []
    inside = escaped = False
    for character in text[:at]:
        if inside:
            inside = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            inside = True
        elif character in "{[":
            stack.append(character)
        elif character in "}]" and stack:
            stack.pop()
    return bool(stack) and stack[-1] == "{"
