"""Rules in TOML → pass or fail for CI. It compares limits, not points: broken only where the interval says so.

    on_inconclusive = "inconclusive"      # or "pass", "fail": what an undecided rule means for the exit code

    [[rule]]
    metric = "inspector.decode.cells[0].rate"
    at_least = 40                          # or at_most; or equals, for verdicts

    [[rule]]
    metric = "audit.maintained_tokens"
    at_least = 8000

    [[rule]]
    metric = "agent.tiers[easy].rate"
    no_worse_than = 0.05                   # share below (or, with lower_is_better, above) the --baseline result

Exit codes: 0 all pass, 1 one is broken with confidence, 2 the rules are wrong, 3 undecided, 4 the measurement is invalid,
5 it failed on infrastructure.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from probes.result import Result
from qm_proxy.errors import SettingsError

__all__ = ["GateResult", "Judged", "Rule", "Rules", "gate", "load_rules", "lookup"]

State = Literal["pass", "fail", "inconclusive", "unmeasured", "not judged"]


class Rule(BaseModel):
    """One demand on one number of a result."""

    model_config = ConfigDict(extra="forbid")

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    equals: str | bool | None = None
    no_worse_than: float | None = None
    lower_is_better: bool = False
    optional: bool = False  # an unmeasured metric passes

    @model_validator(mode="after")
    def _one_demand(self) -> Rule:
        demands = [self.at_least, self.at_most, self.equals, self.no_worse_than]
        if sum(demand is not None for demand in demands) != 1:
            raise ValueError("a rule needs exactly one of at_least, at_most, equals, no_worse_than")
        return self


class Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")

    on_inconclusive: Literal["pass", "fail", "inconclusive"] = "inconclusive"
    rule: list[Rule] = Field(min_length=1)


class Judged(BaseModel):
    metric: str
    state: State
    value: float | str | bool | None
    limit: str
    words: str


class GateResult(BaseModel):
    exit_code: int
    sentence: str
    judged: list[Judged]


def load_rules(path: Path) -> Rules:
    """Read a rules file. Raises SettingsError that names what is wrong."""
    try:
        return Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as cause:
        raise SettingsError(f"The rules file {path} cannot be read: {cause.strerror}.") from cause
    except (tomllib.TOMLDecodeError, ValidationError) as cause:
        raise SettingsError(f"The rules file {path} is wrong: {cause}.") from cause


def gate(result: Result, rules: Rules, baseline: Result | None = None) -> GateResult:
    """Judge every rule. Raises SettingsError when a rule needs a baseline that was not given, or names no metric."""
    document = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    before = baseline.model_dump(mode="json", by_alias=True, exclude_none=True) if baseline is not None else None
    judged = [_bounded(_judge(rule, document, before), result) for rule in rules.rule]
    if result.run.state == "failed" and result.run.exit_code == 5:
        return GateResult(exit_code=5, sentence=f"The run failed: {result.run.reason}.", judged=_unjudged(judged))
    if _invalid(result):
        said = "The measurement is invalid: its numbers say nothing about the model."
        return GateResult(exit_code=4, sentence=said, judged=_unjudged(judged))
    states = [one.state for one in judged]
    failed, unsure = states.count("fail"), states.count("inconclusive") + states.count("unmeasured")
    if failed:
        code = 1
    elif unsure:
        code = {"pass": 0, "fail": 1, "inconclusive": 3}[rules.on_inconclusive]
    else:
        code = 0
    counted = ", ".join(
        f"{states.count(state)} {state}" for state in ("pass", "fail", "inconclusive", "unmeasured") if state in states
    )
    return GateResult(exit_code=code, sentence=f"{len(judged)} rules: {counted}.", judged=judged)


def _unjudged(judged: list[Judged]) -> list[Judged]:
    return [one.model_copy(update={"state": "not judged"}) for one in judged]


def _bounded(judged: Judged, result: Result) -> Judged:
    """How far accuracy was maintained is a lower limit where the audit met no loss, or was stopped before it could."""
    audit = result.audit
    if judged.metric != "audit.maintained_tokens" or judged.state != "fail" or audit is None:
        return judged
    if audit.verdict in ("maintained", "limit not reached", "inconclusive"):
        why = "a lower limit: longer prompts were not asked or not decided"
        return judged.model_copy(update={"state": "inconclusive", "words": f"{judged.words} ({why})"})
    return judged


def _invalid(result: Result) -> bool:
    inspected = result.inspector is not None and not result.inspector.valid
    return inspected or (result.audit is not None and result.audit.verdict == "invalid")


def lookup(document: dict[str, Any], path: str) -> Any:
    """The value at `inspector.decode.cells[0].rate` or `agent.tiers[hard].rate`; `None` where it is absent.

    Raises SettingsError when the path is no path.
    """
    parts = [re.fullmatch(r"(\w+)((?:\[[^\]]+\])*)", part) for part in path.split(".")]
    at: Any = document
    for found in parts:
        if found is None or None in parts:
            raise SettingsError(f"{path!r} is no metric path.", remedy="Write it like inspector.decode.cells[0].rate.")
        at = at.get(found.group(1)) if isinstance(at, dict) else None
        for key in re.findall(r"\[([^\]]+)\]", found.group(2)):
            at = _pick(at, key)
        if at is None:
            return None
    return at


def _pick(items: Any, key: str) -> Any:
    """By position, or the entry whose tier, name, family or length is `key`."""
    if isinstance(items, dict):
        return items.get(key)
    if not isinstance(items, list):
        return None
    if re.fullmatch(r"-?\d+", key) and -len(items) <= int(key) < len(items):
        return items[int(key)]
    names = ("tier", "name", "family", "state", "quantity", "target_tokens")
    return next(
        (item for item in items if isinstance(item, dict) and any(str(item.get(n, "")).lower() == key.lower() for n in names)),
        None,
    )


def _judge(rule: Rule, document: dict[str, Any], before: dict[str, Any] | None) -> Judged:
    found = lookup(document, rule.metric)
    if found is None:
        state: State = "pass" if rule.optional else "unmeasured"
        return Judged(metric=rule.metric, state=state, value=None, limit="", words=f"{rule.metric} was not measured")
    if rule.equals is not None:
        equal = found == rule.equals
        words = f"{rule.metric} is {found!r}, wanted {rule.equals!r}"
        return Judged(metric=rule.metric, state="pass" if equal else "fail", value=found, limit=f"= {rule.equals}", words=words)
    value, lo, hi = _bounds(found, rule.metric)
    if rule.no_worse_than is not None:
        if before is None:
            raise SettingsError(f"The rule on {rule.metric} compares with a baseline.", remedy="Give one with --baseline.")
        old = lookup(before, rule.metric)
        if old is None:
            return Judged(
                metric=rule.metric, state="unmeasured", value=value, limit="", words=f"{rule.metric} is not in the baseline"
            )
        reference, _, _ = _bounds(old, rule.metric)
        factor = 1 + rule.no_worse_than if rule.lower_is_better else 1 - rule.no_worse_than
        limit, least = reference * factor, not rule.lower_is_better
    else:
        least = rule.at_least is not None
        limit = rule.at_least if rule.at_least is not None else rule.at_most or 0.0
    sign = "≥" if least else "≤"
    met, broken = (lo >= limit, hi < limit) if least else (hi <= limit, lo > limit)
    state = "pass" if met else "fail" if broken else "inconclusive"
    interval = f" [{lo:.4g}, {hi:.4g}]" if lo != hi else ""
    unit = f" {found['unit']}" if isinstance(found, dict) and found.get("unit") else ""
    n = f" (n {found['n']})" if isinstance(found, dict) and found.get("n") else ""
    words = f"{rule.metric} = {value:.4g}{interval}{unit}{n}, wanted {sign} {limit:.4g}{unit}"
    return Judged(metric=rule.metric, state=state, value=value, limit=f"{sign} {limit:.6g}", words=words)


def _bounds(found: Any, path: str) -> tuple[float, float, float]:
    """Value and limits of a statistic, or of a plain number (which is its own limit)."""
    if isinstance(found, bool) or not isinstance(found, (int, float, dict)):
        raise SettingsError(f"{path} is {found!r}, no number.", remedy="Use `equals` for words.")
    if isinstance(found, dict):
        if "value" not in found:
            raise SettingsError(f"{path} is a section, no number.", remedy=f"Name one of: {', '.join(sorted(found))}.")
        lo, hi = found.get("ci") or (found["value"], found["value"])
        return float(found["value"]), float("-inf") if lo is None else float(lo), float("inf") if hi is None else float(hi)
    return float(found), float(found), float(found)
