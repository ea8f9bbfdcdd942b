"""The requests of an inspection, P0 to P8, in their order; what they answered is kept in `Seen` for `conclude`.

    P0 survey · P1 unload, verified · P2 page cache · P3 cold · P4 warm up till stable · P5 prefill ladder, shuffled
    P6 decode, shallow and at depths · P7 shallow repeat (drift) · P8 memory at other windows (P9: `survey.restore`)

Apple's runner takes memory as tokens come: there P8 is one more cold start with a long prompt, right after P3; it counts as a
cold start, and as the first warm-up. The warm-up that ends P4 is one of the decodes at that depth, where several are wanted.
Every prompt begins with a fresh nonce, so no prefix is cached; every request carries `truncate:false, shift:false` and all
options, because a different value would reload the runner.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from probes.ask import Answer, Ask, Note, Probe, Stopped, Wait, patience
from probes.inspector.plan import Plan, cost
from probes.pace import pace_of, spell
from probes.padding import fill, nonce
from probes.stats.robust import median
from probes.survey import Resident, Survey, hung, residents, survey, unload
from qm_proxy.errors import UpstreamError

__all__ = ["Sample", "Seen", "phases"]

KEEP_ALIVE = "10m"
_DECODE_TASK = "\n\nContinue with a long and varied report about daily work in that organisation, in full sentences.\n\n"
_STABLE = 0.03
_EMPTIED = 0.05
"""Share of the weights that may stay in the page cache in a start that is called disk-cold."""


@dataclass(slots=True)
class Sample:
    """One measured request and what it was for."""

    answer: Answer
    purpose: str
    target_tokens: int

    @property
    def prompt_tokens(self) -> int | None:
        return self.answer.input_tokens

    @property
    def prefill_s(self) -> float | None:
        usage = self.answer.usage
        return usage.prefill_ns / 1e9 if usage is not None and usage.prefill_ns is not None else None

    @property
    def load_s(self) -> float | None:
        usage = self.answer.usage
        return usage.load_ns / 1e9 if usage is not None and usage.load_ns is not None else None

    @property
    def decode_s_per_token(self) -> float | None:
        usage = self.answer.usage
        if usage is None or not usage.decode_ns or not usage.output_tokens:
            return None
        return usage.decode_ns / 1e9 / usage.output_tokens


@dataclass(slots=True)
class Seen:
    """All observations of an inspection, complete or not."""

    survey: Survey | None = None
    cold: list[Sample] = field(default_factory=list)
    filled: list[Sample] = field(default_factory=list)  # cold starts with a long prompt, which fill the cache
    cold_verified: list[bool] = field(default_factory=list)
    cold_resident: list[float | None] = field(default_factory=list)  # share of the weights in the page cache before
    warm_up: list[Sample] = field(default_factory=list)
    prefill: list[Sample] = field(default_factory=list)
    cached: Sample | None = None
    decode: list[Sample] = field(default_factory=list)
    deep: list[Sample] = field(default_factory=list)
    again: list[Sample] = field(default_factory=list)
    resident: Resident | None = None
    memory: list[tuple[int, int, Resident]] = field(default_factory=list)  # (window, tokens held, what ps said)
    discarded: int = 0
    reloaded: int = 0  # prefills that met a runner that had to load first: not warm, so thrown away too
    failed: list[Answer] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    stopped: Stopped | None = None


def phases(plan: Plan, seen: Seen) -> Probe[None]:
    """Ask everything, filling `seen`. Stops early by `Stopped`, after which the model is left as it is."""
    asker = _Asker(plan, seen)
    ladder = [
        (length, repeat)
        for length in plan.prefill_lengths
        for repeat in range(plan.prefills_of(length) - (length == plan.cached_length))  # one more is asked by `cached`
    ]
    steps = plan.cold_repeats + len(ladder) + plan.decode_repeats + len(plan.depths) + 6
    done = 0

    yield Note("looking at server and model", done, steps)
    if seen.survey is None:
        seen.survey = yield from survey(plan.model, plan.endpoint)
        seen.warnings += seen.survey.warnings
    found = seen.survey

    short = plan.short_starts(lazy=found.lazy)
    if plan.compat is not None and short == 1:
        yield from asker.learn_rate()
    starts = short + plan.evict_page_cache
    for repeat in range(starts):
        yield Note(f"cold start {repeat + 1} of {starts}", done, steps)
        yield from unload(f"P1/{repeat}", found)
        yield Wait(f"P1/{repeat}/settle", 2.0 if found.target.runner == "gguf" and plan.host.gpus else 0.2)
        before = yield from residents(f"P2/{repeat}/ps")
        seen.cold_verified.append(found.ours(before) is None)
        evicting = repeat >= short
        resident: float | None = None
        if found.blob is not None and plan.host.local and plan.host.described is None:
            looked = yield Ask(f"P2/{repeat}/cache", found.blob, {"evict": evicting}, method="LOCAL")
            resident = looked.document.get("resident") if isinstance(looked.document, dict) else None
        yield from asker.cold(repeat, resident, last=repeat == starts - 1, evicting=evicting)
        if plan.compat is not None and repeat == 0 and starts > 1:
            yield from asker.learn_rate()
        done += 1
    if found.lazy:
        for tokens in plan.fill_depths:
            yield Note(f"cold start that fills the cache with {tokens} tokens", done, steps)
            yield from asker.fill(found, tokens)

    for number in range(len(seen.warm_up), plan.warm_up_most):
        yield Note("warming up", done, steps)
        stable = yield from asker.warm_up(number)
        if stable:
            break
    done += 1

    pace = pace_of([sample.answer for sample in (*seen.cold, *seen.filled, *seen.warm_up)])
    if pace.prefill_per_s is not None:
        yield Note(f"inspect: {spell(cost(plan, pace, lazy=found.lazy).seconds)} in all ({pace.words(1)})", lasting=True)

    asker.draw.shuffle(ladder)
    for length, repeat in ladder:
        yield Note(f"prefill of {length} tokens", done, steps)
        yield from asker.prefill(length, repeat)
        done += 1
    yield from asker.cached()

    for repeat in range(plan.decode_repeats):
        yield Note(f"decode {repeat + 1} of {plan.decode_repeats}", done, steps)
        yield from asker.decode(f"P6/shallow/{repeat}", 32, plan.decode_tokens, seen.decode)
        done += 1
    for depth in plan.depths:
        for repeat in range(sum(sample.target_tokens == depth for sample in seen.deep), plan.depth_repeats):
            yield Note(f"decode at depth {depth}", done, steps)
            yield from asker.decode(f"P6/{depth}/{repeat}", depth, plan.depth_tokens, seen.deep)
        done += 1
    yield from asker.decode("P7/shallow", 32, plan.decode_tokens, seen.again)

    if not found.lazy:
        yield Note("memory at other windows", done, steps)
        yield from asker.memory(found)
    yield Note("done", steps, steps)


class _Asker:
    """Builds prompts of wanted lengths and files what they answered."""

    def __init__(self, plan: Plan, seen: Seen) -> None:
        self.plan = plan
        self.seen = seen
        self.draw = random.Random(f"inspect/{plan.seed}")
        self._characters_per_token = 4.0
        self._observed: list[tuple[int, int]] = []  # (characters, tokens)
        self._texts = 0

    def prompt(self, tokens: int, task: str = "") -> str:
        """A unique text of about that many tokens; its very first characters were never seen before."""
        self._texts += 1
        length = max(16, round(tokens * self._characters_per_token))
        head = f"{nonce(self.draw)} "
        body = "".join(fill("policy", f"{self.plan.seed}/{self._texts}", max(0, length - len(head) - len(task))))
        return head + body + task

    def generate(self, key: str, prompt: str, n: int, *, window: int | None = None) -> Probe[Answer]:
        options = {**self.plan.options, "num_predict": n}
        if window is not None:
            options["num_ctx"] = window
        body: dict[str, object] = {
            "model": self.plan.model,
            "prompt": prompt,
            "raw": True,
            "stream": True,
            "keep_alive": KEEP_ALIVE,
            "truncate": False,
            "shift": False,
            "options": options,
        }
        loads = not self.seen.warm_up or window is not None
        wait = patience(round(len(prompt) / self._characters_per_token), loads=loads)
        answer = yield Ask(key, "/api/generate", body, silence_s=wait)
        if answer.ok and answer.input_tokens:
            self._learn(len(prompt), answer.input_tokens)
        elif answer.silent:
            raise hung(self.plan.model, answer)
        elif not answer.ok:
            self.seen.failed.append(answer)
            if len(self.seen.failed) >= 3:
                raise UpstreamError(f"{self.plan.model} failed three times; last: {answer.why}.", remedy="See the server's log.")
        return answer

    def _learn(self, characters: int, tokens: int) -> None:
        """Length over tokens, from the two most recent different sizes: a fixed part (BOS) is not charged to the text."""
        self._observed.append((characters, tokens))
        large = max(self._observed[-6:], key=lambda pair: pair[1])
        if large[1] >= 16:
            self._characters_per_token = large[0] / large[1]

    def learn_rate(self) -> Probe[None]:
        """One longer prompt before the last cold start, so that the length of its prompt is right."""
        yield from self.generate("P0/rate", self.prompt(max(512, self.plan.cold_prompt)), 1)

    def cold(self, repeat: int, resident: float | None, *, last: bool, evicting: bool) -> Probe[None]:
        tokens = self.plan.last_cold_tokens if last else self.plan.cold_tokens
        answer = yield from self.generate(f"P3/{repeat}", self.prompt(self.plan.cold_prompt, _DECODE_TASK), tokens)
        if not answer.ok:
            return
        emptied = resident is not None and resident <= _EMPTIED
        if evicting and not emptied:
            reason = "its file cannot be read from here" if resident is None else f"{resident:.0%} of it stayed"
            self.seen.warnings.append(("not_evicted", f"The weights could not be put out of the page cache: {reason}."))
        self.seen.cold.append(Sample(answer, "disk-cold" if evicting and emptied else "cold", self.plan.cold_prompt))
        self.seen.cold_resident.append(resident)
        found = self.seen.survey
        assert found is not None
        mine = found.ours((yield from residents(f"P3/{repeat}/ps")))
        if mine is None:
            self.seen.warnings.append(("not_resident", "The model was not listed by /api/ps right after it answered."))
            return
        self.seen.resident = mine
        # on Apple's runner num_ctx is no limit, and ps shows the model's own
        if not found.lazy and mine.context_tokens is not None and mine.context_tokens != self.plan.window_tokens:
            self.seen.warnings.append(
                (
                    "window_differs",
                    f"Asked for a window of {self.plan.window_tokens} tokens, the server allocated {mine.context_tokens}.",
                )
            )
        held = (answer.input_tokens or 0) + (answer.output_tokens or 0)
        if last:
            self.seen.memory.append((mine.context_tokens or self.plan.window_tokens, held, mine))

    def warm_up(self, number: int) -> Probe[bool]:
        """A request of the largest prefill; true once two successive decode speeds differ by less than 3 %. The one that says
        so was asked of a warm runner, so it is a decode at that depth like those that follow; the others are discarded."""
        length = max(self.plan.prefill_lengths) if number < 2 else 128
        answer = yield from self.generate(f"P4/{number}", self.prompt(length, _DECODE_TASK), self.plan.warm_up_tokens)
        if answer.ok:
            self.seen.warm_up.append(Sample(answer, "warm-up", length))
        speeds = [speed for sample in self.seen.warm_up if (speed := sample.decode_s_per_token) is not None]
        stable = answer.ok and len(speeds) >= 2 and abs(speeds[-1] / speeds[-2] - 1) < _STABLE
        if stable and length in self.plan.depths and self.plan.depth_repeats > 1:
            self.seen.deep.append(Sample(answer, "decode", length))
        return stable

    def prefill(self, length: int, repeat: int | str) -> Probe[str]:
        """A fresh prompt of that length; answers its text, empty where none came through."""
        for attempt in range(3):
            text = self.prompt(length)
            answer = yield from self.generate(f"P5/{length}/{repeat}/{attempt}", text, 1)
            if not answer.ok:
                continue
            sample = Sample(answer, "prefill", length)
            if self._hit_a_cache(sample):
                self.seen.discarded += 1
                continue
            if self._reloaded(sample):
                self.seen.reloaded += 1
                continue
            self.seen.prefill.append(sample)
            return text
        return ""

    def _reloaded(self, sample: Sample) -> bool:
        """A warm request says some ten milliseconds of load; half of a cold start's is one."""
        cold = [load for start in self.seen.cold if (load := start.load_s) is not None]
        return bool(cold) and sample.load_s is not None and sample.load_s > max(0.1, 0.5 * median(cold))

    def _hit_a_cache(self, sample: Sample) -> bool:
        usage = sample.answer.usage
        if usage is not None and usage.cached_tokens:
            return usage.cached_tokens > 8
        alike = [other.prefill_s for other in self.seen.prefill if other.target_tokens == sample.target_tokens]
        known = [value for value in alike if value is not None]
        return bool(known) and sample.prefill_s is not None and sample.prefill_s < 0.5 * median(known)

    def cached(self) -> Probe[None]:
        """C3: the same prompt twice, the second time from the cache. The first is a prefill of that length like any other."""
        text = yield from self.prefill(self.plan.cached_length, "cached")
        if not text:
            return
        answer = yield from self.generate("P5/cached/second", text, 1)
        if answer.ok:
            self.seen.cached = Sample(answer, "cached", self.plan.cached_length)

    def decode(self, key: str, depth: int, n: int, into: list[Sample]) -> Probe[None]:
        answer = yield from self.generate(key, self.prompt(depth, _DECODE_TASK), n)
        if answer.ok:
            into.append(Sample(answer, "decode", depth))

    def fill(self, found: Survey, tokens: int) -> Probe[None]:
        """Start cold, fill the cache with so many tokens and read /api/ps: nothing else is in it then."""
        key = f"P8/fill{tokens}"
        yield from unload(key, found)
        before = yield from residents(f"{key}/before")
        self.seen.cold_verified.append(found.ours(before) is None)
        longest = tokens >= max(self.plan.prefill_lengths)
        n = self.plan.warm_up_tokens if longest else self.plan.cold_tokens
        answer = yield from self.generate(key, self.prompt(tokens, _DECODE_TASK), n)
        mine = found.ours((yield from residents(f"{key}/after")))
        if not answer.ok:
            return
        self.seen.filled.append(Sample(answer, "filled", tokens))
        if longest:
            self.seen.warm_up.append(Sample(answer, "warm-up", tokens))
        if mine is not None:
            held = (answer.input_tokens or 0) + (answer.output_tokens or 0)
            self.seen.memory.append((mine.context_tokens or self.plan.window_tokens, held, mine))

    def memory(self, found: Survey) -> Probe[None]:
        """Load at other windows with the same num_batch and read /api/ps."""
        for window in self.plan.memory_windows:
            answer = yield from self.generate(f"P8/{window}", self.prompt(32), 1, window=window)
            mine = found.ours((yield from residents(f"P8/{window}/ps")))
            if answer.ok and mine is not None:
                self.seen.memory.append((mine.context_tokens or window, (answer.input_tokens or 0) + 1, mine))
