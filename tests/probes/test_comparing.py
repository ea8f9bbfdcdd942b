"""Two rows of runs compared in a process of its own: the command's numbers, and refusals in words."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from probes.compare import compare
from probes.comparing import compared
from qm_proxy.errors import QmError
from tests.probes.fakes import FakeModel
from tests.probes.test_compare import measured


def row(result: Any) -> dict[str, Any]:
    return {"id": "r", "state": "done", "result": json.loads(result.to_json(None))}


def test_it_is_the_commands_comparison() -> None:
    a, b = (measured(FakeModel(intercept=size), paired=6) for size in (4_000_000_000, 2_600_000_000))
    made = asyncio.run(compared(row(a), row(b), names=("a", "b")))
    assert made == json.loads(compare(a, b).model_dump_json(by_alias=True))
    assert made["schema"] == "qm-compare/1"
    assert made["metrics"]


def test_what_cannot_be_compared_is_refused_in_words_unless_forced() -> None:
    a, b = row(measured(FakeModel(), paired=6)), row(measured(FakeModel(), paired=6, seed=8))
    with pytest.raises(QmError, match="different seeds"):
        asyncio.run(compared(a, b, names=("a", "b")))
    assert asyncio.run(compared(a, b, names=("a", "b"), force=True))["warnings"]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (None, {"state": "done", "result": {}}, "no run 'first'"),
        ({"state": "done", "result": {"x": 1}}, None, "no run 'second'"),
        ({"state": "running", "result": None}, {"state": "done", "result": {"x": 1}}, "'first' is running"),
        ({"state": "done", "result": {"x": 1}}, {"state": "done", "result": {"x": 1}}, "no result of a probe"),
    ],
)
async def test_refusals(a: Any, b: Any, says: str) -> None:
    with pytest.raises(QmError, match=says):
        await compared(a, b, names=("first", "second"))


async def test_a_process_that_says_nothing_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "true")
    with pytest.raises(QmError, match="without an answer"):
        await compared({"result": {"x": 1}}, {"result": {"x": 1}}, names=("a", "b"))
