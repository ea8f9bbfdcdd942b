"""The committed board and rules as the tests read them, and PromQL taken apart."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DASHBOARDS = Path(__file__).parents[2] / "dashboards"


@pytest.fixture(scope="session")
def dashboards() -> Path:
    return DASHBOARDS


@pytest.fixture(scope="session")
def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DASHBOARDS / "grafana" / "qm-proxy.json").read_text())
    return found


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """`dashboards/build.py`, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("dashboards_build", DASHBOARDS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(expression: str, **values: str) -> str:
    """`expression` as Grafana sends it: its variables replaced, the longest names first."""
    given = {
        "__rate_interval": "1m",
        "__range": "1h",
        "instance": ".*",
        "model": ".*",
        "client": ".*",
        "origin": "client",
    } | values
    for name in sorted(given, key=len, reverse=True):
        expression = expression.replace(f"${name}", given[name])
    assert "$" not in expression, f"a variable that the board lacks: {expression}"
    return expression


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a parsed expression."""
    import promql_parser as promql

    match node:
        case promql.VectorSelector():
            yield node
        case promql.MatrixSelector():
            yield node.vector_selector
        case promql.BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case promql.Call():
            for argument in node.args:
                yield from selectors(argument)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from selectors(node.expr)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise AssertionError(f"unknown kind of expression: {type(node)}")


def groupings(node: Any) -> Iterator[str]:
    """Every label that an aggregation below a parsed expression keeps or drops."""
    import promql_parser as promql

    match node:
        case promql.AggregateExpr():
            if node.modifier is not None:
                yield from node.modifier.labels
            yield from groupings(node.expr)
        case promql.BinaryExpr():
            if node.modifier is not None and node.modifier.matching is not None:
                yield from node.modifier.matching.labels
            yield from groupings(node.lhs)
            yield from groupings(node.rhs)
        case promql.Call():
            for argument in node.args:
                yield from groupings(argument)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from groupings(node.expr)
