"""Asks the ladder's trials: builds each prompt, guards against truncation, classifies the answer.

The guard: an explicit window, `truncate:false, shift:false`, /api/ps must show that window, the prompt's count must be what
calibration expects, and the header tag must still be known. What fails it is invalid: nothing is said about the model.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from probes.ask import Answer, Ask, Note, Probe, Stopped, patience
from probes.audit.facts import Family, Trial, make_trial, secret_code
from probes.audit.haystack import STRATA, Calibration, Prompt, build
from probes.audit.ladder import AskHeader, AskLate, AskTrial, Ladder
from probes.audit.plan import AuditPlan, audit_cost
from probes.audit.scoring import classify
from probes.pace import pace_of, spell
from probes.padding import Register, repetition
from probes.result import AnswerClass
from probes.survey import Survey, hung, residents, survey
from qm_proxy.errors import InvalidMeasurement, UpstreamError, UpstreamRefused

__all__ = ["Observed", "Trials"]

_SYSTEM = "You answer questions about reference material. You give the value that is asked for and nothing else."
_TOOLS = (
    "You act by tools. Tools: restart_service(service, ticket); list_services(); archive_ticket(ticket). "
    'Reply with one JSON object: {"name": "<tool>", "args": {…}}.'
)
_TRIES = 3
_KEEP_ALIVE = "10m"
_PACED = 40
_NEWS = 0.1


@dataclass(slots=True)
class Observed:
    """One trial as it went."""

    target: int
    index: int
    family: Family
    register: Register
    stratum: int
    depth: float
    outcome: AnswerClass
    prompt_tokens: int | None
    seconds: float
    prefill_s: float | None = None


@dataclass(slots=True)
class Trials:
    """One audit's state: `climb` runs it, the lists say what was seen."""

    plan: AuditPlan
    ladder: Ladder
    survey: Survey | None = None
    observed: list[Observed] = field(default_factory=list)
    guard: Counter[str] = field(default_factory=Counter)
    calibration: Calibration = field(default_factory=Calibration)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    repetition: list[float] = field(default_factory=list)
    material: dict[int, Prompt] = field(default_factory=dict)  # of each length, what was asked about last
    prompt_tokens: int = 0
    failures: int = 0
    last_failure: str = ""
    stopped: Stopped | None = None
    answers: list[Answer] = field(default_factory=list)  # the last ones: what the pace is measured by
    seconds: float = 0.0  # of all answers so far
    _priced: int = 0  # the longest rung before which that was said, or found to be no news
    planned_s: float | None = None  # the whole audit, by what was last said

    def climb(self) -> Probe[None]:
        """Survey, calibrate, climb."""
        yield Note("looking at server and model")
        if self.survey is None:
            self.survey = yield from survey(self.plan.model, self.plan.endpoint)
            self.warnings += self.survey.warnings
        yield from self._calibrate()
        yield from self._check_window()
        steps = self.ladder.run()
        wanted = self.plan.design.baseline_trials + 8 * (1 if self.plan.design.top_first else len(self.plan.design.rungs))
        try:
            step = next(steps)
            while True:
                yield from self._plan_again(step.target)
                yield Note(self._progress(step), len(self.observed), max(wanted, len(self.observed) + 1))
                match step:
                    case AskHeader():
                        kept = yield from self._header(step)
                    case AskLate():
                        kept = yield from self._late(step)
                    case _:
                        kept = yield from self._trial(step)
                step = steps.send(kept)
        except StopIteration:
            return

    def _plan_again(self, length: int) -> Probe[None]:
        """Say what it will take now that the pace is known: before the first trial, and before the first of a longer rung
        where that differs by more than a tenth from what was said."""
        if length <= self._priced:
            return
        self._priced = length
        pace = pace_of(self.answers)
        if pace.prefill_per_s is None:
            return
        done = Counter(one.target for one in self.observed)
        left = audit_cost(self.plan, pace, done).seconds
        if self.planned_s is not None and abs(self.seconds + left - self.planned_s) <= _NEWS * self.planned_s:
            return
        self.planned_s = self.seconds + left
        text = f"audit: {spell(self.planned_s)} in all if it stays good, {spell(left)} of it to come ({pace.words()})"
        yield Note(text, lasting=True)

    def _progress(self, step: AskTrial | AskHeader | AskLate) -> str:
        rung = self.ladder.rungs.get(step.target)
        so_far = f", {rung.correct} of {rung.n} right" if rung is not None and rung.n else ""
        return f"{step.target} tokens{so_far}"

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, key: str, prompt: Prompt, budget: int) -> Probe[Answer]:
        instruction = prompt.trial.family == "instruction"
        body: dict[str, object] = {
            "model": self.plan.model,
            "messages": [
                {"role": "system", "content": _TOOLS if instruction else _SYSTEM},
                {"role": "user", "content": prompt.text},
            ],
            "stream": True,
            "keep_alive": _KEEP_ALIVE,
            "truncate": False,
            "shift": False,
            "options": {**self.plan.options, "num_predict": budget},
        }
        if self.plan.think is not None:
            body["think"] = self.plan.think
        for attempt in range(_TRIES):
            wait = patience(len(prompt.text) // 3, loads=not self.prompt_tokens)
            answer = yield Ask(f"{key}/{attempt}" if attempt else key, "/api/chat", body, silence_s=wait)
            self.seconds += answer.total_s
            if answer.ok or _overflowed(answer):
                self.failures = 0
                self.prompt_tokens += answer.input_tokens or 0
                self.answers.append(answer)
                del self.answers[:-_PACED]
                return answer
            if answer.silent:
                raise hung(self.plan.model, answer)
            self.failures += 1
            self.last_failure = answer.why
            if answer.status is not None and 400 <= answer.status < 500:
                raise UpstreamRefused(
                    f"{self.plan.model} refuses the audit's request: {self.last_failure}.",
                    status=answer.status,
                    body=self.last_failure,
                )
            if self.failures >= 6:
                raise Stopped("upstream", f"six requests in a row failed; last: {self.last_failure}")
        return answer

    def _characters(self, prompt: Prompt) -> int:
        """What the count is learned on: the template and the system prompt are in the fixed part of the law."""
        return len(prompt.text)

    def _calibrate(self) -> Probe[None]:
        """Two lengths of each register: the law from characters to tokens."""
        for register in self.plan.registers:
            longest = self.plan.design.rungs[-1] if self.plan.design.rungs else self.plan.design.base_tokens
            for tokens in (min(256, longest // 2), min(1024, longest)):
                yield Note(f"calibrating {register}")
                trial = make_trial("literal", f"{self.plan.seed}/calibration/{register}/{tokens}")
                prompt = self._build(trial, register, tokens, f"calibration/{tokens}", depth=0.5)
                answer = yield from self._ask(f"calibrate/{register}/{tokens}", prompt, 1)
                if not answer.ok and not _overflowed(answer):
                    raise UpstreamError(
                        f"{self.plan.model} failed {_TRIES} times; last: {answer.why}.", remedy="See the server's log."
                    )
                if answer.input_tokens is None:
                    raise InvalidMeasurement(
                        f"A calibration prompt got no token count: {answer.error or 'prompt_eval_count is missing'}.",
                        remedy="The audit needs the count to tell truncation from forgetting.",
                    )
                self.calibration.learn(register, self._characters(prompt), answer.input_tokens)

    def _check_window(self) -> Probe[None]:
        assert self.survey is not None
        mine = self.survey.ours((yield from residents("window/ps")))
        if mine is not None and mine.context_tokens is not None and mine.context_tokens < self.plan.window_tokens:
            raise InvalidMeasurement(
                f"The server allocated a window of {mine.context_tokens} tokens where {self.plan.window_tokens} were asked for.",
                remedy=f"Audit up to {max(512, mine.context_tokens - 1024)} tokens with --max-tokens.",
            )

    def _build(
        self, trial: Trial, register: Register, tokens: int, name: str, *, stratum: int | None = None, depth: float | None = None
    ) -> Prompt:
        seed = f"{self.plan.seed}/{name}/{register}"
        header = secret_code(random.Random(f"header/{seed}"))
        characters = self.calibration.characters(register, tokens)
        return build(trial, register, characters, seed, header=header, stratum=stratum, depth=depth)

    # --- one trial --------------------------------------------------------------------------------------------------

    def _trial(self, step: AskTrial) -> Probe[bool | None]:
        """The same (target, index) is the same question, register and depth for every model and every run with this seed."""
        deal = random.Random(f"deal/{self.plan.seed}/{step.target}/{step.index // STRATA}")
        strata = deal.sample(range(STRATA), STRATA)
        stratum = strata[step.index % STRATA]
        family = self.plan.families[step.index % len(self.plan.families)]
        register: Register = "code" if family == "code" and "code" in self.plan.registers else self._register(step.index)
        name = f"{step.target}/{step.index}"
        trial = make_trial(family, f"{self.plan.seed}/{name}")
        for fitting in range(3):
            prompt = self._build(trial, register, step.target, name, stratum=stratum)
            answer = yield from self._ask(
                f"trial/{name}" + (f"/fit{fitting}" if fitting else ""), prompt, self.plan.answer_budget
            )
            count = answer.input_tokens if answer.ok else _overflowed(answer)
            if count is None or abs(count - step.target) <= max(16, 0.01 * step.target) or fitting == 2:
                break
            if not self._as_expected(register, prompt, count):
                break
            self.calibration.learn(register, self._characters(prompt), count)
            self.guard["refitted"] += 1
        self.material[step.target] = prompt
        outcome = yield from self._classified(f"trial/{name}", prompt, answer)
        self._file(step, prompt, stratum, answer, outcome)
        return None if outcome in ("invalid", "infra") else outcome == "correct"

    def _register(self, index: int) -> Register:
        return self.plan.registers[index // len(self.plan.families) % len(self.plan.registers)]

    def _as_expected(self, register: Register, prompt: Prompt, count: int) -> bool:
        """Fewer tokens than such a text has: something was cut. More is no truncation and only sharpens the law."""
        characters = self._characters(prompt)
        return count >= self.calibration.expected(register, characters) - self.calibration.tolerance(register, characters)

    def _classified(self, key: str, prompt: Prompt, answer: Answer) -> Probe[AnswerClass]:
        if _overflowed(answer):
            self.guard["refused: over the window"] += 1
            return "invalid"
        if not answer.ok:
            self.guard["infrastructure"] += 1
            return "infra"
        count = answer.input_tokens
        if count is None:
            self.guard["no count"] += 1
            return "invalid"
        if not self._as_expected(prompt.register, prompt, count):
            self.guard["fewer tokens than sent"] += 1
            return "invalid"
        self.guard["passed"] += 1
        self.calibration.learn(prompt.register, self._characters(prompt), count)
        outcome = self._judge(prompt.trial, answer)
        if outcome == "exhausted":
            answer = yield from self._ask(f"{key}/longer", prompt, 2 * self.plan.answer_budget)
            outcome = self._judge(prompt.trial, answer) if answer.ok else "infra"
        return outcome

    def _judge(self, trial: Trial, answer: Answer) -> AnswerClass:
        text = answer.text
        spent = answer.finished is not None and answer.finished.reason == "length"
        if not text.strip() and spent:
            return "exhausted" if answer.thinking or self.plan.think else "no_answer"
        return classify(trial, text)

    def _file(self, step: AskTrial, prompt: Prompt, stratum: int, answer: Answer, outcome: AnswerClass) -> None:
        usage = answer.usage
        if len(self.repetition) < 8 and len(prompt.text) > 4000:
            self.repetition.append(repetition(prompt.text))
        self.observed.append(
            Observed(
                target=step.target,
                index=step.index,
                family=prompt.trial.family,
                register=prompt.register,
                stratum=stratum,
                depth=prompt.depth,
                outcome=outcome,
                prompt_tokens=answer.input_tokens,
                seconds=answer.total_s,
                prefill_s=usage.prefill_ns / 1e9 if usage is not None and usage.prefill_ns is not None else None,
            )
        )

    def _header(self, step: AskHeader) -> Probe[bool | None]:
        """Is the first line of the material still known? Any other answer than the tag counts as lost.

        First of the very material that the last trial was asked about: that is the prompt whose front may have been cut, and
        a server that keeps its prefix answers at once. Later tries have material of their own."""
        trial = make_trial("header", f"{self.plan.seed}/header/{step.target}/{step.index}")
        last = self.material.get(step.target) if step.index == 0 else None
        if last is not None and last.trial.family != "instruction":  # whose system prompt is another
            prompt = last.asking(trial)
        else:
            register = self.plan.registers[step.index % len(self.plan.registers)]
            prompt = self._build(trial, register, step.target, f"header/{step.target}/{step.index}")
        asked = Trial("header", (), trial.question, prompt.header)
        answer = yield from self._ask(f"header/{step.target}/{step.index}", prompt, self.plan.answer_budget)
        if not answer.ok:
            return None
        kept = classify(asked, answer.text) == "correct"
        self.guard["header known" if kept else "header lost"] += 1
        return kept

    def _late(self, step: AskLate) -> Probe[bool | None]:
        """A literal fact in the last lines of the material."""
        name = f"late/{step.target}/{step.index}"
        register = self.plan.registers[step.index % len(self.plan.registers)]
        prompt = self._build(make_trial("literal", f"{self.plan.seed}/{name}"), register, step.target, name, depth=0.98)
        answer = yield from self._ask(name, prompt, self.plan.answer_budget)
        if not answer.ok:
            return None
        known = classify(prompt.trial, answer.text) == "correct"
        self.guard["late fact known" if known else "late fact lost"] += 1
        return known


def _overflowed(answer: Answer) -> int | None:
    """The true size of a prompt that the server refused as too long; 1 where it refused without saying it."""
    failed = answer.failed
    if failed is None or failed.status != 400:
        return None
    if failed.n_prompt_tokens is not None:
        return failed.n_prompt_tokens
    return 1 if "longer than the context length" in failed.message or "exceeds" in failed.message else None
