"""Rules judge limits, not points; every exit code is reachable."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.gate import Rule, Rules, gate, load_rules, lookup
from probes.result import AuditSection, DecodeCell, InspectorSection, Result, Run, Statistic, Target
from qm_proxy.errors import SettingsError


def stat(value: float, lo: float, hi: float) -> Statistic:
    return Statistic(value=value, ci=(lo, hi), level=0.95, method="m", n=5, unit="u")


def result(rate: float = 50, lo: float = 45, hi: float = 55) -> Result:
    made = Result(run=Run(id="i", kind="report", started_at="t", seed=1), target=Target(endpoint="e", name="m"))
    made.inspector = InspectorSection()
    cell = DecodeCell(
        depth_tokens=32, server_ms_per_token=stat(20, 19, 21), client_ms_per_token=stat(20, 19, 21), rate=stat(rate, lo, hi)
    )
    made.inspector.decode.cells = [cell]
    made.audit = AuditSection(verdict="limit not reached", sentence="s", maintained_tokens=8000)
    return made


def judged(
    rule: dict[str, object], made: Result | None = None, baseline: Result | None = None, unsure: str = "inconclusive"
) -> int:
    rules = Rules.model_validate({"rule": [rule], "on_inconclusive": unsure})
    return gate(made or result(), rules, baseline).exit_code


RATE = "inspector.decode.cells[0].rate"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"metric": RATE, "at_least": 40}, 0),
        ({"metric": RATE, "at_least": 50}, 3),
        ({"metric": RATE, "at_least": 60}, 1),
        ({"metric": RATE, "at_most": 60}, 0),
        ({"metric": RATE, "at_most": 40}, 1),
        ({"metric": "audit.maintained_tokens", "at_least": 8000}, 0),
        ({"metric": "audit.maintained_tokens", "at_least": 8001}, 3),  # nothing longer was asked
        ({"metric": "audit.verdict", "equals": "limit not reached"}, 0),
        ({"metric": "audit.verdict", "equals": "cliff"}, 1),
        ({"metric": "agent.verdict", "equals": "READY"}, 3),
        ({"metric": "agent.verdict", "equals": "READY", "optional": True}, 0),
        ({"metric": "inspector.valid", "equals": True}, 0),
    ],
)
def test_rules(rule: dict[str, object], code: int) -> None:
    assert judged(rule) == code


def test_how_far_accuracy_was_maintained_fails_only_where_a_loss_was_found() -> None:
    made = result()
    assert made.audit is not None
    for verdict, code in (("inconclusive", 3), ("maintained", 3), ("cliff", 1), ("gradual decline", 1)):
        made.audit.verdict, made.audit.maintained_tokens = verdict, 512  # type: ignore[assignment]
        assert judged({"metric": "audit.maintained_tokens", "at_least": 4096}, made) == code


@pytest.mark.parametrize(("unsure", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 3)])
def test_what_an_undecided_rule_means_is_the_users_choice(unsure: str, code: int) -> None:
    assert judged({"metric": RATE, "at_least": 50}, unsure=unsure) == code


def test_against_a_baseline() -> None:
    rule = {"metric": RATE, "no_worse_than": 0.1}
    assert judged(rule, result(49, 48, 50), result(50)) == 0
    assert judged(rule, result(30, 28, 32), result(50)) == 1
    assert judged(rule, result(45, 40, 50), result(50)) == 3
    slower = {"metric": "inspector.decode.cells[0].server_ms_per_token", "no_worse_than": 0.1, "lower_is_better": True}
    assert judged(slower, result(), result()) == 0
    with pytest.raises(SettingsError, match="--baseline"):
        judged(rule)
    empty = result()
    empty.inspector = None
    assert judged(rule, result(), empty) == 3


def test_an_invalid_or_failed_measurement_is_neither_pass_nor_fail() -> None:
    invalid = result()
    assert invalid.audit is not None
    invalid.audit.verdict = "invalid"
    assert judged({"metric": RATE, "at_least": 1}, invalid) == 4
    failed = result()
    failed.run.state, failed.run.exit_code, failed.run.reason = "failed", 5, "gone"
    assert judged({"metric": RATE, "at_least": 1}, failed) == 5
    for made in (invalid, failed):
        said = gate(made, Rules.model_validate({"rule": [{"metric": RATE, "at_least": 1}]}))
        assert [one.state for one in said.judged] == ["not judged"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rule = 3", "wrong"),
        ("[[rule]]\nmetric = 'a'", "exactly one"),
        ("[[rule]]\nmetric = 'a'\nat_least = 1\nat_most = 2", "exactly one"),
        ("[[rule]]\nmetric = 'a'\nat_lest = 1", "at_lest"),
        ("not toml", "wrong"),
        ("", "rule"),
    ],
)
def test_wrong_rules_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words):
        load_rules(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_rules(tmp_path / "none.toml")


def test_a_good_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(f'on_inconclusive = "pass"\n[[rule]]\nmetric = "{RATE}"\nat_least = 40\n')
    rules = load_rules(path)
    assert rules.rule == [Rule(metric=RATE, at_least=40)]
    assert gate(result(), rules).sentence == "1 rules: 1 pass."


def test_paths() -> None:
    document = {"agent": {"tiers": [{"tier": "easy", "n": 1}, {"tier": "hard", "n": 2}]}, "map": {"a": 1}}
    assert lookup(document, "agent.tiers[hard].n") == 2
    assert lookup(document, "agent.tiers[-1].n") == 2
    assert lookup(document, "agent.tiers[extreme].n") is None
    assert lookup(document, "map[a]") == 1
    assert lookup(document, "none.of.it") is None
    with pytest.raises(SettingsError, match="no metric path"):
        lookup(document, "a..b")
    with pytest.raises(SettingsError, match="is a section"):
        judged({"metric": "inspector.decode", "at_least": 1})
    with pytest.raises(SettingsError, match="no number"):
        judged({"metric": "audit.verdict", "at_least": 1})
