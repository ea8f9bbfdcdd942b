"""The Anthropic dialect's own: the estimate, and thoughts that are lost."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from probes.sim import anthropic
from probes.sim.dialect import Record
from tests.probes.sim.test_dialect import ask, events


def test_thoughts_after_text_are_lost_for_anthropic() -> None:
    writer = anthropic.MessagesWriter(ask("anthropic"), {"messages": []}, Random(1))
    found = events([f for r in (Record(1, "a"), Record(1, thinking="late"), Record(1, "b")) for f in writer.record(r)])
    assert not any(e.get("delta", {}).get("type") == "thinking_delta" for e in found)
    assert sum(e["type"] == "content_block_start" for e in found) == 1


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "hello there"}]}, 3),
        ({"messages": [{"role": "user", "content": ""}]}, 1),
        ({"system": "x" * 40, "messages": [{"role": "user", "content": [{"type": "text", "text": "y" * 56}]}]}, 25),
    ],
)
def test_the_estimate(body: Any, tokens: int) -> None:
    assert anthropic.estimate(body) == tokens
