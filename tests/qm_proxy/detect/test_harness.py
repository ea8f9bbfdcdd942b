"""A taste of the harness: small numbers, wide tolerances. The promises themselves are held by benchmarks/bench_detect.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.detect import measure
from benchmarks.detect.corpus import HALVES
from benchmarks.detect.rivals import TEXT, TRAJECTORY
from benchmarks.detect.trajectories import LEGITIMATE, LOOPS

ROOT = Path(__file__).resolve().parents[3]
SEED = 7
FILES = 12


def test_the_halves_share_no_file() -> None:
    dev, test = (measure._corpus(half, FILES) for half in HALVES)
    texts = [{text for kind in corpus._texts.values() for text in kind} for corpus in (dev, test)]
    assert texts[0]
    assert texts[1]
    assert len(texts[0] & texts[1]) <= 2, "equal files under two names, at most"


@pytest.mark.parametrize("half", HALVES)
def test_token_loops(half: str) -> None:
    row = measure.token_loops(half, SEED, clean=100, loops=2, rivals=50, files=FILES)
    assert row["exact_recall"] >= 0.95
    assert row["near_recall"] >= 0.8
    assert row["alarms_exact"] + row["alarms_near"] <= 1
    assert row["hard_share"] > 0.25
    assert row["exact_delay"] <= 250
    assert set(row["rivals"]) == set(TEXT)


def test_the_cut_does_not_matter() -> None:
    assert measure.invariance("test", SEED, texts=8, files=FILES)["failures"] == 0


def test_trajectories() -> None:
    row = measure.trajectories("test", SEED, sessions=1)
    assert row["recall"] == 1.0
    assert row["alarms"] == 0
    assert (len(row["loops"]), len(row["legitimate"])) == (len(LOOPS), len(LEGITIMATE))
    assert len(LOOPS) >= 11
    assert len(LEGITIMATE) >= 12
    assert set(row["rivals"]) == set(TRAJECTORY)
    assert all(rival["recall"] < 1 for rival in row["rivals"].values()), "else the families prove nothing"


def test_tool_calls_agree_with_an_independent_validator() -> None:
    row = measure.tool_calls("test", SEED, schemas=25, leaks=2, clean=150, files=FILES)
    assert row["agree"] == row["mutants"] > 500
    assert row["pointers_differ"] == 0
    assert row["leak_recall"] == 1.0
    assert row["alarms"] == {}


def test_stalls() -> None:
    row = measure.stalls("test", SEED, streams=3, chunks_each=900)
    assert row["recall_50"] == 1.0
    assert row["false_per_1000"] <= 0.8


def test_truncations() -> None:
    row = measure.truncations("test", SEED, models=6, seen_before=True, files=FILES)
    assert row["recall"] >= 0.8
    assert row["false"] == 0
    assert row["cut"] >= 5


def test_memory_and_that_the_cost_is_measured() -> None:
    """In a fresh process: what a grown suite holds and frees meanwhile would be counted too."""
    asked = f"measure.cost('test', {SEED}, texts=3, files={FILES})"
    code = f"import json; from benchmarks.detect import measure; print(json.dumps({asked}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["bytes_200"] <= 32 * 1024
    assert row["bytes_longest"] <= 500_000
    assert set(row["us_per_chunk"]) == {"all", "TokenLoop", "ToolSchema", "Stall", "Ends", "Truncation", "CallLoop"}
