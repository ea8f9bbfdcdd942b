"""Flags prompts that Ollama cut to fit its window without saying so: what was sent against what was evaluated.

Rules that hold here (Ollama 0.33; research/ollama-wire.md 3.6, ollama-live-facts.md B):

- *half_window*: a prompt of more than n − 1 tokens becomes exactly `n − max((n − k) // 2, 1)`, k being `num_keep` (4 unless
  set), one more with a BOS token. Exact, and believed only if the request was large enough to need it.
- *dropped*: the oldest messages go until the rest fits. Nothing is exact then. Two proofs: the same conversation grew, and what
  was evaluated did not grow with it; or a line from size to tokens, learnt for each model and tool set from requests that
  fitted, says that more must have been sent. Size is bytes, characters, pieces that tokenizers do not join across, or mixtures:
  each that has fitted about as well as the best has a say, and the count must lie outside of what all of them allow.
  A conversation that was cut and has only grown since is still cut.
- *refused*: with a template of its own (native mode) or `truncate: false` Ollama answers 400 and may name both numbers.
- *shifted*: prompt and answer together are longer than the window, so the oldest tokens were discarded while generating.
- *full*: the answer ended at the window's end, as happens with `shift: false`.
- `confidence`: "certain" (exact or said by the server), "high" (estimate with a learnt line), "medium" (estimate without one).
- The window comes from the request (`num_ctx`, native routes) or from outside (`/api/ps`). Without input counts (streams of
  `/v1/chat/completions` without include_usage) nothing can be seen, and nothing is said.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from qm_proxy.events import Asked, Cut, Event, Failed, Finished, Residency, TextDelta, ThinkingDelta, Usage
from qm_proxy.findings import Finding, Severity

__all__ = ["Calibration", "Estimate", "Size", "Truncation", "half_window", "size_of"]

_K = TypeVar("_K")
_V = TypeVar("_V")

_PRIOR = 0.27  # tokens per UTF-8 byte of unknown text, and the range in which real tokenizers lie
_PRIOR_LOW, _PRIOR_HIGH = 0.145, 0.7
_SYMBOL, _SYMBOL_LOW = 1.1, 0.6  # tokens per piece
_MIXTURES = (0.2, 0.4, 0.6, 0.8)  # shares of the bytes or characters: words become more tokens the longer they are
_MEASURES = range(3 + 2 * len(_MIXTURES))
_MODELS, _SAMPLES, _LINES = 256, 16, 2_048
_ENOUGH_BYTES = 200
_STEPS_ENOUGH, _STEPS_CAUTION = 4, 0.92
_FEW_STEPS_CAUTION = (0.78, 0.83, 0.85, 0.87)  # having seen so many
_AS_GOOD, _AS_STEADY = 0.02, 0.96  # a measure that fits nearly as well as the best may be the true one: it has a say
_NEAR = 0.94  # a count just below the window is what dropping leaves: there a small loss is believed
_FAR = 1.2  # so much less than must have been sent needs no sum of messages to explain it
_OLDEST = 4_096  # messages that may have been dropped
_TEXTS, _COUNTED = 8_192, 65_536
_DEFAULT_KEEP = 4
_PIECE = re.compile(r"\s?[^\W\d_]{1,16}|\s?\d{1,3}|\s?([^\w\s]|_)\1{0,3}|\s+")
"""What tokenizers do not join across: words with the blank before them, three digits, few equal marks, a run of blanks."""
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_REFUSALS = re.compile(
    r"prompt is longer than the context length|exceeds the (?:available context size|model's maximum context length)"
    r"|exceed_context_size",
    re.I,
)
_REMEDY = "raise num_ctx (options of native requests, a Modelfile, OLLAMA_CONTEXT_LENGTH for /v1), or send less"


class Size(NamedTuple):
    """How large a request is, in three measures. A model's tokens follow one of them, or a mixture, better than the others."""

    n_bytes: int
    n_symbols: int
    n_characters: int

    def by(self, measure: int) -> float:
        """In bytes (0), in pieces (1), in characters (2), or in a mixture of pieces with bytes or with characters."""
        if measure < 3:
            return self[measure]
        of, i = divmod(measure - 3, len(_MIXTURES))
        share = _MIXTURES[i]
        return share * _PRIOR * self[2 * of] + (1 - share) * _SYMBOL * self.n_symbols

    def __sub__(self, other: Size) -> Size:
        return Size(self[0] - other[0], self[1] - other[1], self[2] - other[2])


class Estimate(NamedTuple):
    """Tokens that a request probably has, and what one more byte or symbol costs at least and at most.
    `samples`: how many requests of this model and tool set it rests on; `measure`: as in `Size.by`."""

    low: float
    middle: float
    high: float
    slope: float
    samples: int
    measure: int


class Calibration:
    """What was learnt about each model's tokens, and where each conversation stood. One for the whole observer."""

    def __init__(self) -> None:
        self._samples: OrderedDict[tuple[str, int], deque[tuple[Size, int]]] = OrderedDict()
        self._pooled: OrderedDict[str, deque[tuple[Size, int]]] = OrderedDict()
        self._lines: OrderedDict[object, tuple[Size, int]] = OrderedDict()
        self._past: OrderedDict[object, tuple[Size, int, str]] = OrderedDict()
        self._steps: OrderedDict[str, deque[tuple[Size, int]]] = OrderedDict()
        self._symbols: OrderedDict[tuple[int, int], int] = OrderedDict()

    def learn(self, model: str, tools: int, size: Size, tokens: int) -> None:
        """A request that fitted: it was so large, and so many tokens."""
        if size.n_bytes < _ENOUGH_BYTES or not _PRIOR_LOW * 0.8 <= tokens / size.n_bytes <= 1.2:
            return
        _kept(self._samples, (model, tools), deque(maxlen=_SAMPLES), _MODELS).append((size, tokens))
        _kept(self._pooled, model, deque(maxlen=2 * _SAMPLES), _MODELS).append((size, tokens))

    def estimate(self, model: str, tools: int, size: Size) -> Estimate:
        samples = list(self._samples.get((model, tools), ()))
        doubt = 0.05
        if len(samples) < 2:  # the model with other tools, then: their schemas are rendered in another density
            samples, doubt = list(self._pooled.get(model, ())), 0.12
        if len(samples) >= 2:
            lines = [_line([(it.by(i), tokens) for it, tokens in samples], size.by(i), i, doubt) for i in _MEASURES]
            best = min(lines, key=lambda line: line.high - line.low)
            allowed = (best.high - best.low) / best.middle + _AS_GOOD
            lines = [line for line in lines if (line.high - line.low) / line.middle <= allowed]
            return best._replace(low=min(line.low for line in lines), high=max(line.high for line in lines))
        n = size.n_bytes
        middle = max(n * _PRIOR, size.n_symbols * _SYMBOL)
        return Estimate(min(n * _PRIOR_LOW, size.n_symbols * _SYMBOL_LOW), middle, n * _PRIOR_HIGH, _PRIOR, 0, 0)

    def grew(self, model: str, by: Size, tokens: int) -> None:
        """A conversation that fitted before and after grew by so much, and by so many tokens."""
        if by.n_bytes >= _ENOUGH_BYTES and min(by) > 0 and tokens > 0:
            _kept(self._steps, model, deque(maxlen=2 * _SAMPLES), _MODELS).append((by, tokens))

    def least_growth(self, model: str, by: Size, had: Size, tokens: int) -> float:
        """Tokens that a conversation of so many must have grown by at least, if nothing of it was dropped."""
        steps = self._steps.get(model, ())
        if len(steps) < _STEPS_ENOUGH:
            known = [(had, tokens), *steps]
            least: float = min(by.by(i) * min(more / it.by(i) for it, more in known) for i in _MEASURES)
            return least * _FEW_STEPS_CAUTION[len(steps)]
        rates = [sorted(tokens / it.by(i) for it, tokens in steps) for i in _MEASURES]
        steady = [rates[i][0] / rates[i][-1] for i in _MEASURES]
        least = min(by.by(i) * rates[i][0] for i in _MEASURES if steady[i] >= _AS_STEADY * max(steady))
        return least * (_STEPS_CAUTION + (0.03 if len(steps) >= 24 else 0 if len(steps) >= 8 else -0.07))

    def knows(self, model: str) -> bool:
        """Has it seen this model's conversations grow often enough to be believed?"""
        return len(self._steps.get(model, ())) >= 2 * _STEPS_ENOUGH

    def before(self, line: object) -> tuple[Size, int] | None:
        """Size and tokens of the conversation's last request that fitted."""
        return self._lines.get(line)

    def stand(self, line: object, size: Size, tokens: int) -> None:
        self._lines.pop(line, None)
        if size.n_symbols > 0:
            self._lines[line] = (size, tokens)
        if len(self._lines) > _LINES:
            self._lines.popitem(last=False)

    def outgrew(self, line: object, size: Size, window: int, confidence: str) -> None:
        """The conversation, at this size, did not fit into this window."""
        self._past.pop(line, None)
        self._past[line] = (size, window, confidence)
        if len(self._past) > _LINES:
            self._past.popitem(last=False)

    def past(self, line: object, size: Size, window: int) -> str | None:
        """How sure is it that the conversation, having been cut before and only grown since, cannot fit into this window?"""
        before = self._past.get(line)
        if before is None or window > before[1] or any(now < then for now, then in zip(size, before[0], strict=True)):
            return None
        return before[2]

    def symbols(self, text: str) -> int:
        """Pieces of a text; what was counted for the turn before is remembered. Of a giant, a part is counted."""
        if len(text) < 64:
            return len(text) // 3 + 1
        key = (len(text), hash(text))
        known = self._symbols.get(key)
        if known is not None:
            self._symbols.move_to_end(key)
            return known
        part = text[:_COUNTED]
        n = self._symbols[key] = len(_PIECE.findall(part)) * len(text) // len(part)
        if len(self._symbols) > _TEXTS:
            self._symbols.popitem(last=False)
        return n


class Truncation:
    """One exchange's check. `window_tokens`: of the loaded model, as known before. `line`: names the conversation, if known."""

    def __init__(
        self, asked: Asked, calibration: Calibration, *, window_tokens: int | None = None, line: object | None = None
    ) -> None:
        options = asked.options or {}
        self._calibration = calibration
        self._model = asked.model or ""
        self._line = line
        sizes, self._size, self._tools = size_of(asked, calibration)
        self._messages = _sum(sizes)
        old = zip(asked.messages[:-1], sizes, strict=False)
        self._droppable = [size for message, size in old if message.role != "system"][:_OLDEST]
        self._media = any(message.media for message in asked.messages)
        self._keep = _whole(options.get("num_keep"), _DEFAULT_KEEP)
        self._asked_window = _whole(options.get("num_ctx"), 0) if asked.dialect == "ollama" else 0
        self._window = window_tokens or 0
        self._fresh = False  # `_window` was seen while this request was under way
        self._limit = asked.max_output_tokens
        self._input: int | None = None
        self._output: int | None = None

    def see(self, event: Event) -> Iterable[Finding]:
        match event:
            case Usage():
                if not event.estimated:
                    self._input = event.input_tokens if event.input_tokens else self._input
                    self._output = event.output_tokens if event.output_tokens is not None else self._output
            case Residency():
                self._resident(event)
            case Failed():
                return self._refused(event)
            case Finished():
                return self._judge(event.t_ns, event.reason)
            case Cut():
                return self._judge(event.t_ns, None)
        return ()

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        """What the model says tells nothing about what it was told."""

    def _resident(self, event: Residency) -> None:
        names = (self._model, f"{self._model}:latest")
        for model in event.models:
            if model.name in names and model.context_window:
                self._window, self._fresh = model.context_window, True

    # --- the verdict

    def _judge(self, t_ns: int, reason: str | None) -> list[Finding]:
        tokens = self._input
        if tokens is None or not self._model:
            return []
        windows = self._windows(tokens)
        estimate = self._calibration.estimate(self._model, self._tools, self._size)
        before = self._calibration.before(self._line) if self._line is not None else None
        found = self._exact(windows, estimate, tokens, t_ns) or self._dropped(windows, estimate, before, tokens, t_ns)
        if not found and self._line is not None and windows:
            sure = self._calibration.past(self._line, self._size, windows[0])
            if sure is not None:
                found = [self._tell("dropped", sure, windows[0], estimate, tokens, t_ns)]
        if found and self._line is not None and windows:
            confidence = str(found[0].evidence["confidence"])
            self._calibration.outgrew(self._line, self._size, windows[0], "high" if confidence == "certain" else confidence)
        if not found:
            self._learn(windows, estimate, tokens, grown=before is not None and tokens > before[1])
            found = self._overflow(windows, tokens, reason, t_ns)
            if self._line is not None:
                if before is not None and not self._media and not (windows and tokens > 0.9 * windows[0]):
                    by = self._size - before[0]
                    self._calibration.grew(self._model, by, tokens - before[1])
                self._calibration.stand(self._line, self._size, tokens)
        return found

    def _windows(self, tokens: int) -> list[int]:
        """Windows that may have been in force; one that is smaller than what was evaluated was not."""
        if self._asked_window and self._fresh and self._window < self._asked_window:
            likely = [self._window]  # clamped to what the model was trained on
        elif self._asked_window:
            likely = [self._asked_window]
        else:
            likely = [self._window]
        return [window for window in likely if window >= tokens]

    def _exact(self, windows: list[int], estimate: Estimate, tokens: int, t_ns: int) -> list[Finding]:
        n_bytes, n_symbols, _ = self._size
        plain = 0.0
        if estimate.samples < 2 or not estimate.low <= tokens <= estimate.high:  # the line does not explain the count either
            plain = max(min(n_bytes * _PRIOR, n_symbols * _SYMBOL), 0.9 * n_symbols)
        for window in windows:
            if tokens in half_window(window, self._keep) and max(estimate.middle, plain) >= 0.75 * window:
                sure = estimate.low > 1.1 * tokens or estimate.middle > 1.3 * tokens
                return [self._tell("half_window", "certain" if sure else "high", window, estimate, tokens, t_ns)]
        return []

    def _dropped(
        self, windows: list[int], estimate: Estimate, before: tuple[Size, int] | None, tokens: int, t_ns: int
    ) -> list[Finding]:
        if self._media:
            return []  # a picture's tokens are not known, so neither is what is missing
        window = windows[0] if windows else None
        if before is not None and self._size.n_bytes >= before[0].n_bytes and self._size.n_symbols >= before[0].n_symbols:
            had = before[1]
            by = self._size - before[0]
            more = by.by(estimate.measure)
            least = had + self._calibration.least_growth(self._model, by, before[0], had)
            if estimate.samples < 2:  # the conversation itself is the better teacher
                estimate = estimate._replace(slope=had / before[0].n_symbols, measure=1, middle=had + by[1] * had / before[0][1])
                more = float(by.n_symbols)
            most = had + more * estimate.slope * 1.8
            near = window is not None and tokens > _NEAR * window
            explained = estimate.samples >= 2 and tokens >= estimate.middle  # what fitted before says that all of it was counted
            lost = tokens * 1.008 < least if near else tokens < least - max(8, 0.01 * had) and not explained
            fell = tokens < had - max(8, 0.01 * had)
            fits = window is not None and (least > _FAR * tokens or self._fits(window, estimate, tokens, least, most))
            if lost and fits and window is not None and max(most, least) > window >= tokens:
                sure = fell or self._calibration.knows(self._model)
                return [self._tell("dropped", "high" if sure else "medium", window, estimate, tokens, t_ns)]
            if fell and more > 0 and (window is None or had > 0.5 * window):
                return [self._tell("dropped", "medium" if window is None else "high", window, estimate, tokens, t_ns)]
        if window is None or tokens > window:
            return []
        if before is None and self._calibration.knows(self._model):  # what its messages alone must have cost
            least = self._calibration.least_growth(self._model, self._messages, self._messages, tokens)
            if least > max(window, 1.05 * tokens) and tokens > 0.5 * window:
                return [self._tell("dropped", "high", window, estimate, tokens, t_ns)]
        if window >= estimate.high:
            return []
        if tokens < (0.99 if tokens > _NEAR * window else 0.97) * estimate.low and self._fits(
            window, estimate, tokens, estimate.low, estimate.high
        ):
            return [self._tell("dropped", "high" if estimate.samples >= 2 else "medium", window, estimate, tokens, t_ns)]
        return []

    def _fits(self, window: int, estimate: Estimate, tokens: int, least: float, most: float) -> bool:
        """Is there a number of oldest messages without which about so many tokens are left, and with one of them too many?"""
        gone_least = gone_most = 0.0
        for size in self._droppable:
            low, high = size.by(estimate.measure) * estimate.slope * 0.7, size.by(estimate.measure) * estimate.slope * 1.5
            gone_least += low
            gone_most += high
            if least - gone_most <= tokens <= most - gone_least and tokens + high > window:
                return True
            if most - gone_least < tokens:
                break
        return False

    def _overflow(self, windows: list[int], tokens: int, reason: str | None, t_ns: int) -> list[Finding]:
        """What happens to the window while generating. Only with a window that is certain."""
        if self._output is None or not windows or not (self._fresh or self._asked_window):
            return []
        window, total = windows[0], tokens + self._output
        if total > window:
            return [self._tell("shifted", "certain", window, None, tokens, t_ns)]
        limited = self._limit is not None and self._output >= self._limit
        if reason in ("length", "max_tokens") and total >= window - 1 and not limited:
            return [self._tell("full", "certain", window, None, tokens, t_ns)]
        return []

    def _refused(self, event: Failed) -> list[Finding]:
        if event.n_ctx is None and not _REFUSALS.search(event.message):
            return []
        asked, window = event.n_prompt_tokens, event.n_ctx
        if asked is not None and self._model and window is not None:
            self._calibration.learn(self._model, self._tools, self._size, asked)
        size = f"{asked} tokens" if asked is not None else "more tokens"
        fits = f"a window of {window}" if window is not None else "its window"
        says = f"Ollama refused the prompt: {size} do not fit into {fits}; {_REMEDY}."
        evidence: dict[str, object] = {
            "form": "refused",
            "confidence": "certain",
            "window_tokens": window,
            "asked_tokens": asked,
            "lost_tokens": None,
            "remedy": _REMEDY,
        }
        return [Finding("context.truncated", "violation", says, event.t_ns, evidence)]

    def _learn(self, windows: list[int], estimate: Estimate, tokens: int, *, grown: bool) -> None:
        if self._media:
            return
        if windows:
            window = windows[0]
            if (
                tokens > (0.85 if grown else 0.6) * window
                or estimate.middle > 0.9 * window
                or tokens in half_window(window, self._keep)
            ):
                return  # it may have been cut, so it teaches nothing
        elif tokens > 1_800 or self._size.n_bytes * _PRIOR > 3_600:  # the smallest window that Ollama chooses by itself is 4 096
            return
        self._calibration.learn(self._model, self._tools, self._size, tokens)

    # --- telling

    def _tell(self, form: str, confidence: str, window: int | None, estimate: Estimate | None, tokens: int, t_ns: int) -> Finding:
        evidence: dict[str, object] = {
            "form": form,
            "confidence": confidence,
            "window_tokens": window,
            "input_tokens": tokens,
            "remedy": _REMEDY,
        }
        of = f"a window of {window} tokens" if window is not None else "its window"
        if estimate is None:
            evidence["output_tokens"] = self._output
            says = f"Prompt ({tokens}) and answer ({self._output}) "
            if form == "shifted":
                says += f"are longer than {of}: the oldest tokens were discarded while generating; {_REMEDY}."
            else:
                says += f"fill {of}, and the answer ended there; {_REMEDY}."
            return Finding("context.truncated", "suspect", says, t_ns, evidence)
        asked = max(round(estimate.middle), tokens)
        evidence |= {
            "estimated_tokens": asked,
            "estimated_from": "requests that fitted" if estimate.samples >= 2 else "its bytes",
            "lost_tokens": asked - tokens,
        }
        severity: Severity = "suspect" if confidence == "medium" else "violation"
        what = "its beginning was cut off" if form == "half_window" else "its oldest messages were dropped"
        says = f"The prompt did not fit into {of}: of about {asked} tokens {tokens} were evaluated, {what}; {_REMEDY}."
        return Finding("context.truncated", severity, says, t_ns, evidence)


def half_window(window: int, keep: int) -> set[int]:
    """Tokens that are left of a prompt longer than `window` - 1, without and with a BOS token. A negative `keep` keeps all."""
    ks = {window - 1} if keep < 0 else {min(keep, window - 1), min(keep + 1, window - 1)}
    return {window - max((window - k) // 2, 1) for k in ks}


def size_of(asked: Asked, calibration: Calibration) -> tuple[list[Size], Size, int]:
    """What becomes prompt tokens, for each message and as a whole, and a number that names the tool set.

    Earlier thinking is left out: most templates drop it.
    """
    sizes: list[Size] = []
    for message in asked.messages:
        text = message.text
        if "<think>" in text and message.role == "assistant":
            text = _THOUGHTS.sub("", text)
        n_bytes, n_symbols, n_characters = _bytes(text) + 16, calibration.symbols(text) + 5, len(text) + 16
        for call in message.calls:
            n_bytes += _bytes(call.arguments) + len(call.name) + 24
            n_symbols += calibration.symbols(call.arguments) + 8
            n_characters += len(call.arguments) + len(call.name) + 24
        sizes.append(Size(n_bytes, n_symbols, n_characters))
    tools = sum(len(tool.parameters or b"") + len(tool.name) for tool in asked.tools)
    whole = _sum([*sizes, Size(tools, tools // 2, tools)])
    return sizes, whole, hash((len(asked.tools), tools))


def _sum(sizes: list[Size]) -> Size:
    return Size(*map(sum, zip(*sizes, strict=True))) if sizes else Size(0, 0, 0)


def _bytes(text: str) -> int:
    """UTF-8 bytes, of which a pair of blanks counts as one."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return size - text.count("  ")


def _line(samples: list[tuple[float, int]], size: float, measure: int, doubt: float) -> Estimate:
    """Least squares through (size, tokens), in relative terms; the interval grows with the residuals and with the distance."""
    weights = [1 / tokens for _, tokens in samples]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, samples, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, samples, strict=True)) / total
    slope = mean_y / mean_x
    widest, narrowest = max(x for x, _ in samples), min(x for x, _ in samples)
    if widest > 1.3 * narrowest:
        spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, samples, strict=True))
        slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, samples, strict=True)) / spread
    slope = min(max(slope, 0.5 * mean_y / mean_x), 2 * mean_y / mean_x)
    middle = max(mean_y + slope * (size - mean_x), 0.4 * mean_y / mean_x * size)
    away = max(abs(mean_y + slope * (x - mean_x) - y) / y for x, y in samples)
    doubt += 1.4 * away + (0.1 if len(samples) < 4 else 0) + 0.03 * max(size / widest - 1, 0)
    return Estimate(middle * max(1 - doubt, 0.4), middle, middle * (1 + doubt), slope, len(samples), measure)


def _kept(store: OrderedDict[_K, _V], key: _K, fresh: _V, most: int) -> _V:
    value = store.get(key)
    if value is None:
        value = store[key] = fresh
        if len(store) > most:
            store.popitem(last=False)
    else:
        store.move_to_end(key)
    return value


def _whole(value: object, otherwise: int) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 else otherwise
