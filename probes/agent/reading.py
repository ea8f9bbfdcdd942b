"""What a model's answer means as moves in the world: calls, no call, or something meant as a call that cannot be read.

Native answers carry calls of their own; everything in their text is prose, or a call in a dialect the server did not
understand. On the prompt path the text must hold one JSON object. Foreign dialects: see the research note on leaked calls
(openers of Hermes, Llama, Mistral, DeepSeek, GLM, harmony, Gemma, Cohere, LFM2, Kimi and ReAct templates).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal

from probes.ask import ENDED, Answer
from qm_proxy.detect.token_loop import TokenLoop
from qm_proxy.events import TextDelta, ThinkingDelta

__all__ = ["EXCERPT", "Move", "Reading", "read_turn"]

EXCERPT: Final = 160
"""How much of a model's prose a transcript's step keeps."""

Sort = Literal["calls", "no_call", "malformed", "infra", "timeout", "overflow"]
SubSort = Literal[
    "AnsweredInProse",
    "ThinkingAloud",
    "EmptyOutput",
    "ThinkingExhausted",
    "CutShort",
    "TokenLoop",
    "BrokenJson",
    "ForeignDialect",
    "ParserError",
]

_FOREIGN = re.compile(
    r"<tool_call>|</tool_call>|<function=\w|<\|python_tag\|>|\[TOOL_CALLS\]|<[|｜]tool[▁_]calls?|<\|channel\|>|to=functions\.|"
    r"<start_function_call>|<\|START_ACTION\|>|<\|tool_call_start\|>|<function_calls>|<invoke name=|<\|action_start\|>|"
    r"<\|tool_calls_section_begin\|>|functools\[|```tool_code|^\s*Action:\s*\w+|DSML",
    re.MULTILINE,
)
_NAME_KEYS = ("name", "tool", "function", "tool_name")
_ARGUMENT_KEYS = ("arguments", "args", "parameters", "input")
_REPEATS = 31
_DEEPEST = 64
_LARGEST = 1_000_000
"""Characters of text that are searched for a call; a longer answer is read up to here."""


@dataclass(slots=True)
class Move:
    """One call as the model made it. `arguments` is `None` when what it gave for them is no JSON object."""

    name: str
    arguments: dict[str, object] | None
    call_id: str = ""
    raw: str = ""


@dataclass(slots=True)
class Reading:
    """One turn, read."""

    sort: Sort
    moves: list[Move] = field(default_factory=list)
    sub: SubSort | None = None
    detail: str = ""
    text: str = ""


def read_turn(answer: Answer, *, native: bool, offered: Collection[str]) -> Reading:
    """Read a turn. Whatever came, the answer is a `Reading`; infrastructure is told apart from what the model did."""
    if (trouble := _trouble(answer)) is not None:
        return trouble
    text, thinking = _text(answer.text[:_LARGEST]), _text(answer.thinking[-_LARGEST:])
    if native and answer.calls:
        moves = [_move(call.name, call.arguments, call.call_id) for call in answer.calls]
        return Reading("calls", moves, text=text)
    cut = answer.finished is not None and answer.finished.reason == "length"
    if not text.strip():
        return _empty(thinking, cut)
    found = _calls_in(text)
    if not native and found:
        return Reading("calls", found, text=text)
    if not native and (broken := _broken_json(text)):
        return Reading("malformed", sub="BrokenJson", detail=broken, text=text)
    if _FOREIGN.search(text) or (native and any(move.name in offered for move in found)):
        return Reading("malformed", sub="ForeignDialect", detail=text[:EXCERPT], text=text)
    if native and text.lstrip().startswith("{") and (broken := _broken_json(text)):
        return Reading("malformed", sub="BrokenJson", detail=broken, text=text)
    aloud = re.match(r"\s*<think>", text) is not None
    sub: SubSort = "CutShort" if cut else "ThinkingAloud" if aloud else "AnsweredInProse"
    sub = "TokenLoop" if _loops(answer) else sub
    return Reading("no_call", sub=sub, detail=text[:EXCERPT], text=text)


def _trouble(answer: Answer) -> Reading | None:
    if (failed := answer.failed) is not None and failed.n_ctx is not None:
        return Reading("overflow", detail=f"{failed.n_prompt_tokens} prompt tokens in a window of {failed.n_ctx}")
    if answer.ok and (answer.finished is not None or not answer.events):
        return None
    error = answer.error or ENDED.get(answer.ending) or f"the answer ended as {answer.ending} without its last record"
    lowered = error.lower()
    if "tool call" in lowered and ("pars" in lowered or "invalid" in lowered):
        return Reading("malformed", sub="ParserError", detail=error[:EXCERPT])
    if "exceed" in lowered and "context" in lowered:
        return Reading("overflow", detail=error[:EXCERPT])
    if error.startswith("not finished within") and answer.events:
        return Reading("timeout", detail=error)
    if answer.error is None and _repeats_at_end(answer):
        return Reading("no_call", sub="TokenLoop", detail=_text(answer.text[-EXCERPT:]))
    return Reading("infra", detail=error[:EXCERPT])


def _loops(answer: Answer) -> bool:
    """Does the detector of live traffic call what was said a loop? The same question, so the same rule.

    Thinking that filled its budget stays `ThinkingExhausted`, whatever it went round: the budget is to blame first."""
    watch = TokenLoop()
    said = (event for event in answer.events if not isinstance(event, ThinkingDelta))
    return any(finding.severity == "violation" for event in said for finding in watch.see(event))


def _repeats_at_end(answer: Answer) -> bool:
    """The server ends a stream without its last record when one piece came more than 30 times: the model's fault, not its."""
    pieces = [event.text for event in answer.events if isinstance(event, (TextDelta, ThinkingDelta))][-_REPEATS:]
    return len(pieces) == _REPEATS and len(set(pieces)) == 1


def _empty(thinking: str, cut: bool) -> Reading:
    if cut:
        sub: SubSort = "ThinkingExhausted" if thinking.strip() else "CutShort"
        return Reading("no_call", sub=sub, detail=thinking[-EXCERPT:])
    return Reading("no_call", sub="EmptyOutput", detail=thinking[:EXCERPT])


def _move(name: str, raw: str, call_id: str) -> Move:
    arguments: object
    try:
        arguments = json.loads(raw, parse_constant=_refuse) if raw.strip() else {}
        if isinstance(arguments, str):  # a JSON string that holds the object: some templates encode twice
            arguments = json.loads(arguments, parse_constant=_refuse)
        arguments = _clean(arguments)
    except (ValueError, RecursionError):
        arguments = None
    return Move(_text(name), arguments if isinstance(arguments, dict) else None, call_id, _text(raw))


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _text(text: str) -> str:
    """Half a surrogate pair cannot be sent back; it becomes a replacement character."""
    return text.encode("utf-8", "replace").decode()


def _clean(value: object, depth: int = 0) -> object:
    """A value that can go back over the wire as it is. Raises ValueError for one that cannot."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(key): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number beyond all bounds")
    return value


def _calls_in(text: str) -> list[Move]:
    """Every call-shaped JSON value in a text, outermost first."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    moves: list[Move] = []
    at, tries = 0, 0
    while (start := _next_bracket(text, at)) >= 0 and tries < 200:
        tries += 1
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
            continue
        for item in value if isinstance(value, list) else [value]:
            if (move := _call_of(item)) is not None:
                moves.append(move)
    return moves


def _next_bracket(text: str, at: int) -> int:
    places = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
    return min(places, default=-1)


def _call_of(value: object) -> Move | None:
    if not isinstance(value, dict):
        return None
    if isinstance(inner := value.get("function"), dict):
        value = inner
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    if name is None:
        return None
    key = next((key for key in _ARGUMENT_KEYS if key in value), None)
    arguments = value[key] if key is not None else {}
    if isinstance(arguments, str):
        return _move(name, arguments, "")
    try:
        cleaned = _clean(arguments)
    except ValueError:
        cleaned = None
    return Move(_text(name), cleaned if isinstance(cleaned, dict) else None, "", _text(str(arguments)[:2000]))


def _broken_json(text: str) -> str | None:
    """A text that opens an object with a tool's name in it and never makes JSON: quoted up to where reading stopped."""
    start = text.find("{")
    if start < 0 or not re.search(r"[\"'](?:name|tool|function)[\"']\s*:", text[start : start + 2000]):
        return None
    return text[start : start + EXCERPT]
