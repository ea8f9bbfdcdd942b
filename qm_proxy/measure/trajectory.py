"""Requests without a session → marks by which the conversation they belong to is recognised.

Rules that hold here:

- A history is read as atoms: what a user said, what the assistant said, each of its calls, each result. What clients rewrite
  between turns is no part of an atom: system prompts, thinking, ids, blanks, injected reminder blocks, the order of keys in
  arguments and of calls made at once, and how an assistant turn is cut into messages.
- A mark is a hash of an atom, keyed by a secret of this installation, so that it can be stored without giving the text away.
- Marks serve identity. What a prefix cache can reuse is another question, answered on the exact text (`measure.prefix`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from qm_proxy.events import Asked, Began, Event, Message, Nanoseconds, TextDelta, ToolCall

__all__ = ["Answer", "Context", "EmittedCall", "History", "Marker", "ReturnedResult", "canonical_arguments"]

_BLANKS = b" \t\r\n\x0b\x0c"
_INJECTED = ("system-reminder", "environment_details")  # blocks that agents rewrite from turn to turn
_PRIME = (1 << 61) - 1  # marks and chains are below it: they fit SQLite's signed integers
_LINE_BYTES = 12  # a line shorter than this says nothing about who wrote it
_LINES_READ = 512
_START_BYTES = 32
_ANSWER_BYTES = 256 * 1024


class ReturnedResult(NamedTuple):
    """A tool's result that a request brings: where among the atoms, and which call it says it answers ("" = unsaid)."""

    atom: int
    call_id: str
    name: str
    is_error: bool | None


class Context(NamedTuple):
    """What kind of agent asks; `like`: the same kind."""

    tools: int
    start: int
    longest: int

    def like(self, other: Context | None) -> bool:
        return other is not None and self.tools == other.tools and (self.start == other.start or self.longest == other.longest)


@dataclass(slots=True)
class History:
    """A request's messages as marks. `chain[i]` stands for the atoms up to and with `i`, in order."""

    marks: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # "user", "say", "call", "result"
    sizes: list[int] = field(default_factory=list)  # bytes of each atom's text
    results: list[ReturnedResult] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)  # of the assistant's past calls, "" where it has none
    starts: list[int] = field(default_factory=list)  # index of the message that each atom comes from


def canonical_arguments(arguments: str) -> bytes:
    """The same call, written the same: keys sorted at every depth, 1.0 as 1, no blanks. What is no JSON stays as it is."""
    try:
        value = json.loads(arguments, parse_float=_number) if arguments.strip() else {}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return _squeeze(arguments)


def _number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _squeeze(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").translate(None, _BLANKS)


def _without_block(text: str, tag: str) -> str:
    """Cut `<tag>…</tag>` out, every one of them; an opener that is never closed stays. Linear in the text."""
    opener, closer = f"<{tag}>", f"</{tag}>"
    if opener not in text:
        return text
    kept: list[str] = []
    at = 0
    while (start := text.find(opener, at)) >= 0 and (end := text.find(closer, start)) >= 0:
        kept.append(text[at:start])
        at = end + len(closer)
    kept.append(text[at:])
    return "".join(kept)


def _user_bytes(text: str) -> bytes:
    for tag in _INJECTED:
        text = _without_block(text, tag)
    return _squeeze(text)


def _said_bytes(text: str) -> bytes:
    if (opener := text.find("<think>")) >= 0 and not text[:opener].strip():
        closer = text.find("</think>", opener)
        text = text[closer + len("</think>") :] if closer >= 0 else ""
    return _squeeze(text)


class Marker:
    """Makes the marks of one installation: `key` is its secret, 1–64 bytes."""

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(digest_size=8, key=key)
        self._factor = self._mark(b"factor") | 1

    def _mark(self, *parts: bytes) -> int:
        hashing = self._keyed.copy()
        for part in parts:
            hashing.update(part)
        return int.from_bytes(hashing.digest(), "big") % _PRIME

    def seed(self, scope: str) -> int:
        """The chain before its first atom. Histories of different scopes (clients) never meet."""
        return self._mark(b"scope\0", scope.encode("utf-8", "surrogatepass"))

    def name(self, text: str) -> int:
        """Mark of a string as it is: a client's own session id, a call id."""
        return self._mark(b"name\0", text.encode("utf-8", "surrogatepass"))

    def context(self, asked: Asked) -> Context:
        """What kind of agent asks. Marks of its tools' names in any order, and of its system prompt's start and longest line:
        clients write the date, or a hash of the request, into one or the other."""
        names = "\0".join(sorted(tool.name for tool in asked.tools))
        system = "\n".join(m.text for m in asked.messages if m.role in ("system", "developer"))
        start = _squeeze(system[:200])[:_START_BYTES]
        longest = _squeeze(max(system.split("\n"), key=len))
        return Context(
            self._mark(b"tools\0", names.encode("utf-8", "surrogatepass")),
            self._mark(b"start\0", start),
            self._mark(b"longest\0", longest),
        )

    def call(self, name: str, arguments: str) -> int:
        return self._mark(b"call\0", name.encode("utf-8", "surrogatepass"), b"\0", canonical_arguments(arguments))

    def said(self, text: str) -> int | None:
        """Mark of an assistant's text; None when nothing of it is left after thinking and blanks."""
        return self._mark(b"say\0", plain) if (plain := _said_bytes(text)) else None

    def link(self, before: int, mark: int) -> int:
        return (before * self._factor + mark) % _PRIME

    def history(self, messages: Sequence[Message], seed: int) -> History:
        """The atoms of `messages`. System and developer messages are left out: they are context, and they change."""
        found = History()
        at = 0
        while at < len(messages):
            message = messages[at]
            if message.role == "assistant":
                end = at
                while end < len(messages) and messages[end].role == "assistant":
                    end += 1
                self._assistant(found, messages[at:end], at)
                at = end
                continue
            if message.role == "tool":
                found.results.append(ReturnedResult(len(found.marks), message.call_id, message.tool_name, message.is_error))
                self._add(found, "result", _squeeze(message.text), message.media, at)
            elif message.role not in ("system", "developer"):
                plain = _user_bytes(message.text)
                if plain or message.media:
                    self._add(found, "user", plain, message.media, at)
            at += 1
        chain = seed
        for mark in found.marks:
            chain = self.link(chain, mark)
            found.chain.append(chain)
        return found

    def _add(self, found: History, kind: str, plain: bytes, media: tuple[str, ...], at: int) -> None:
        found.marks.append(self._mark(kind.encode(), b"\0", plain, *(f"\0{digest}".encode() for digest in media)))
        found.kinds.append(kind)
        found.sizes.append(len(plain))
        found.starts.append(at)

    def _assistant(self, found: History, run: Sequence[Message], at: int) -> None:
        plain = _said_bytes("".join(message.text for message in run))
        if plain:
            self._add(found, "say", plain, (), at)
        calls = [call for message in run for call in message.calls]
        for mark, call in sorted((self.call(call.name, call.arguments), i) for i, call in enumerate(calls)):
            found.marks.append(mark)
            found.kinds.append("call")
            found.sizes.append(len(calls[call].arguments))
            found.starts.append(at)
        found.call_ids += [call.call_id for call in calls]

    def lines(self, texts: Iterable[str], *, limit: int = _LINES_READ) -> list[int]:
        """Marks of the lines that say something, without quotes, bullets and speaker labels: to see who quotes whom."""
        found: list[int] = []
        for text in texts:
            for tag in _INJECTED:
                text = _without_block(text, tag)
            for line in text.split("\n"):
                plain = _squeeze(_unlabelled(line))
                if len(plain) >= _LINE_BYTES:
                    found.append(self._mark(b"line\0", plain))
                    if len(found) == limit:
                        return found
        return found

    def quoted_arguments(self, arguments: str) -> list[int]:
        """Line marks of the strings in a call's arguments: the prompt that a sub-agent will start with is one of them."""
        try:
            return self.lines(_strings(json.loads(arguments)), limit=64)
        except (ValueError, RecursionError):
            return []

    def completion(self, prompt: str, lengths: Iterable[int], seed: int) -> tuple[dict[int, int], int]:
        """A prompt without messages: marks of its beginnings of the given `lengths` (bytes), and of the whole."""
        plain = prompt.encode("utf-8", "surrogatepass")
        hashing = self._keyed.copy()
        hashing.update(b"prompt\0%d\0" % seed)
        marks: dict[int, int] = {}
        done = 0
        for length in sorted(set(lengths)):
            if length > len(plain):
                break
            hashing.update(plain[done:length])
            done = length
            marks[length] = int.from_bytes(hashing.digest(), "big") % _PRIME
        hashing.update(plain[done:])
        return marks, int.from_bytes(hashing.digest(), "big") % _PRIME


def _unlabelled(line: str) -> str:
    line = line.strip(" \t\r\"'`“”>*#-•.")
    label, colon, rest = line.partition(":")
    return rest.strip(" \"'`“”") if colon and label.lower() in ("user", "human", "assistant", "ai") else line


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


# --- the answer -------------------------------------------------------------------------------------------------------


class EmittedCall(NamedTuple):
    """A call as the model made it."""

    place: int  # 0, 1, … in the order of the answer
    call_id: str
    name: str
    mark: int
    lines: list[int]  # marks of the text in its arguments
    t_ns: Nanoseconds  # complete on the wire


class Answer:
    """Gathers an answer as its client will send it back, so that the next request is known. Bounded; never raises.

    Some four bytes are held per token of text, none per token of thinking; past 256 KiB the text is given up (`marks` None).
    `said` takes the text in blocks: encoding many pieces at once costs a tenth of encoding each.
    """

    def __init__(self, marker: Marker) -> None:
        self._marker = marker
        self._text = bytearray()
        self._overlong = False
        self.calls: list[EmittedCall] = []
        self.response_id: str | None = None

    def see(self, event: Event) -> tuple[()]:
        if isinstance(event, TextDelta):
            self.said([event.text])
        elif isinstance(event, ToolCall):
            mark = self._marker.call(event.name, event.arguments)
            lines = self._marker.quoted_arguments(event.arguments)
            self.calls.append(EmittedCall(len(self.calls), event.call_id, event.name, mark, lines, event.t_ns))
        elif isinstance(event, Began) and event.response_id:
            self.response_id = event.response_id
        return ()

    def said(self, pieces: list[str]) -> None:
        """The next pieces of its text, in order."""
        more = "".join(pieces).encode("utf-8", "surrogatepass")
        if len(self._text) + len(more) <= _ANSWER_BYTES and not self._overlong:
            self._text += more
        elif not self._overlong:
            self._overlong = True
            self._text.clear()

    @property
    def text(self) -> str:
        return self._text.decode("utf-8", "surrogatepass")

    def marks(self) -> list[int] | None:
        """The answer's atoms in the order in which a history has them; None when it is too long to be known; [] for nothing."""
        text = self.text
        if self._overlong:
            return None
        said = self._marker.said(text)
        return ([] if said is None else [said]) + sorted(call.mark for call in self.calls)
