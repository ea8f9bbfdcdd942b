"""A request's history → turns that can be compared: what was called, what came back, what was said.

Rules that hold here:

- Two calls are the same if name and arguments mean the same: keys in any order, 1.0 and 1, blanks, and keys that clients add
  for show (`_VOLATILE`) make no difference.
- Two results are the same if they differ only in times, durations, ids, addresses and temporary paths (`_MASK`).
- Only hashes and small bags of words are kept, never texts. What was read once is remembered by the hash of its text, because a
  session sends its whole history with each request.
- A user's words begin something new; the same words as before do not (harnesses nudge with one fixed sentence).
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from qm_proxy.events import Message

__all__ = ["Call", "Step", "Turn", "User", "Waiting", "Workbook", "similar", "trigrams"]

HISTORY = 256
"""Messages of a request that are looked at, from its end."""

_KNOWN = 16_384
_RESULT = 32_768  # characters of a result, from each end
_SAID = 8_192
_BAG = 64
_SHOWN = ("description", "explanation", "reason", "reasoning", "thought", "thoughts", "task_progress", "summary")
_NUMBERED = ("justification", "toolcallid", "tool_call_id", "call_id", "request_id", "security_risk", "requires_approval")
_VOLATILE = frozenset(_SHOWN + _NUMBERED)
_MASK = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"  # dates and instants
    r"|\b\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?(?:\s?[AP]M)?\b"  # clock times
    r"|\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+\d{1,2}\s+[A-Z][a-z]{2}\s+\d{4}"
    r"|\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"  # UUIDs
    r"|\b0x[0-9a-fA-F]{4,16}\b|\b(?=[0-9a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,64}\b"  # addresses, hashes
    r"|\b\d+(?:\.\d+)?\s?(?:ns|us|µs|ms|s|sec|secs|seconds?|min|mins|minutes?)\b"  # durations
    r"|\b(?:call|req|request|run|trace|msg|job)[_-][A-Za-z0-9]{6,}\b"
    r"|/tmp/[^\s'\"]+|/var/folders/[^\s'\"]+"
    r"|\b1[5-9]\d{8}(?:\d{3})?(?:\.\d+)?\b"  # Unix times
)
_ERROR = re.compile(
    r"\s*(?:<[a-z_]{1,24}>\s*)?(?:\[?(?:fatal |tool |syntax |type |value )?error\b|traceback \(most recent|exception\b|fatal:"
    r"|failed\b|failure\b|permission denied|command not found|no such file|cannot |could not |unable to |not found\b|invalid "
    r"|denied\b|timed? ?out\b|(?:http[ /\d.]*)?[45]\d\d\b|(?:process )?exited? (?:with )?(?:code|status)[: ]+[1-9]"
    r"|exit code:? [1-9])",
    re.I,
)
_ERROR_INSIDE = re.compile(
    r'"(?:is_?error|error)"\s*:\s*(?:true|"[^"]|\{)|\bexit(?:ed)?[ _](?:with )?(?:code|status)"?[: ]+[1-9]'
    r"|command not found|No such file or directory",
    re.I,
)
_READS = re.compile(
    r"read|get|list|search|grep|glob|find|view|status|poll|fetch|show|cat|open|query|lookup|describe|inspect|browse|ls|check",
    re.I,
)
_WRITES = re.compile(
    r"write|edit|create|update|delete|remove|insert|replace|patch|apply|move|rename|send|post|put|commit|save|set|add|install",
    re.I,
)
_POLLS = re.compile(
    r"poll|wait|sleep|scroll|task_?list|status|progress|ready|health|watch|tail|heartbeat|ping|job|queue|await|refresh|next|more"
    r"|check_\w+",
    re.I,
)
_SHELL = re.compile(r"bash|shell|exec|terminal|command|run", re.I)
_SHELL_WRITES = re.compile(
    r"(?:^|[;&|]\s*|\b)(?:rm|mv|cp|mkdir|touch|tee|sed -i|pip|npm|apt|make|patch"
    r"|git (?:add|commit|checkout|apply|stash|reset|merge|pull|push))\b|(?<![-=2&])>{1,2}(?!\s*(?:&|/dev/null))"
)
_SHELL_POLLS = re.compile(r"\b(?:sleep|watch|wait|until|poll|health\w*|ready|status|pods|ping)\b", re.I)
_NOT_YET = re.compile(
    r"connection refused|not (?:yet )?ready|pending|in progress|still running|starting|initiali[sz]ing|queued|waiting|creating"
    r"|try again|retry (?:in|after|later)|temporar|rate.?limit|too many requests|timed out|unavailable|processing"
    r"|(?:^|http\S* |status\W+|code\W+|error\W+)(?:502|503|504|429)\b",
    re.I,
)
_NOT_YET_LENGTH = 200  # of a longer result it is not what it says
_WORDS = re.compile(r"\w+")


@dataclass(slots=True)
class Call:
    """One call of a turn. `signature`: name and arguments; `result`, `error`: of what came back, `None` while nothing did."""

    name: str
    signature: int
    bag: frozenset[str]
    reads: bool
    writes: bool
    shell: bool  # its arguments are commands, which may look at anything
    result: int | None = None
    error: int | None = None  # the masked text of an error result
    waits: bool = False  # it waits by nature, or was told to


@dataclass(slots=True)
class Turn:
    """One answer of the model: its calls in an order of their own, and the words beside them."""

    calls: list[Call] = field(default_factory=list)
    said: int = 0  # hash of the words beside them, 0 if there are none
    words: frozenset[int] = frozenset()  # trigrams, only of a turn without calls

    def signature(self) -> tuple[int, ...]:
        return tuple(sorted(call.signature for call in self.calls))

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """What was called together with what came back; a missing result counts as one of its own kind."""
        return tuple(sorted((call.signature, call.result or 0) for call in self.calls))

    def answered(self) -> bool:
        return all(call.result is not None for call in self.calls)

    def waits(self) -> bool:
        return bool(self.calls) and all(call.waits for call in self.calls)

    def failed(self) -> bool:
        return bool(self.calls) and all(call.error is not None for call in self.calls)


@dataclass(slots=True)
class User:
    """A user's words, by their hash."""

    said: int


Step: TypeAlias = Turn | User
Waiting: TypeAlias = tuple[str, Call]
"""A call without its result, with its id ("" where there is none)."""


class _Result(NamedTuple):
    hashed: int
    error: int | None
    not_yet: bool  # it says that it is to be asked again


class Workbook:
    """Reads histories into steps. One for the whole observer; remembers what it has read."""

    def __init__(self) -> None:
        self._results: OrderedDict[tuple[str, int, int], _Result] = OrderedDict()
        self._calls: OrderedDict[tuple[str, int, int], Call] = OrderedDict()

    def read(self, messages: Sequence[Message], steps: Sequence[Step] = (), waiting: Sequence[Waiting] = ()) -> list[Step]:
        """The steps of a history, behind `steps` if it goes on from there with calls that wait for their results."""
        out = list(steps)
        open_calls = list(waiting)
        for message in messages[-HISTORY:]:
            if message.role == "assistant":
                turn = self.turn(message.text, [(call.name, call.arguments) for call in message.calls])
                open_calls = [(past.call_id, call) for past, call in zip(message.calls, turn.calls, strict=True)]
                if turn.calls or turn.said:
                    out.append(turn)
            elif message.role == "tool":
                call = _answered(open_calls, message)
                if call is not None:
                    call.result, call.error, not_yet = self._result(message)
                    call.waits |= not_yet
            elif message.role == "user" and message.text.strip():
                out.append(User(hash(" ".join(message.text.split()))))
        return out

    def turn(self, text: str, calls: Iterable[tuple[str, str]]) -> Turn:
        """One answer, from the history or live."""
        made = [self._call(name, arguments) for name, arguments in calls]
        said = " ".join(text[:_SAID].split())
        words = trigrams(said) if said and not made else frozenset()
        return Turn(made, hash(said) if said else 0, words)

    def _call(self, name: str, arguments: str) -> Call:
        key = (name, len(arguments), hash(arguments))
        known = self._calls.get(key)
        if known is None:
            known = self._calls[key] = _read_call(name, arguments)
            if len(self._calls) > _KNOWN:
                self._calls.popitem(last=False)
        else:
            self._calls.move_to_end(key)
        return Call(known.name, known.signature, known.bag, known.reads, known.writes, known.shell, waits=known.waits)

    def _result(self, message: Message) -> _Result:
        text = message.text
        key = (str(message.is_error), len(text), hash(text))
        known = self._results.get(key)
        if known is None:
            known = self._results[key] = _read_result(text, message.is_error, message.media)
            if len(self._results) > _KNOWN:
                self._results.popitem(last=False)
        else:
            self._results.move_to_end(key)
        return known


def trigrams(text: str) -> frozenset[int]:
    """Hashes of three words in a row; of shorter texts, the text."""
    words = [word.lower() for word in _WORDS.findall(text)]
    if len(words) < 3:
        return frozenset({hash(tuple(words))})
    return frozenset(hash((words[i], words[i + 1], words[i + 2])) for i in range(min(len(words) - 2, 2_000)))


def similar(a: frozenset[str], b: frozenset[str]) -> float:
    """Dice's coefficient of two bags."""
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def _answered(waiting: list[tuple[str, Call]], message: Message) -> Call | None:
    """The call that this result belongs to: by id, else by name, else the first that waits."""
    for place, (call_id, _) in enumerate(waiting):
        if message.call_id and call_id == message.call_id:
            return waiting.pop(place)[1]
    if message.call_id and all(call_id for call_id, _ in waiting):
        return None
    for place, (_, call) in enumerate(waiting):
        if not message.tool_name or call.name == message.tool_name:
            return waiting.pop(place)[1]
    return None


def _read_call(name: str, arguments: str) -> Call:
    try:
        value: object = json.loads(arguments) if arguments.strip() else {}
        canonical = _canonical(value, 0)
    except (ValueError, RecursionError):
        canonical = " ".join(arguments.split())
    text = json.dumps(canonical, sort_keys=True, ensure_ascii=False, default=str)[:65_536]
    bag = frozenset(_WORDS.findall(text[:4_096])[:_BAG])
    shell = _SHELL.search(name) is not None
    writes = bool(_SHELL_WRITES.search(text[:4_096])) if shell else _WRITES.search(name) is not None
    polls = (_SHELL_POLLS.search(text[:512]) if shell else _POLLS.search(name)) is not None
    reads = not writes and (shell or _READS.search(name) is not None)
    return Call(name, hash((name, text)), bag, reads, writes, shell, waits=polls)


def _canonical(value: object, depth: int) -> object:
    if depth > 32:
        return str(value)[:256]
    if isinstance(value, dict):
        return {str(key): _canonical(item, depth + 1) for key, item in value.items() if str(key).lower() not in _VOLATILE}
    if isinstance(value, list):
        return [_canonical(item, depth + 1) for item in value]
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _read_result(text: str, is_error: bool | None, media: tuple[str, ...]) -> _Result:
    if len(text) > 2 * _RESULT:
        text = text[:_RESULT] + str(len(text)) + text[-_RESULT:]
    masked = " ".join(_MASK.sub("#", text).split())
    hashed = hash((masked, media)) or 1
    wrong = is_error if is_error is not None else bool(_ERROR.match(masked) or _ERROR_INSIDE.search(masked[:2_048]))
    not_yet = len(masked) <= _NOT_YET_LENGTH and _NOT_YET.search(masked) is not None
    return _Result(hashed, hash(masked[:400]) if wrong else None, not_yet)
