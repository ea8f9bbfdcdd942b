"""The decisions, on generated traffic with known sessions (benchmarks/mixtures.py); single cases are in tests of sessions."""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("bench_stitch")
    patch.undo()


@pytest.mark.parametrize("ids", [True, False], ids=["client ids sent", "client ids withheld"])
def test_sessions_are_found_again_in_every_dialect(bench: Any, ids: bool) -> None:
    """Twenty conversations at once: forks, compaction, retries, reordered keys, dropped thinking, sub-agents, titles."""
    scores: dict[str, Any] = defaultdict(bench.Score)
    kinds: Counter[str] = Counter()
    for seed in (7, 8):
        done, _, sessions = bench.run(seed, 20, 40, ids=ids)
        for ask, opened in done:
            label = ((seed, ask.session), opened.placed.session_id)
            scores["all"].labels.append(label)
            scores[ask.dialect].labels.append(label)
            kinds[ask.kind] += 1
        assert sessions.status()["in_flight"] == sessions.status()["abandoned"] == 0
    assert set(kinds) == {"start", "next", "fork", "retry", "compaction", "side"}
    assert set(scores) == {"all", "ollama", "openai-chat", "openai-responses", "anthropic", "openai-completions"}
    found = {name: round(score.pairwise()[2], 4) for name, score in scores.items()}
    assert all(f1 >= 0.99 for f1 in found.values()), found


def test_the_score_falls_when_sessions_are_mixed_up(bench: Any) -> None:
    """A score that cannot fall proves nothing."""
    apart = bench.Score([(1, "a"), (1, "a"), (2, "b"), (2, "b")])
    merged = bench.Score([(1, "a"), (1, "a"), (2, "a"), (2, "a")])
    split = bench.Score([(1, "a"), (1, "b"), (2, "c"), (2, "d")])
    assert apart.pairwise() == (1.0, 1.0, 1.0)
    assert merged.pairwise()[0] == pytest.approx(1 / 3)
    assert split.pairwise()[1] == 0.0


def test_the_same_traffic_gives_the_same_sessions(bench: Any) -> None:
    def places() -> list[tuple[str, int, int]]:
        done, _, _ = bench.run(3, 10, 15, ids=False)
        names: dict[str, str] = {}
        return [(names.setdefault(o.placed.session_id, f"{len(names)}"), o.placed.trajectory, o.placed.turn) for _, o in done]

    assert places() == places()
