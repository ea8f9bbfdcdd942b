"""What a simulated model says, token by token: from an answer to the steps of a decoder. Pure; no clock, no sockets.

A `Said` is what a policy decided. `steps` turns it into one `Step` per sampled token, with everything that Ollama does to
a stream of tokens on the way: stop strings, the token limit, the repeat guard, withheld tokens, tool calls that come
whole. A step without payload is a token that was sampled and not sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from probes.sim.gojson import JSON, encode
from probes.sim.personas import Misbehaviour
from probes.sim.tokens import Tokenizer, pieces

__all__ = ["Call", "End", "Message", "Said", "Step", "instance", "prose", "steps"]

REPEATS = 30
"""A piece that comes more than this often after itself ends a rendered-mode stream, without error and without record."""

End: TypeAlias = Literal["stop", "length", "repeat", "crash", "cut", "no_done", "silent"]


@dataclass(slots=True)
class Call:
    """A tool call. `arguments` is JSON text; what is not JSON goes out as it is where the dialect carries a string."""

    name: str
    arguments: str
    id: str = ""


@dataclass(slots=True)
class Message:
    role: str
    content: str = ""
    thinking: str = ""
    calls: list[Call] = field(default_factory=list)
    tool_name: str = ""
    call_id: str = ""
    images: int = 0


@dataclass(slots=True)
class Said:
    """An answer before it is sampled. Pieces are tokens; they may come lazily and never end."""

    text: Iterable[str] = ()
    thinking: Iterable[str] = ()
    calls: list[Call] = field(default_factory=list)
    misbehaviour: Misbehaviour | None = None
    ends: Literal["stop", "length"] = "stop"  # length: it had more to say
    note: str = ""  # for the truth log: which policy, which fault, whether the fact was found


class Step(NamedTuple):
    """One sampled token. `end` closes the stream; `eos` marks the end-of-sequence token, which carries nothing."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    end: End | None = None
    eos: bool = False
    failure: str = ""


WITHHELD = Step()


def steps(
    said: Said,
    *,
    limit: int,
    stop: tuple[str, ...] = (),
    guard: bool = True,
    tokenizer: Tokenizer | None = None,
    calls_in_done: bool = False,
    native: bool = False,
    think: bool = True,
) -> Iterator[Step]:
    """The tokens of an answer, the last one with its `end`. `limit` ≥ 1; `guard`: the repeat guard of rendered mode."""
    wrong = said.misbehaviour or Misbehaviour()
    swallow = wrong.swallow
    repeats = 0
    last = ""
    undisturbed = _undisturbed(said, stop, tokenizer or Tokenizer(), calls_in_done=calls_in_done, think=think)
    for sampled, step in enumerate(undisturbed, 1):
        piece = (step.text or step.thinking).strip()
        if guard and (step.text or step.thinking):
            repeats = repeats + 1 if piece == last else 0
            last = piece
            if repeats > REPEATS:
                yield Step(end="repeat")
                return
        if swallow and not step.eos:
            step = WITHHELD
        if step.end is None:
            if sampled >= limit:
                yield _cut_short(step, said, native=native)
                return
            for after, end in ((wrong.error_after, "crash"), (wrong.cut_after, "cut"), (wrong.no_done_after, "no_done"),
                               (wrong.silent_after, "silent")):  # fmt: skip
                if after is not None and sampled > after:
                    yield Step(end=end, failure=wrong.error_text)  # type: ignore[arg-type]  # the four literals above
                    return
        yield step


def _cut_short(step: Step, said: Said, *, native: bool) -> Step:
    """The token limit ends the stream at this token; a native runner fails on a call that it cuts in two."""
    if native and said.calls and not step.calls and not step.text:
        name = encode(said.calls[0].name)
        text = f"llama-server returned invalid tool call arguments for {name}: unexpected end of JSON input"
        return Step(end="crash", failure=text)
    return step._replace(end="length")


def _undisturbed(said: Said, stop: tuple[str, ...], tokenizer: Tokenizer, *, calls_in_done: bool, think: bool) -> Iterator[Step]:
    if think and said.thinking:
        yield WITHHELD  # the opening tag, and the closing one below
        for piece in said.thinking:
            yield from _withheld(tokenizer.answer_tokens(piece) - 1)
            yield Step(thinking=piece)
        yield WITHHELD
    texts = ((piece, tokenizer.answer_tokens(piece)) for piece in said.text)
    for piece, tokens, stopped in _until_stop(texts, stop):
        if stopped:
            yield Step(text=piece, end="stop")
            return
        yield from _withheld(tokens - 1)
        yield Step(text=piece)
    for n, call in enumerate(said.calls):
        cost = tokenizer.call_tokens(encode({"name": call.name}) + call.arguments)
        last = n == len(said.calls) - 1
        yield from _withheld(cost - 1)
        if calls_in_done:
            if last:
                yield Step(calls=tuple(said.calls), end="stop", eos=True)
                return
            yield WITHHELD
        else:
            yield Step(calls=(call,))
    yield Step(end=said.ends, eos=said.ends == "stop")


def _withheld(n: int) -> Iterator[Step]:
    for _ in range(n):
        yield WITHHELD


def _until_stop(texts: Iterable[tuple[str, int]], stop: tuple[str, ...]) -> Iterator[tuple[str, int, bool]]:
    """Hold back what may become a stop string; the third item says that one was found (its text is left out)."""
    if not stop:
        for piece, tokens in texts:
            yield piece, tokens, False
        return
    held = ""
    for piece, tokens in texts:
        held += piece
        found = min((at for s in stop if (at := held.find(s)) >= 0), default=-1)
        if found >= 0:
            yield held[:found], tokens, True
            return
        tail = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        yield held[: len(held) - tail], tokens, False
        held = held[len(held) - tail :]
    if held:
        yield held, 1, False


_SUBJECTS = (
    " the relay",
    " a model",
    " the queue",
    " this test",
    " every run",
    " one stream",
    " the cache",
    " our log",
    " that port",
)
_VERBS = (" keeps", " reads", " sends", " holds", " finds", " needs", " shows", " times", " drops")
_OBJECTS = (
    " its window",
    " the last batch",
    " no error",
    " a new token",
    " each gap",
    " some proof",
    " the same file",
    " ten lines",
)
_TAILS = (" at once", " when it ends", " after a while", " in good order", " before noon", " as we saw", " by hand", "")


def prose(n: int, rng: Random) -> Iterator[str]:
    """Exactly `n` pieces of varied sentences."""
    left = n
    while left > 0:
        sentence = rng.choice(_SUBJECTS) + rng.choice(_VERBS) + rng.choice(_OBJECTS) + rng.choice(_TAILS) + "."
        for piece in pieces(sentence.strip().capitalize() if left == n else sentence):
            if left == 0:
                return
            left -= 1
            yield piece


def instance(schema: JSON, rng: Random, depth: int = 0) -> JSON:
    """A value that a JSON Schema allows: what a model answers under structured output. Covers what clients send."""
    if not isinstance(schema, dict) or depth > 8:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return instance(schema[union][0], rng, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    match kind:
        case "object":
            wanted = schema.get("properties") or {}
            return {name: instance(part, rng, depth + 1) for name, part in wanted.items()}
        case "array":
            return [instance(schema.get("items", {}), rng, depth + 1) for _ in range(max(1, schema.get("minItems", 1)))]
        case "integer":
            return int(schema.get("minimum", rng.randrange(1, 100)))
        case "number":
            return float(schema.get("minimum", rng.randrange(1, 1000) / 10))
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
    text = "".join(prose(4, rng)).strip()
    longest = schema.get("maxLength")
    text = text.ljust(schema.get("minLength", 0), "x")
    return text[:longest] if isinstance(longest, int) else text
