"""Flags a session that turns in circles: the same calls with the same results, the same error, the same words, again and again.

How it is used:

    loops = CallLoops()                      one for the whole observer
    detector = loops.watch(opened)           when an exchange opens, after it was placed; None if there is nothing to compare
    detector.see(event)                      the events of its answer, like any detector; findings come with the answer's end

The request brings the whole history, so everything is read from it anew each time (and remembered by hash: cheap). Nothing has
to be carried along, whatever the client drops, rewrites, forks or compacts; where a request brings no history
(`previous_response_id`), what its line was is kept here. What the answer adds is judged *before* its result is known, as the
repetition that it will be: the finding belongs to the answer that adds the deciding repeat, and comes before the client runs it.

Rules, over the turns since a user last said something new (measured in benchmarks/detect; defaults of research/detectors.md 2.2):

    cycle           period 1: 4 copies of (calls, results), 3 if they failed; period 2 to 8: 3 copies
    echo            3 turns with the same words, the same calls and the same results
    same_error      5 calls of one tool with the same error, whatever the arguments
    monologue       3 turns without a call that say the same or nearly the same
    poll            the same calls with other results each time: 12 copies, of 2 to 4 alternating ones 8
    near_duplicate  6 calls of one tool that reads or fails, nearly the same arguments, the same result
    re_reading      the same thing read for the 4th time among 30 calls, unchanged, nothing written in between: a cost, not a loop

What is progress resets: a result not seen before for these calls, something written that was not written before, new words
of a user. Calls that wait by nature (`poll`, `status`, `sleep`, …) or were told to ("not ready", 503) may come three times as
often. A loop is told again at twice its length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from qm_proxy.detect.steps import Call, Step, Turn, User, Waiting, Workbook, similar
from qm_proxy.events import Cut, Event, Finished, TextDelta, ThinkingDelta, ToolCall
from qm_proxy.findings import Finding, Severity
from qm_proxy.record import Opened

__all__ = ["CallLoop", "CallLoops"]

_LINES = 4_096
_KEPT_STEPS = 128
_KEPT_LINES = 512
_SAID = 8_192
_MAX_CALLS = 256
_LOOPS = 64  # remembered of one line
_CYCLES = range(1, 9)
_COPIES, _COPIES_FAILED, _COPIES_LONG = 4, 3, 3
_ECHOES, _MONOLOGUE, _SAME_ERROR = 3, 3, 5
_CHANGING, _CHANGING_LONG = 12, 8
_NEAR, _NEAR_ALIKE = 6, 0.6
_REREAD, _REREAD_AMONG = 4, 30
_DOMINANT, _DOMINANT_AMONG, _DOMINANT_KINDS = 5, 12, 4
_WINDOWED = ("dominant", "re_reading")  # rules whose count may fall without the loop having ended
_WAITING = 3  # times the bar for calls that wait by nature
_ALIKE = 0.8

Line: TypeAlias = tuple[str, int]


class _Loop(NamedTuple):
    form: str
    severity: Severity
    copies: int
    needed: int
    period: int
    key: int  # which loop it is
    says: str
    tools: tuple[str, ...]
    rule: str


class CallLoops:
    """What all sessions share: texts that were read, what has been told, and lines whose requests bring no history."""

    def __init__(self) -> None:
        self.workbook = Workbook()
        self._told: OrderedDict[Line, dict[int, tuple[int, int]]] = OrderedDict()  # by loop: when due again, and where it began
        self._kept: OrderedDict[Line, tuple[list[Step], list[Waiting]]] = OrderedDict()

    def watch(self, opened: Opened) -> CallLoop | None:
        """The detector of one exchange."""
        asked = opened.asked
        if asked is None or asked.operation != "chat":
            return None
        line = (opened.placed.session_id, opened.placed.trajectory) if opened.placed is not None else None
        steps, waiting = self._kept.get(line, ([], [])) if asked.previous_response_id is not None and line else ([], [])
        read = self.workbook.read(asked.messages, steps, waiting)
        turn = opened.placed.turn if opened.placed is not None else 0
        return CallLoop(self, read, line, turn, keep=asked.dialect == "openai-responses")

    def keep(self, line: Line, steps: list[Step], waiting: list[Waiting]) -> None:
        """Hold a line's turns for the next request, which may not bring them."""
        self._kept.pop(line, None)
        self._kept[line] = (steps[-_KEPT_STEPS:], waiting)
        if len(self._kept) > _KEPT_LINES:
            self._kept.popitem(last=False)

    def is_due(self, line: Line | None, loop: _Loop, turn: int) -> bool:
        """Is this loop new to its line, begun again, or twice as long as when it was last told?"""
        if line is None:  # nothing is remembered of it: at each doubling exactly
            due = loop.needed
            while due < loop.copies:
                due *= 2
            return due == loop.copies
        told = self._told.get(line)
        if told is None:
            told = self._told[line] = {}
            if len(self._told) > _LINES:
                self._told.popitem(last=False)
        else:
            self._told.move_to_end(line)
        began = turn - loop.copies * max(loop.period, 1)
        due, before = told.get(loop.key, (0, began))
        begun_again = began > before + loop.period and loop.rule not in _WINDOWED
        if loop.copies < due and not begun_again:
            return False
        told[loop.key] = (2 * loop.copies, began)
        if len(told) > _LOOPS:
            del told[next(iter(told))]
        return True


class CallLoop:
    """One exchange: its history is known, its answer is being listened to."""

    def __init__(self, loops: CallLoops, steps: list[Step], line: Line | None, turn: int, *, keep: bool = False) -> None:
        self._loops = loops
        self._steps = steps
        self._line = line
        self._turn = turn
        self._keep = keep
        self._calls: list[ToolCall] = []
        self._said: list[str] = []
        self._size = 0

    def see(self, event: Event) -> Iterable[Finding]:
        match event:
            case TextDelta():
                self.said(TextDelta, [event.text])
            case ToolCall() if len(self._calls) < _MAX_CALLS:
                self._calls.append(event)
            case Finished():
                return self._end(event.t_ns)
            case Cut() if self._calls:
                return self._end(event.t_ns)
        return ()

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        if kind is TextDelta and self._size < _SAID:
            text = "".join(pieces)
            self._size += len(text)
            self._said.append(text if self._size <= _SAID else text[:_SAID])

    def _end(self, t_ns: int) -> list[Finding]:
        now = self._loops.workbook.turn("".join(self._said), [(call.name, call.arguments) for call in self._calls])
        if not now.calls and not now.said:
            return []
        loop = _judge(self._steps, now)
        if self._keep and self._line is not None:
            waiting = [(event.call_id, call) for event, call in zip(self._calls, now.calls, strict=True)]
            self._loops.keep(self._line, [*self._steps, now], waiting)
        if loop is None or loop.copies < loop.needed or not self._loops.is_due(self._line, loop, self._turn):
            return []
        evidence: dict[str, object] = {
            "form": loop.form,
            "rule": loop.rule,
            "period": loop.period,
            "copies": loop.copies,
            "bar": loop.needed,
            "tools": [name[:64] for name in loop.tools[:8]],
        }
        return [Finding("loop.trajectory", loop.severity, loop.says, t_ns, evidence)]


# --- the rules


def _judge(steps: list[Step], now: Turn) -> _Loop | None:
    """The strongest rule that the answer `now` fulfils, if the results it will get are those of the last time.
    One that still runs, but is not at the end of a copy, has 0 `copies`."""
    if not now.calls:
        return _monologue(_since_user(steps, nudged=True), now)
    turns = _since_user(steps, nudged=False)
    if not turns:
        return None
    done = [call for turn in turns for call in turn.calls]
    return (
        _cycle(turns, now)
        or _echo(turns, now)
        or _same_error(done, now)
        or _near_duplicate(done, now)
        or _changing(turns, now)
        or _dominant(done, now)
        or _re_reading(done, now)
    )


def _since_user(steps: list[Step], *, nudged: bool) -> list[Turn]:
    """The turns since a user's words. `nudged`: the same words as before, after a turn without a call, do not count as new."""
    turns: list[Turn] = []
    later: int | None = None
    for i in range(len(steps) - 1, -1, -1):
        step = steps[i]
        if isinstance(step, Turn):
            turns.append(step)
            if step.calls:
                later = None
            continue
        earlier = steps[i - 2] if i >= 2 else None
        again = isinstance(earlier, User) and earlier.said == step.said
        between = steps[i - 1] if i else None
        if not nudged or not isinstance(between, Turn) or between.calls or not (again or step.said == later):
            break
        later = step.said
    turns.reverse()
    return turns


def _cycle(turns: list[Turn], now: Turn) -> _Loop | None:
    signature = now.signature()
    n = len(turns)
    for period in _CYCLES:
        if period > n:
            break
        if turns[n - period].signature() != signature:
            continue
        run = 0
        while run + period < n and turns[n - 1 - run].pairs() == turns[n - 1 - run - period].pairs():
            run += 1
        length = run + period + 1
        unit = turns[n - period :]
        if _is_repeated(unit):
            continue
        waits = all(turn.waits() for turn in unit)
        needed = _COPIES_LONG if period > 1 else _COPIES_FAILED if unit[0].failed() and not waits else _COPIES
        if waits:
            needed *= _WAITING
        if not all(turn.answered() for turn in unit):
            needed *= 2
        copies, rest = divmod(length, period)
        if copies < needed:
            continue
        tools = tuple(call.name for turn in unit for call in turn.calls)
        key = _key_of(unit)
        names, form = _names(tools), "poll" if waits else "cycle"
        if period == 1:
            says = f"The model calls {names} for the {_nth(copies)} time in a row and gets the same result each time."
        else:
            says = f"The model goes through the same {period} steps ({names}) for the {_nth(copies)} time with the same results."
        severity: Severity = "suspect" if waits else "violation"
        return _Loop(form, severity, 0 if rest else copies, needed, period, key, says, tools, "cycle")
    return None


def _key_of(unit: list[Turn]) -> int:
    """Names the loop of these turns, in whatever place it is looked at and by whatever rule."""
    return hash((len(unit), sum(hash(turn.pairs()) for turn in unit)))


def _is_repeated(unit: list[Turn]) -> bool:
    """Is a longer unit only a shorter one several times?"""
    n = len(unit)
    pairs = [turn.pairs() for turn in unit]
    return any(n % p == 0 and all(pairs[i] == pairs[i - p] for i in range(p, n)) for p in range(1, n // 2 + 1))


def _echo(turns: list[Turn], now: Turn) -> _Loop | None:
    if not now.said or not turns[-1].calls or turns[-1].waits():
        return None
    signature, pairs, count = now.signature(), turns[-1].pairs(), 1
    for turn in reversed(turns):
        if turn.said != now.said or turn.signature() != signature or turn.pairs() != pairs or not turn.answered():
            break
        count += 1
    if count < _ECHOES:
        return None
    tools = tuple(call.name for call in now.calls)
    says = f"The model says the same words and calls {_names(tools)} for the {_nth(count)} time in a row."
    return _Loop("echo", "violation", count, _ECHOES, 1, _key_of(turns[-1:]), says, tools, "echo")


def _same_error(done: list[Call], now: Turn) -> _Loop | None:
    for name in dict.fromkeys(call.name for call in now.calls):
        count, error, waits = 1, None, True
        for call in reversed(done):
            if call.name == name:
                if call.error is None or (error is not None and call.error != error):
                    break
                error = call.error
                waits &= call.waits
                count += 1
            elif _is_progress(call, done):
                break
        needed = _SAME_ERROR * (_WAITING if waits else 1)
        if error is not None and count >= needed:
            says = f"The model calls {_names((name,))} for the {_nth(count)} time, and each time it failed with the same error."
            return _Loop("same_error", "violation", count, needed, 1, hash(("error", name, error)), says, (name,), "same_error")
    return None


def _is_progress(call: Call, done: list[Call]) -> bool:
    """It wrote something, with success, and had not done just that before."""
    return call.writes and call.error is None and sum(other.signature == call.signature for other in done) == 1


def _near_duplicate(done: list[Call], now: Turn) -> _Loop | None:
    if len(now.calls) != 1:
        return None
    last = now.calls[0]
    if not done or done[-1].name != last.name or not (last.reads or done[-1].error is not None):
        return None
    result, count, alike, kinds = done[-1].result, 1, 0.0, {last.signature}
    before = last
    for call in reversed(done):
        if call.name != last.name or call.result != result or result is None or (likeness := similar(call.bag, before.bag)) < 0.4:
            break
        alike += likeness
        count += 1
        kinds.add(call.signature)
        before = call
    needed = _NEAR * (_WAITING if last.waits or done[-1].waits else 1)
    if count < needed or len(kinds) == 1 or alike / (count - 1) < _NEAR_ALIKE:
        return None
    says = f"The model calls {last.name[:40]} for the {_nth(count)} time with nearly the same arguments and the same result."
    key = hash(("near", last.name, result))
    return _Loop("near_duplicate", "suspect", count, needed, 1, key, says, (last.name,), "near_duplicate")


def _changing(turns: list[Turn], now: Turn) -> _Loop | None:
    """The same calls over and over, with results that change."""
    signatures = [turn.signature() for turn in turns] + [now.signature()]
    n = len(signatures)
    for period in range(1, 5):
        run = 0
        while run + period < n and signatures[n - 1 - run] == signatures[n - 1 - run - period]:
            run += 1
        unit = signatures[n - period :]
        if run < period or (period > 1 and len(set(unit)) == 1):
            continue
        copies, rest = divmod(run + period, period)
        waits = all(turn.waits() for turn in turns[max(n - 1 - period, 0) :])
        needed = (_CHANGING if period == 1 else _CHANGING_LONG) * (_WAITING if waits else 1)
        if copies < needed:
            continue
        results = [turn.pairs() for turn in turns[-(copies - 1) * period :]]
        severity: Severity = "info" if len(set(results)) == len(results) else "suspect"
        tools = tuple(call.name for call in now.calls)
        says = f"The model makes the same calls ({_names(tools)}) for the {_nth(copies)} time; their results change."
        key = hash(("changing", period, sum(hash(signature) for signature in unit)))
        return _Loop("poll", severity, 0 if rest else copies, needed, period, key, says, tools, "results_differ")
    return None


def _dominant(done: list[Call], now: Turn) -> _Loop | None:
    """One call with one result is most of what happens, in no strict order."""
    recent = done[-(_DOMINANT_AMONG - 1) :]
    if len(recent) < _DOMINANT_AMONG - 1 or any(_is_progress(call, done) for call in recent):
        return None
    for last in now.calls:
        same = [call for call in recent if call.signature == last.signature]
        if not same or last.waits or same[-1].waits or same[-1].result is None:
            continue
        count = 1 + sum(call.result == same[-1].result for call in same)
        kinds = {(call.signature, call.result) for call in recent}
        if count >= _DOMINANT and len(kinds) <= _DOMINANT_KINDS:
            says = f"{count} of the model's last {_DOMINANT_AMONG} calls are one call of {last.name[:40]} with one result."
            key = hash(("dominant", last.signature))
            return _Loop("cycle", "suspect", count, _DOMINANT, 0, key, says, (last.name,), "dominant")
    return None


def _re_reading(done: list[Call], now: Turn) -> _Loop | None:
    for last in now.calls:
        if not last.reads or last.waits:
            continue
        count, result = 1, None
        for call in reversed(done[-(_REREAD_AMONG - 1) :]):
            if call.writes and call.error is None and (last.shell or call.name == last.name or call.bag & last.bag):
                break
            if call.signature == last.signature:
                if call.error is not None or call.result is None or (result is not None and call.result != result):
                    break
                result = call.result
                count += 1
        if count >= _REREAD:
            says = (
                f"The model reads the same thing with {_names((last.name,))} for the {_nth(count)} time, and it has not changed."
            )
            key = hash(("reread", last.signature))
            return _Loop("re_reading", "info", count, _REREAD, 1, key, says, (last.name,), "re_reading")
    return None


def _monologue(turns: list[Turn], now: Turn) -> _Loop | None:
    count, exact = 1, True
    for turn in reversed(turns):
        if turn.calls:
            break
        same = turn.said == now.said
        if not same and not _nearly(turn.words, now.words):
            break
        exact &= same
        count += 1
    if count < _MONOLOGUE:
        return None
    how = "the same" if exact else "nearly the same"
    says = f"The model says {how} for the {_nth(count)} time and calls nothing."
    key = hash(("monologue", now.said if exact else "near"))
    return _Loop("monologue", "violation" if exact else "suspect", count, _MONOLOGUE, 1, key, says, (), "monologue")


def _nearly(a: frozenset[int], b: frozenset[int]) -> bool:
    return bool(a and b) and len(a & b) >= _ALIKE * len(a | b)


def _names(tools: tuple[str, ...]) -> str:
    kinds = list(dict.fromkeys(tools))
    told = ", ".join(name[:40] for name in kinds[:4])
    return told + (" …" if len(kinds) > 4 else "")


def _nth(n: int) -> str:
    return f"{n}{'th' if n % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"
