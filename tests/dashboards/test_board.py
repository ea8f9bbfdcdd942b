"""The board is what its script writes, is sound as Grafana JSON, and speaks the names table's language, both ways."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser as promql
import pytest

from qm_proxy.telemetry.names import LABELS, METRICS, Metric, prometheus_name

from .conftest import filled, groupings, selectors

SCRAPED = {"instance", "job", "le"}
UNITS = {"short", "s", "bytes", "percentunit"}


def exposed() -> dict[str, tuple[str, Metric]]:
    """Every series name that /metrics can show → the key of its metric."""
    found: dict[str, tuple[str, Metric]] = {}
    for key, metric in METRICS.items():
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}[metric.kind]
        found |= {prometheus_name(key) + suffix: (key, metric) for suffix in suffixes}
    return found


def shown(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in shown(board) for target in panel["targets"]]


def test_the_committed_board_is_what_the_script_writes(dashboards: Path, build: ModuleType) -> None:
    committed = (dashboards / "grafana" / "qm-proxy.json").read_text()
    assert committed == json.dumps(build.board(), indent=2) + "\n", "run `python dashboards/build.py`"


def test_six_rows(board: dict[str, Any]) -> None:
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Now", "Feel", "Where time goes", "Trust", "Why slow", "Self"]


def test_every_panel_has_its_own_id_title_unit_and_words(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
    for panel in shown(board):
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), panel["title"]


def test_no_panel_covers_another_or_leaves_the_grid(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] | {"title": panel["title"]} for panel in board["panels"]]
    for place in places:
        assert place["w"] > 0
        assert place["h"] > 0
        assert 0 <= place["x"] <= 24 - place["w"], place
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        over = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or over, f"{a['title']} covers {b['title']}"


def test_no_datasource_is_named(board: dict[str, Any]) -> None:
    assert board["templating"]["list"][0]["type"] == "datasource"
    variables = [v for v in board["templating"]["list"] if v["type"] == "query"]
    for part in [*shown(board), *(t for p in shown(board) for t in p["targets"]), *variables]:
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_probes_are_left_out_unless_asked_for(board: dict[str, Any]) -> None:
    origin = next(v for v in board["templating"]["list"] if v["name"] == "origin")
    assert origin["current"]["value"] == ["client"]
    assert {option["value"] for option in origin["options"]} == {"$__all", "client", "probe"}


def test_every_expression_parses(board: dict[str, Any]) -> None:
    for expression in expressions(board):
        promql.parse(filled(expression))


def test_what_a_panel_asks_for_is_in_the_names_table(board: dict[str, Any]) -> None:
    names = exposed()
    for expression in expressions(board):
        tree = promql.parse(filled(expression))
        for selector in selectors(tree):
            assert selector.name in names, f"{selector.name} is not exposed"
            key, metric = names[selector.name]
            has = {LABELS[label] for label in metric.labels} | SCRAPED
            assert {m.name for m in selector.matchers.matchers} <= has, f"{key}: {expression}"
        may = {LABELS[label] for s in selectors(tree) for label in names[s.name][1].labels} | SCRAPED
        assert set(groupings(tree)) <= may, expression


def test_every_metric_is_shown_somewhere(board: dict[str, Any]) -> None:
    names = exposed()
    used = {names[s.name][0] for e in expressions(board) for s in selectors(promql.parse(filled(e)))}
    assert set(METRICS) - used == set()


def test_every_selector_is_filtered_by_what_its_metric_has(board: dict[str, Any]) -> None:
    """A panel that forgets a variable shows other models' or a probe's numbers under the chosen one's name."""
    names = exposed()
    for expression in expressions(board):
        for selector in selectors(promql.parse(expression.replace("$__rate_interval", "1m").replace("$__range", "1h"))):
            _, metric = names[selector.name]
            variables = {m.value for m in selector.matchers.matchers if m.value.startswith("$")}
            filters = {"request_model": "$model", "client": "$client", "origin": "$origin"}
            assert variables == {"$instance"} | {v for label, v in filters.items() if label in metric.labels}, expression


def test_legends_name_labels_that_the_query_keeps(board: dict[str, Any]) -> None:
    for panel in shown(board):
        for target in panel["targets"]:
            wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = set(groupings(promql.parse(filled(target["expr"]))))
            assert wanted <= kept, f"{panel['title']}: {wanted - kept}"


def test_variables_ask_for_labels_that_their_metric_has(board: dict[str, Any]) -> None:
    names = exposed()
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match is not None
            assert match[2] in {LABELS[label] for label in names[match[1]][1].labels} | SCRAPED


def test_an_unknown_variable_is_noticed() -> None:
    with pytest.raises(AssertionError):
        filled('up{job="$nothing"}')
