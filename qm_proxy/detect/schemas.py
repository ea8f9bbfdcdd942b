"""Compiled argument schemas of offered tools: built once, kept by the hash of their bytes, harmless however hostile they are.

Rules that hold here:

- A schema comes from a client and its instance from a model: both are untrusted. No reference leaves the document, regular
  expressions have a step limit, and size, depth and the number of sub-schemas that may be applied to one value are bounded.
  What exceeds a bound is *unjudged*, which is not a fault of anyone's.
- Draft: the one that `$schema` names if it is known, else 2020-12; where that does not compile, 7 and 4 are tried, because
  hand-written tools mix them. Only a schema that no draft accepts is the client's *fault*. Patterns that our engine does not
  know are left out rather than blamed.
- *Visible*: Ollama decodes tools into structs that keep only some keywords (`type $defs items required properties` at the top;
  `anyOf type items description enum properties required` in a property; api/types.go, 0.33). A model cannot obey a
  constraint that it was never shown, so violations of the others are marked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from typing import NamedTuple

import jsonschema_rs

__all__ = [
    "ARGUMENT_BYTES",
    "MAX_DEPTH",
    "MAX_PROBLEMS",
    "SCHEMA_BYTES",
    "Problem",
    "Schema",
    "Schemas",
    "depth_of",
    "is_visible",
    "measure",
]

_Kind = jsonschema_rs.ValidationErrorKind

SCHEMA_BYTES = 256 * 1024
ARGUMENT_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_PROBLEMS = 8

_KEPT, _KEPT_BYTES = 2_048, 16 * 1024 * 1024
_CHEAP = 1_000  # sub-schemas applied to one value at most, for a full list of problems (60 us each when all fail)
_POSSIBLE = 20_000  # the same, for the first problem only (5 us each)
_WORK = 20_000_000  # sub-schemas times values
_NODES = 20_000
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1 << 18, dfa_size_limit=1 << 18)
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_CHILDREN = (
    "additionalProperties",
    "items",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "additionalItems",
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


class Problem(NamedTuple):
    """One violated constraint. `coercion` says how a lenient reader would still understand the value."""

    pointer: str  # RFC 6901, into the arguments
    keyword: str
    visible: bool
    coercion: str | None = None


class Schema:
    """One compiled schema. `fault`: broken by its author, in words. `unjudged`: beyond our bounds, in words."""

    __slots__ = ("_fans", "_root", "_validator", "fault", "size", "unjudged")

    def __init__(self, raw: bytes) -> None:
        self.size = len(raw)
        self.fault: str | None = None
        self.unjudged: str | None = None
        self._validator: jsonschema_rs.Validator | None = None
        self._root: object = True
        self._fans: dict[int, int] = {}
        if len(raw) > SCHEMA_BYTES:
            self.unjudged = f"larger than {SCHEMA_BYTES // 1024} KiB"
            return
        try:
            self._root = json.loads(raw)
            deep = depth_of(self._root) > MAX_DEPTH
        except RecursionError:
            deep = True
        except ValueError:
            self.fault = "not JSON"
            return
        if deep:
            self._root = True
            self.unjudged = f"deeper than {MAX_DEPTH} levels"
        elif self._root is None:
            self._root = True  # no constraint
        elif not isinstance(self._root, dict | bool):
            self.fault = "neither an object nor a boolean"
        else:
            self._compile()

    def requires_something(self) -> bool:
        return isinstance(self._root, dict) and bool(self._root.get("required"))

    def problems(self, arguments: object, depth: int, values: int) -> list[Problem] | None:
        """What is wrong with `arguments` (`depth` deep, `values` of them in all): empty if nothing, `None` if unjudged."""
        if self._validator is None:
            return None if self.fault or self.unjudged else []
        fan = self._fan(min(depth, MAX_DEPTH))
        if fan > _POSSIBLE or fan * values > _WORK:
            return None
        try:
            if self._validator.is_valid(arguments):
                return []
            if fan > _CHEAP:
                return [self._first(arguments)]
            found: list[Problem] = []
            for error in self._validator.iter_errors(arguments):
                if isinstance(error.kind, _Kind.BacktrackLimitExceeded | _Kind.RegexEngineFailure):
                    return None  # the pattern gave up, the value is not to blame
                found.append(self._problem(error))
                if len(found) == MAX_PROBLEMS:
                    break
            return found
        except (ValueError, RecursionError, OverflowError):  # lone surrogates, numbers beyond any type
            return None

    def _first(self, arguments: object) -> Problem:
        try:
            assert self._validator is not None
            self._validator.validate(arguments)
        except jsonschema_rs.ValidationError as error:
            return self._problem(error)
        return Problem("", "unknown", False)

    # --- compiling

    def _compile(self) -> None:
        root = self._root
        if isinstance(root, dict) and isinstance(root.get("$schema"), str):
            declared = self._attempt(root, None)
            if declared is None:
                return
            root = {key: value for key, value in root.items() if key != "$schema"}
        first = self._attempt(root, None)
        if first is None:
            return
        for validator in (jsonschema_rs.Draft7Validator, jsonschema_rs.Draft4Validator):
            if self._attempt(root, validator) is None:
                return
        if "regex" in first and self._attempt(_without_patterns(root), None) is None:
            return
        if "not present in a registry" in first:
            self.unjudged = "refers to another document"
        else:
            self.fault = first

    def _attempt(self, root: object, validator: type | None) -> str | None:
        """Compile; answer with the reason if it cannot be."""
        try:
            if validator is None:
                assert isinstance(root, dict | bool)
                self._validator = jsonschema_rs.validator_for(root, offline=True, pattern_options=_PATTERNS)
            else:
                self._validator = validator(root, offline=True, pattern_options=_PATTERNS)
        except (ValueError, RecursionError, OverflowError) as error:
            return " ".join(str(error).partition("\n")[0].split())[:160]
        return None

    # --- how much work one value can be

    def _fan(self, depth: int) -> int:
        """How many sub-schemas may be applied to one value at this depth, through references and combinations."""
        if depth not in self._fans:
            try:
                self._fans[depth] = _Fan(self._root).of(self._root, depth)
            except RecursionError:
                self._fans[depth] = _POSSIBLE + 1
        return self._fans[depth]

    # --- telling

    def _problem(self, error: jsonschema_rs.ValidationError) -> Problem:
        path = error.evaluation_path
        pointer = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in error.instance_path)
        coercion = self._coercion(error)
        return Problem(pointer[:256], error.kind.name, is_visible(path), coercion)

    def _coercion(self, error: jsonschema_rs.ValidationError) -> str | None:
        kind = error.kind
        if isinstance(kind, _Kind.Type):
            if error.instance is None and self._is_optional(error.evaluation_path):
                return "null for a value that may be left out"
            return _coerced(error.instance, kind.types)
        if isinstance(kind, _Kind.AnyOf | _Kind.OneOfNotValid):
            for branch in kind.context:
                inner = branch[0].kind if len(branch) == 1 and branch[0].instance_path == error.instance_path else None
                if isinstance(inner, _Kind.Type) and (coercion := _coerced(branch[0].instance, inner.types)):
                    return coercion
        return None

    def _is_optional(self, path: list[str | int]) -> bool:
        """Does `… properties NAME type` name a property that its object does not require?"""
        if len(path) < 3 or path[-3] != "properties":
            return False
        node: object = self._root
        for key in path[:-3]:
            if key == "$ref" and isinstance(node, dict):
                node = _resolve(self._root, node.get("$ref"))
            elif isinstance(node, dict):
                node = node.get(str(key))
            elif isinstance(node, list) and isinstance(key, int):
                node = node[key]
            else:
                return False
        required = node.get("required") if isinstance(node, dict) else None
        return not isinstance(required, list) or path[-2] not in required


class Schemas:
    """Compiled schemas by the hash of their bytes, least recently used dropped first. One for the whole observer."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Schema] = OrderedDict()
        self._bytes = 0
        self._blamed: OrderedDict[bytes, None] = OrderedDict()
        self.compiled = 0

    def get(self, raw: bytes) -> Schema:
        key = hashlib.sha256(raw).digest()
        schema = self._kept.get(key)
        if schema is not None:
            self._kept.move_to_end(key)
            return schema
        schema = self._kept[key] = Schema(raw)
        self.compiled += 1
        self._bytes += schema.size
        while len(self._kept) > _KEPT or (self._bytes > _KEPT_BYTES and len(self._kept) > 1):
            self._bytes -= self._kept.popitem(last=False)[1].size
        return schema

    def first_blame(self, name: str, raw: bytes) -> bool:
        """True once for each broken schema and tool: a client sends the same ones with each request."""
        key = hashlib.sha256(name.encode("utf-8", "replace") + b"\0" + raw).digest()
        if key in self._blamed:
            return False
        self._blamed[key] = None
        if len(self._blamed) > _KEPT:
            self._blamed.popitem(last=False)
        return True


class _Fan:
    def __init__(self, root: object) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}
        self._open: set[tuple[int, int]] = set()

    def of(self, node: object, depth: int) -> int:
        if not isinstance(node, dict) or depth < 0:
            return 1
        key = (id(node), depth)
        if key in self._known:
            return self._known[key]
        if key in self._open:
            return 0  # a reference to itself at the same value: the library stops there too
        if len(self._known) > _NODES:
            return _POSSIBLE + 1
        self._open.add(key)
        total = 1
        for name in _IN_PLACE_LISTS:
            if isinstance(branches := node.get(name), list):
                total += sum(self.of(branch, depth) for branch in branches)
        for name in _IN_PLACE:
            if name in node:
                total += self.of(node[name], depth)
        if isinstance(dependent := node.get("dependentSchemas"), dict):
            total += sum(self.of(branch, depth) for branch in dependent.values())
        for name in ("$ref", "$dynamicRef", "$recursiveRef"):
            if name in node:
                total += self.of(_resolve(self._root, node[name]), depth)
        if isinstance(properties := node.get("properties"), dict):
            total += max((self.of(child, depth - 1) for child in properties.values()), default=0)
        if isinstance(patterns := node.get("patternProperties"), dict):
            total += sum(self.of(child, depth - 1) for child in patterns.values())
        for name in _CHILDREN:
            if name in node:
                child = node[name]
                total += sum(self.of(item, depth - 1) for item in child) if isinstance(child, list) else self.of(child, depth - 1)
        if isinstance(items := node.get("prefixItems"), list):
            total += max((self.of(child, depth - 1) for child in items), default=0)
        self._open.discard(key)
        self._known[key] = total = min(total, _POSSIBLE + 1)
        return total


def depth_of(value: object) -> int:
    """How deeply lists and objects are nested, 0 for a scalar; stops counting a little past `MAX_DEPTH`."""
    return measure(value)[0]


def measure(value: object) -> tuple[int, int]:
    """Depth and number of values, without recursion."""
    deepest = count = 0
    level = [value]
    while level and deepest <= MAX_DEPTH + 1:
        below: list[object] = []
        nested = False
        for item in level:
            count += 1
            if isinstance(item, dict):
                below.extend(item.values())
                nested = True
            elif isinstance(item, list):
                below.extend(item)
                nested = True
        deepest += nested
        level = below
    return deepest, count


def is_visible(path: list[str | int]) -> bool:
    """Does the constraint at this place of a schema reach the model's template?"""
    at, top = 0, True
    while at < len(path):
        key = path[at]
        if key in ("type", "required", "items") or (key == "$defs" and top) or (key == "enum" and not top):
            return True
        if key == "properties" or (key == "anyOf" and not top):
            at, top = at + 2, False
            continue
        return False
    return True


def _resolve(root: object, reference: object) -> object:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    node = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(key, True)
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return True
    return node


def _without_patterns(node: object) -> object:
    if isinstance(node, dict):
        return {
            key: {} if key == "patternProperties" else _without_patterns(value)
            for key, value in node.items()
            if not (key == "pattern" and isinstance(value, str))
        }
    return [_without_patterns(item) for item in node] if isinstance(node, list) else node


def _coerced(value: object, types: list[str]) -> str | None:
    if isinstance(value, str):
        text = value.strip()
        if ("integer" in types and text.lstrip("+-").isdecimal()) or ("number" in types and _NUMBER.fullmatch(text)):
            return "a number in a string"
        if "boolean" in types and text.lower() in ("true", "false"):
            return "a boolean in a string"
        if "null" in types and text.lower() in ("", "null", "none"):
            return "null in a string"
        if text[:1] in "[{" and len(text) <= 65_536:
            try:
                parsed: object = json.loads(text)
            except (ValueError, RecursionError):
                parsed = None
            if ("array" in types and isinstance(parsed, list)) or ("object" in types and isinstance(parsed, dict)):
                return "JSON in a string"
        if "array" in types:
            return "one value for a list of one"
        return None
    if isinstance(value, bool):
        return "a boolean for a string" if "string" in types else None
    if isinstance(value, int | float):
        if "string" in types:
            return "a number for a string"
        return "one value for a list of one" if "array" in types else None
    return None
