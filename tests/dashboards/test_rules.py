"""The alert and recording rules: sound to promtool, proved by its rule tests, and in the names table's language."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import promql_parser as promql
import pytest

from qm_proxy.telemetry.names import LABELS, METRICS, prometheus_name

from .conftest import selectors

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")


def expressions(rules: str) -> dict[str, str]:
    """Name of each rule → its expression, from the YAML of this repository: one line, or a `|` block."""
    found: dict[str, str] = {}
    pattern = r"^ {6}- (?:record|alert): (\S+)\n {8}expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)"
    for match in re.finditer(pattern, rules, re.MULTILINE):
        found[match[1]] = match[2] or match[3]
    return found


@pytest.fixture(scope="module")
def rules(dashboards: Path) -> dict[str, str]:
    text = (dashboards / "prometheus" / "rules.yml").read_text()
    found = expressions(text)
    assert len(found) == len(re.findall(r"^ +- (?:record|alert):", text, re.MULTILINE))
    return found


def promtool(*arguments: str, cwd: Path) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_checks_config_and_rules(dashboards: Path, rules: dict[str, str]) -> None:
    assert f"{len(rules)} rules found" in promtool("check", "config", "prometheus.yml", cwd=dashboards / "prometheus")


@needs_promtool
def test_each_alert_fires_and_stays_silent(dashboards: Path) -> None:
    promtool("test", "rules", "rules_test.yml", cwd=dashboards / "prometheus")


@needs_promtool
def test_a_rule_that_does_not_fire_is_noticed(dashboards: Path, tmp_path: Path) -> None:
    """The rule tests can fail: the same, with each threshold out of reach."""
    text = (dashboards / "prometheus" / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(re.sub(r"\) > 0$", ") > 1e9", text, flags=re.MULTILINE))
    shutil.copy(dashboards / "prometheus" / "rules_test.yml", tmp_path)
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "QmLoop" in done.stdout + done.stderr


def test_every_alert_is_tested_to_fire(dashboards: Path, rules: dict[str, str]) -> None:
    """Each alert's name stands in the rule tests with alerts that must be there."""
    tests = (dashboards / "prometheus" / "rules_test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n +eval_time: \S+\n +exp_alerts:\n", tests))
    assert {name for name in rules if not name.startswith("qm:")} == fired


def test_rules_speak_the_names_tables_language(rules: dict[str, str]) -> None:
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    names = {prometheus_name(k) + s: {LABELS[label] for label in m.labels} for k, m in METRICS.items() for s in suffixes[m.kind]}
    for name, expression in rules.items():
        for selector in selectors(promql.parse(expression)):
            if selector.name == "up":
                continue
            if selector.name.startswith("qm:"):
                assert selector.name in rules, f"{name}: no rule records {selector.name}"
                continue
            assert selector.name in names, f"{name}: {selector.name} is not exposed"
            assert {m.name for m in selector.matchers.matchers} <= names[selector.name] | {"instance", "job", "le"}, name
