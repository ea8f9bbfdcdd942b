"""Judges every tool call of an answer: is it one that was offered, is it JSON, does it fit the schema, did it leak as text?

Rules that hold here:

- The names of this request's tools are the truth; a past request's are not.
- A violation that the model could not see (`schemas.is_visible`) is told with `visible: false` and is only a suspicion: the
  client may still refuse the call. If a lenient reader would understand every wrong value, the finding is `tool.coercible`.
- Leaks are told when the answer ends, because a structured call of the same name withdraws them. They are looked for in the
  answer's text, not in its thinking, and only if the request offered tools: prompted agents write calls as text on purpose.
- What could not be judged (too large, too deep, a pattern that gave up) is `None` in `verdicts`, and no finding.

After the answer, `verdicts` holds one entry per call, for the record and the league table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

from qm_proxy.detect.leaks import BODY, OPENER, Leak, is_quoted, leaks_at, whole_content_leaks
from qm_proxy.detect.schemas import ARGUMENT_BYTES, MAX_DEPTH, Schemas, measure
from qm_proxy.detect.shape import fence_after
from qm_proxy.events import (
    Asked,
    Began,
    Cut,
    Event,
    Failed,
    Finished,
    OfferedTool,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    Usage,
)
from qm_proxy.findings import EXCERPT_CHARACTERS, Finding, Severity

__all__ = ["ToolSchema", "Verdict", "nearest_name"]

_SCAN = 256  # characters of text between two looks for openers
_OVERLAP = 96  # longest opener
_WHOLE = 16_384  # an answer up to this long may be one call as a whole
_MAX_CALLS = 256  # judged in one answer
_MAX_FINDINGS = 32  # about the calls of one answer; `verdicts` go on
_MAX_LEAKS = 4
_MAX_OPENERS = 4_096  # looked at in one answer: more is noise, or malice
_MAX_BLAMED = 256  # offered schemas looked at when the answer begins
_SWALLOWED_TOKENS = 8
_NEAR_NAMES = 2_000
_PARSER = re.compile(
    r"(?:pars\w+|invalid|malformed|unmarshal\w*).{0,60}tool[ _-]?calls?"
    r"|tool[ _-]?calls?.{0,80}(?:pars|invalid|malformed|unmarshal|unexpected)",
    re.IGNORECASE | re.DOTALL,
)


class Verdict(NamedTuple):
    """One call judged. `valid` is `None` when it could not be; `problems` are "keyword at /pointer"."""

    call_index: int
    call_id: str
    name: str
    valid: bool | None
    problems: list[str]


class ToolSchema:
    """One exchange's judge. `schemas` is shared by all exchanges."""

    def __init__(self, asked: Asked | None, schemas: Schemas) -> None:
        self.verdicts: list[Verdict] = []
        self._asked = asked
        self._schemas = schemas
        tools = asked.tools if asked is not None else ()
        self._offered: dict[str, OfferedTool] = {tool.name: tool for tool in tools}
        self._choice = asked.tool_choice if asked is not None else None
        self._calls = 0
        self._told = 0
        self._called: set[str] = set()
        self._output_tokens: int | None = None
        self._payload = False  # anything at all arrived
        self._scanner = _Scanner(self._offered) if tools else None

    def see(self, event: Event) -> Iterable[Finding]:
        match event:
            case TextDelta() | ThinkingDelta():
                self.said(type(event), [event.text])
            case ToolCall():
                self._payload = True
                found = self._judge(event)[: _MAX_FINDINGS - self._told]
                self._told += len(found)
                return found
            case Began():
                return self._blame(event.t_ns)
            case Usage():
                if event.output_tokens is not None and not event.estimated:
                    self._output_tokens = event.output_tokens
            case Failed():
                return self._failed(event)
            case Finished() | Cut():
                return self._end(event)
        return ()

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        self._payload = True
        if kind is TextDelta and self._scanner is not None:
            self._scanner.feed("".join(pieces))

    # --- a structured call

    def _judge(self, call: ToolCall) -> list[Finding]:
        self._calls += 1
        self._called.add(call.name)
        if self._calls > _MAX_CALLS or self._asked is None:
            return []
        evidence: dict[str, object] = {"tool": call.name[:128], "index": call.index}
        if not self._offered:
            return [
                self._say(
                    "tool.not_offered",
                    "violation",
                    f"The model called {_q(call.name)}, but the request offers no tools.",
                    call,
                    evidence,
                )
            ]
        found: list[Finding] = []
        if self._choice == "none":
            says = f"The model called {_q(call.name)} although the request's tool_choice is none."
            found.append(self._say("tool.choice", "violation", says, call, {**evidence, "tool_choice": "none"}))
        elif self._choice in self._offered and call.name != self._choice:
            says = f"The request demands the tool {_q(str(self._choice))}; the model called {_q(call.name)}."
            found.append(self._say("tool.choice", "suspect", says, call, {**evidence, "tool_choice": self._choice}))
        if self._calls == 2 and (self._asked.options or {}).get("parallel_tool_calls") is False:
            says = "The model made several calls although the request allows one at a time."
            found.append(self._say("tool.choice", "suspect", says, call, {**evidence, "parallel_tool_calls": False}))
        tool = self._offered.get(call.name)
        if tool is None:
            found.append(self._unknown(call, evidence))
        elif tool.kind == "function":
            found += self._arguments(call, tool, evidence)
        return found

    def _unknown(self, call: ToolCall, evidence: dict[str, object]) -> Finding:
        nearest = nearest_name(call.name, self._offered)
        evidence |= {"nearest": nearest, "offered": len(self._offered)}
        self._verdict(call, False, ["unknown tool"])
        says = f"The model called {_q(call.name)}, which is none of the {len(self._offered)} offered tools"
        return self._say("tool.unknown", "violation", says + (f"; {_q(nearest)} is near." if nearest else "."), call, evidence)

    def _arguments(self, call: ToolCall, tool: OfferedTool, evidence: dict[str, object]) -> list[Finding]:
        schema = self._schemas.get(tool.parameters) if tool.parameters is not None else None
        text = call.arguments
        if len(text) > ARGUMENT_BYTES:
            self._verdict(call, None, [])
            return []
        if not text.strip() and (schema is None or not schema.requires_something()):
            text = "{}"
        try:
            arguments: object = json.loads(text, parse_constant=_refuse)
        except RecursionError:
            self._verdict(call, None, [])
            return []
        except ValueError as error:
            return [self._bad_json(call, evidence, "it is empty" if not text.strip() else _why(error))]
        if not isinstance(arguments, dict):
            return [self._bad_json(call, evidence, f"it is {_kind(arguments)}, not an object")]
        if schema is None:
            self._verdict(call, True, [])
            return []
        depth, values = measure(arguments)
        problems = schema.problems(arguments, depth, values) if depth <= MAX_DEPTH else None
        if problems is None:
            self._verdict(call, None, [])
            return []
        self._verdict(call, not problems, [f"{problem.keyword} at {problem.pointer or '/'}" for problem in problems])
        if not problems:
            return []
        evidence["problems"] = [{"pointer": p.pointer, "keyword": p.keyword, "visible": p.visible} for p in problems]
        first = problems[0]
        where = f"at {first.pointer}" if first.pointer else "as a whole"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        if all(problem.coercion for problem in problems):
            evidence["coercions"] = [problem.coercion for problem in problems]
            says = f"do not fit its schema {where}, but a lenient client reads them: {first.coercion}{more}"
            return [self._say("tool.coercible", "info", f"The arguments of {_q(call.name)} {says}.", call, evidence)]
        if any(problem.visible for problem in problems):
            says = f"violate its schema {where}: {first.keyword}{more}"
            return [self._say("tool.schema", "violation", f"The arguments of {_q(call.name)} {says}.", call, evidence)]
        says = f"violate {first.keyword} {where}, which Ollama does not show to the model{more}"
        return [self._say("tool.schema", "suspect", f"The arguments of {_q(call.name)} {says}.", call, evidence)]

    def _bad_json(self, call: ToolCall, evidence: dict[str, object], why: str) -> Finding:
        evidence |= {"reason": why, "argument_characters": len(call.arguments), "excerpt": call.arguments[:EXCERPT_CHARACTERS]}
        self._verdict(call, False, ["not a JSON object"])
        return self._say(
            "tool.bad_json", "violation", f"The arguments of {_q(call.name)} are no JSON object: {why}.", call, evidence
        )

    def _verdict(self, call: ToolCall, valid: bool | None, problems: list[str]) -> None:
        self.verdicts.append(Verdict(call.index, call.call_id, call.name, valid, problems))

    @staticmethod
    def _say(kind: str, severity: Severity, summary: str, event: Event, evidence: dict[str, object]) -> Finding:
        return Finding(kind, severity, summary, event.t_ns, dict(evidence))  # type: ignore[arg-type]

    # --- the client's schemas, and the server's parser

    def _blame(self, t_ns: int) -> list[Finding]:
        """Broken schemas among the offered tools, each told once for all exchanges."""
        found: list[Finding] = []
        for tool in list(self._offered.values())[:_MAX_BLAMED]:
            if tool.kind != "function" or tool.parameters is None:
                continue
            schema = self._schemas.get(tool.parameters)
            if schema.fault is not None and self._schemas.first_blame(tool.name, tool.parameters):
                says = f"The client offers {_q(tool.name)} with a schema that is none: {schema.fault}. Its calls are not judged."
                found.append(Finding("tool.bad_schema", "info", says, t_ns, {"tool": tool.name[:128], "reason": schema.fault}))
        return found

    def _failed(self, event: Failed) -> list[Finding]:
        if not _PARSER.search(event.message[:2_000]):
            return []
        says = "Ollama could not parse the model's tool call and ended the answer with an error."
        evidence: dict[str, object] = {"status": event.status, "excerpt": event.message[:EXCERPT_CHARACTERS]}
        return [Finding("tool.parser_error", "violation", says, event.t_ns, evidence)]

    # --- the end

    def _end(self, event: Finished | Cut) -> list[Finding]:
        found: list[Finding] = []
        if self._scanner is not None:
            for leak, excerpt in self._scanner.end(self._called, self._asked):
                found.append(self._leaked(leak, excerpt, event))
        if isinstance(event, Cut) or not self._offered:
            return found
        limited = event.reason in ("length", "max_tokens", "max_output_tokens")
        if self._calls == 0 and not found and not limited and (self._choice == "required" or self._choice in self._offered):
            wanted = "a tool call" if self._choice == "required" else f"a call of {_q(str(self._choice))}"
            says = f"The request demands {wanted}; the answer has none."
            found.append(Finding("tool.choice", "suspect", says, event.t_ns, {"tool_choice": self._choice}))
        if not self._payload and (self._output_tokens or 0) >= _SWALLOWED_TOKENS:
            says = (
                f"The model wrote {self._output_tokens} tokens and nothing of them arrived: the server's parser swallowed them."
            )
            found.append(Finding("tool.swallowed", "suspect", says, event.t_ns, {"output_tokens": self._output_tokens}))
        return found

    def _leaked(self, leak: Leak, excerpt: str, event: Event) -> Finding:
        declared = leak.name in self._offered
        evidence: dict[str, object] = {"family": leak.family, "tool": leak.name[:128], "declared": declared, "excerpt": excerpt}
        says = f"A call of {_q(leak.name)} stands in the answer's text instead of being made ({leak.family} style)"
        if not declared:
            nearest = nearest_name(leak.name, self._offered)
            evidence["nearest"] = nearest
            says += ", and no such tool is offered" + (f"; {_q(nearest)} is near" if nearest else "")
        return Finding("tool.leaked", "violation" if declared else "suspect", says + ".", event.t_ns, evidence)


class _Scanner:
    """Looks for leaked calls in the text as it grows; keeps a tail, the beginning, and what it found."""

    def __init__(self, names: dict[str, OfferedTool]) -> None:
        self._names = names
        self._pending: list[str] = []
        self._size = 0
        self._tail = ""  # text already searched for openers, its end maybe not
        self._open: int | None = None  # where in `_tail` an opener waits for its body
        self._before = 0  # characters dropped in front of `_tail`
        self._head = ""
        self._total = 0
        self._openers = 0
        self._fence = ""  # the code fence that is open where `_tail` begins
        self._found: dict[tuple[str, str], tuple[Leak, bool, bool, str]] = {}

    def feed(self, text: str) -> None:
        self._pending.append(text)
        self._size += len(text)
        if self._size >= _SCAN:
            self._scan(last=False)

    def end(self, called: set[str], asked: Asked | None) -> list[tuple[Leak, str]]:
        self._scan(last=True)
        told: list[tuple[Leak, str]] = []
        if not self._found and 0 < self._total <= _WHOLE and not called:
            for leak in whole_content_leaks(self._head, self._names):
                told.append((leak, self._head.strip()[:EXCERPT_CHARACTERS]))
        for leak, fenced, quoted, excerpt in self._found.values():
            rest = self._rest_after(leak.at)
            if leak.name in called or quoted or (fenced and not rest):
                continue
            if leak.name not in self._names and not rest:
                continue  # talk about calls, more likely than a call
            if asked is not None and _stood_in_request(asked, excerpt):
                continue
            told.append((leak, excerpt))
        return told[:_MAX_LEAKS]

    def _scan(self, *, last: bool) -> None:
        new = "".join(self._pending)
        self._pending.clear()
        self._size = 0
        self._total += len(new)
        if len(self._head) < _WHOLE:
            self._head = (self._head + new)[: _WHOLE + 1]
        text = self._tail + new
        start = self._open if self._open is not None else max(len(self._tail) - _OVERLAP, 0)
        self._open = None
        while (opener := OPENER.search(text, start)) is not None:
            at = opener.start()
            xml = opener["xml"]
            if (xml is not None and xml not in self._names) or self._openers >= _MAX_OPENERS:
                start = at + 1 if xml is not None else opener.end()
                continue
            if not last and len(text) - at < BODY:
                self._open = at  # its body may still come
                break
            self._openers += 1
            leak = next(leaks_at(text, at, self._names), None)
            if leak is not None:
                self._note(text, leak)
            start = max(opener.end(), at + 1)
        keep = len(text) - 2 * BODY if self._open is None else min(self._open - 512, len(text) - 2 * BODY)
        if keep > 0:
            keep = text.rfind("\n", 0, keep) + 1 or keep
            self._fence = fence_after(text[:keep], self._fence)
            self._before += keep
            if self._open is not None:
                self._open -= keep
            text = text[keep:]
        self._tail = text

    def _note(self, text: str, leak: Leak) -> None:
        key = (leak.family, leak.name)
        if key in self._found or len(self._found) >= 4 * _MAX_LEAKS:
            return
        fenced = bool(fence_after(text[: leak.at], self._fence))
        quoted = is_quoted(text, leak.at, fenced=fenced, last=True)
        excerpt = text[leak.at : leak.at + EXCERPT_CHARACTERS]
        self._found[key] = (leak._replace(at=self._before + leak.at), fenced, quoted, excerpt)

    def _rest_after(self, at: int) -> bool:
        """Does nothing but the call itself (and further calls, closers, a fence's end) follow?"""
        text = self._tail[max(at - self._before, 0) :]
        end = max(text.rfind(mark) for mark in ("}", ">", ")", "]", "`"))
        return len(text) - end - 1 <= 8 if end >= 0 else False


def _stood_in_request(asked: Asked, excerpt: str) -> bool:
    """Is the model quoting? Looked up only when something leaked."""
    needle = excerpt[:64]
    return any(needle in message.text for message in asked.messages if message.role in ("user", "tool"))


def nearest_name(name: str, offered: Iterable[str]) -> str | None:
    """The offered name that was probably meant: equal but for case, separators or a namespace, or at most two edits away."""
    folded, short = _folded(name), _folded(re.split(r"[.:/]|__", name)[-1])
    best: str | None = None
    fewest = 3
    for count, other in enumerate(offered):
        if count >= _NEAR_NAMES:
            break
        bare = _folded(other)
        if bare == folded:
            return other
        if bare and (bare == short or _folded(re.split(r"[.:/]|__", other)[-1]) == folded):
            best, fewest = other, 0
        elif fewest and abs(len(bare) - len(folded)) < fewest and len(folded) <= 64 and len(folded) >= 4:
            edits = _edits(folded, bare, fewest)
            if edits < fewest:
                best, fewest = other, edits
    return best


def _folded(name: str) -> str:
    return re.sub(r"[\s_.\-:/]", "", name[:256]).casefold()


def _edits(a: str, b: str, limit: int) -> int:
    """Edit distance with neighbouring letters swapped counted as one (Damerau, optimal alignment); `limit` when not below it."""
    two: list[int] = []
    one = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            value = min(one[j] + 1, row[-1] + 1, one[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                value = min(value, two[j - 2] + 1)
            row.append(value)
        if min(row) >= limit and min(one) >= limit:
            return limit
        two, one = one, row
    return min(one[-1], limit)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _why(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:80].lower()} at character {error.pos}"
    return str(error)[:80]


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _q(name: str) -> str:
    return f"“{name[:64]}”"
