"""Models with tools: one that uses any tools sensibly, one that gets calls wrong in every way there is, one that is mute."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any, Literal, TypeVar, get_args

from probes.sim.gojson import JSON, encode
from probes.sim.personas import Misbehaviour
from probes.sim.policies import Turn
from probes.sim.speech import Call, Said, prose
from probes.sim.tokens import pieces

__all__ = ["KINDS", "BadCalls", "Mute", "ToolUser", "fitting_arguments", "pick"]

T = TypeVar("T")
_READS = ("list", "read", "get", "search", "find", "show", "view", "glob", "grep", "ls", "open", "fetch", "check")
_QUOTED = re.compile(r"[`\"']([^`\"'\n]{1,200})[`\"']")
_PATH = re.compile(r"(?<![\w.])(?:[\w.-]+/)*[\w-]+\.\w{1,6}\b")


def pick(items: Sequence[T], rng: Random) -> T:
    return items[rng.randrange(len(items))]


def fitting_arguments(schema: JSON, turn: Turn, rng: Random) -> dict[str, Any]:
    """An object that the schema allows, filled from what the conversation mentions where that fits."""
    if not isinstance(schema, dict):
        return {}
    wanted = schema.get("required")
    properties = schema.get("properties") or {}
    names = wanted if isinstance(wanted, list) and wanted else list(properties)[:1]
    return {name: fitting(properties.get(name) or {}, name, turn, rng) for name in names}


def fitting(schema: JSON, name: str, turn: Turn, rng: Random, depth: int = 0) -> JSON:
    if not isinstance(schema, dict) or depth > 6:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return fitting(schema[union][0], name, turn, rng, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    match kind:
        case "integer" | "number":
            mentioned = re.search(r"\d+", turn.user)
            low, high = schema.get("minimum", 1), schema.get("maximum", 1_000_000)
            value = int(mentioned[0][:6]) if mentioned else 1
            return max(low, min(high, value))
        case "boolean":
            return True
        case "null":
            return None
        case "array":
            return [
                fitting(schema.get("items") or {}, name, turn, rng, depth + 1) for _ in range(max(1, schema.get("minItems", 1)))
            ]
        case "object":
            inner = schema.get("properties") or {}
            return {
                key: fitting(inner.get(key) or {}, key, turn, rng, depth + 1) for key in schema.get("required") or list(inner)[:1]
            }
    return _string(schema, name, turn, rng)


def _string(schema: dict[str, Any], name: str, turn: Turn, rng: Random) -> str:
    lower = name.lower()
    seen = turn.user + "\n" + "\n".join(m.content for m in turn.results)
    if "path" in lower or "file" in lower:
        found = _PATH.findall(seen)
        text = found[-1] if found else "README.md"
    elif "command" in lower or lower in ("cmd", "script"):
        text = "ls"
    elif "url" in lower or "uri" in lower:
        text = "http://127.0.0.1/"
    else:
        quoted = _QUOTED.findall(turn.user)
        capital = re.findall(r"(?<=[a-z] )[A-Z][a-z]+", turn.user)
        text = quoted[0] if quoted else capital[0] if capital else "".join(prose(3, rng)).strip()
    text = text.ljust(schema.get("minLength", 0), "x")
    longest = schema.get("maxLength")
    return text[:longest] if isinstance(longest, int) else text


class ToolUser:
    """Uses whatever tools are offered: `calls` calls one after the other, readings first, then an answer from the results.

    A tool that the user names is used first. A failed result is tried again once with the same arguments.
    """

    def __init__(self, *, calls: int = 2, parallel: int = 1, answer_tokens: int = 40) -> None:
        if calls < 0 or parallel < 1:
            raise ValueError("calls is at least 0 and parallel at least 1")
        self._calls = calls
        self._parallel = parallel
        self._answer_tokens = answer_tokens

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        functions = self._ordered(turn)
        if not functions or turn.turns >= self._calls:
            if not turn.results:
                return None
            last = " ".join(turn.results[-1].content.split())[:80]
            closing = pieces(f"The last tool said: {last or 'nothing'}. ")
            return Said([*closing, *prose(self._answer_tokens, rng)], note="tool user: answers")
        start = turn.turns * self._parallel
        chosen = [functions[(start + n) % len(functions)] for n in range(self._parallel)]
        calls = [Call(f["name"], encode(fitting_arguments(f["parameters"], turn, rng))) for f in chosen]
        return Said(pieces("Let me look at that."), calls=calls, note=f"tool user: call {turn.turns + 1} of {self._calls}")

    @staticmethod
    def _ordered(turn: Turn) -> list[dict[str, Any]]:
        def rank(function: dict[str, Any]) -> tuple[int, int]:
            name = function["name"]
            named = re.search(rf"\b{re.escape(name)}\b", turn.user) is not None
            return (0 if named else 1, 0 if name.lower().startswith(_READS) else 1)

        return sorted(turn.functions, key=rank)


class Mute:
    """Says nothing at all: one end-of-sequence token."""

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        return Said(note="mute")


Kind = Literal[
    "unknown", "invented", "bad_json", "missing_required", "wrong_type", "extra_property", "enum", "hidden", "coercible",
    "not_offered", "leaked_hermes", "leaked_json", "leaked_function", "leaked_mistral", "leaked_harmony", "leaked_fence",
    "swallowed", "parser_error", "parser_error_late", "no_call",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)


class BadCalls:
    """Each answer is one wrong call. `kinds` are gone through in order; a user message that says `kind:NAME` chooses.

    A kind that the offered tools do not allow (an enum where there is none) falls back to `unknown`. The truth log's note
    says which kind it really was.
    """

    def __init__(self, *, kinds: Sequence[str] = KINDS) -> None:
        unknown = [k for k in kinds if k not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"kinds are some of {', '.join(KINDS)}")
        self._kinds = tuple(kinds)
        self._next = 0

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        chosen = re.search(r"\bkind:(\w+)", turn.user)
        if chosen and chosen[1] in KINDS:
            kind = chosen[1]
        else:
            kind = self._kinds[self._next % len(self._kinds)]
            self._next += 1
        functions = turn.functions
        if not functions:
            note = "bad call: not_offered"
            return Said(calls=[Call("run_shell", '{"command":"ls"}')], note=note)
        function = pick(functions, rng)
        arguments = fitting_arguments(function["parameters"], turn, rng)
        said = self._said(kind, function, arguments, rng) or self._said("unknown", function, arguments, rng)
        assert said is not None
        said.note = said.note or f"bad call: {kind}"
        return said

    def _said(self, kind: str, function: dict[str, Any], arguments: dict[str, Any], rng: Random) -> Said | None:
        name = function["name"]
        good = encode(arguments)
        match kind:
            case "unknown":
                return Said(calls=[Call(_misspelt(name), good)], note="bad call: unknown")
            case "invented" | "not_offered":
                return Said(calls=[Call("apply_hotfix_everywhere", good)])
            case "bad_json":
                return Said(calls=[Call(name, good.rstrip("}") + ',"path":')])
            case "swallowed":
                return Said(prose(30, rng), misbehaviour=Misbehaviour(swallow=True))
            case "parser_error" | "parser_error_late":
                raw = f"error parsing tool call: raw='{good[:-1]}', err=unexpected end of JSON input"
                if kind == "parser_error":
                    return Said(misbehaviour=Misbehaviour(error_before=raw))
                return Said(prose(60, rng), misbehaviour=Misbehaviour(error_after=12, error_text=raw))
            case "no_call":
                return Said(pieces("I will call the tool now."))
        if kind.startswith("leaked_"):
            return Said(pieces(_leaked(kind, name, arguments)))
        changed = _violated(kind, function["parameters"], arguments)
        return None if changed is None else Said(calls=[Call(name, encode(changed))])


def _misspelt(name: str) -> str:
    return name.replace("_", "-") if "_" in name else name + "s"


def _leaked(kind: str, name: str, arguments: dict[str, Any]) -> str:
    """The call as text, as families of models write it when the server's parser does not catch it."""
    call = encode({"name": name, "arguments": arguments})
    match kind:
        case "leaked_hermes":
            return f"<tool_call>\n{call}\n</tool_call>"
        case "leaked_function":
            inner = "".join(
                f"<parameter={k}>\n{v if isinstance(v, str) else encode(v)}\n</parameter>\n" for k, v in arguments.items()
            )
            return f"<function={name}>\n{inner}</function>"
        case "leaked_mistral":
            return f"[TOOL_CALLS][{call}]"
        case "leaked_harmony":
            return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{encode(arguments)}<|call|>"
        case "leaked_fence":
            return f"```json\n{call}\n```"
    return call


def _violated(kind: str, schema: JSON, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments that break the schema in just this way; None where the schema gives no handle for it."""
    properties = schema.get("properties") or {} if isinstance(schema, dict) else {}
    required = [n for n in (schema.get("required") or []) if n in arguments] if isinstance(schema, dict) else []

    def first(test: Any) -> str | None:
        return next((n for n, s in properties.items() if isinstance(s, dict) and test(s)), None)

    if kind == "missing_required" and required:
        return {k: v for k, v in arguments.items() if k != required[0]}
    if kind == "wrong_type" and arguments:
        key = next(iter(arguments))
        return {**arguments, key: {"value": arguments[key]}}
    if kind == "extra_property":
        return {**arguments, "confidence": 0.9}
    if kind == "enum" and (name := first(lambda s: s.get("enum"))):
        return {**arguments, name: "something-else"}
    if kind == "coercible" and (name := first(lambda s: s.get("type") in ("integer", "number", "boolean"))):
        return {**arguments, name: "true" if properties[name].get("type") == "boolean" else "3"}
    if kind == "hidden" and (name := first(lambda s: any(k in s for k in _HIDDEN))):
        s = properties[name]
        if "maximum" in s:
            return {**arguments, name: s["maximum"] + 1}
        if "minimum" in s:
            return {**arguments, name: s["minimum"] - 1}
        return {**arguments, name: "" if s.get("minLength") else "~" * (s.get("maxLength", 40) + 1)}
    return None


_HIDDEN = ("maximum", "minimum", "pattern", "minLength", "maxLength")
"""Keywords that the server keeps from the model: it renders names, types, descriptions and enums only."""
