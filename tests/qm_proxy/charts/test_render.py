"""Every chart draws, from rows that hold exactly the fields its file promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.charts import render

ROWS: dict[str, list[dict[str, Any]]] = {
    "waterfall": [
        {"t_ms": 10.0, "gap_ms": None, "kind": "thinking", "spike": False},
        {"t_ms": 26.0, "gap_ms": 16.0, "kind": "text", "spike": False},
        {"t_ms": 90.0, "gap_ms": 64.0, "kind": "text", "spike": True},
    ],
    "gap_histogram": [
        {"lo_ms": 16.0, "hi_ms": 19.0, "n": 300, "kind": "gap"},
        {"lo_ms": 64.0, "hi_ms": 76.0, "n": 2, "kind": "spike"},
    ],
    "gaps_by_depth": [{"depth_tokens": 32, "ms": 16.0, "which": "p50"}, {"depth_tokens": 8192, "ms": 18.0, "which": "p50"}],
    "prefill": [
        {"tokens": 128, "ms": 130.0, "lo": 120.0, "hi": 140.0, "which": "measured"},
        {"tokens": 128, "ms": 131.0, "lo": None, "hi": None, "which": "fit"},
    ],
    "memory": [
        {"tokens": 4096, "gib": 5.0, "which": "measured"},
        {"tokens": 0, "gib": 4.9, "which": "projected"},
        {"tokens": 9000, "gib": 5.4, "which": "projected"},
        {"tokens": 0, "gib": 20.0, "which": "budget"},
        {"tokens": 9000, "gib": 0.0, "which": "spill", "ceiling": True},
    ],
    "cliff": [
        {"tokens": 512, "accuracy": 1.0, "lo": 0.9, "hi": 1.0, "verdict": "baseline", "n": 40},
        {"tokens": 8192, "accuracy": 0.2, "lo": 0.05, "hi": 0.5, "verdict": "bad", "n": 12},
        {"tokens": 4096, "band_to": 8192},
        {"tokens": 512, "threshold": 0.75},
    ],
    "context": [
        {"turn": 1, "tokens": 900, "output": 60, "window": None, "broken": False},
        {"turn": 2, "tokens": 1500, "output": None, "window": 4096, "broken": True},
    ],
    "tiers": [
        {"tier": "easy", "rate": 1.0, "lo": 0.8, "hi": 1.0, "floor": 0.1, "status": "CLEAR"},
        {"tier": "hard", "rate": None, "lo": None, "hi": None, "floor": None, "status": "NOT TESTED"},
    ],
}


def test_the_charts_are_the_ones_tested() -> None:
    assert render.names() == sorted(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_draws(name: str, theme: render.Theme) -> None:
    spec = render.chart(name, ROWS[name], theme=theme, title="A title")
    assert render.svg(spec).startswith("<svg")
    assert "NaN" not in render.svg(spec)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_file_says_what_its_rows_hold(name: str) -> None:
    spec = json.loads((Path(render.__file__).parent / f"{name}.vl.json").read_text())
    assert spec["data"] == {"name": "rows"}
    assert set(spec["usermeta"]["rows"]) <= {field for row in ROWS[name] for field in row}
    assert len(spec["description"]) > 20


def test_an_empty_chart_draws_too() -> None:
    for name in render.names():
        assert render.svg(render.chart(name, [])).startswith("<svg")


def test_png_is_a_png() -> None:
    assert render.png(render.chart("tiers", ROWS["tiers"]), scale=1).startswith(b"\x89PNG")


def test_a_spike_is_red() -> None:
    assert "#e45756" in render.svg(render.chart("waterfall", ROWS["waterfall"]))


def test_the_bundle_draws_without_network() -> None:
    script = render.bundle()
    assert "vegaEmbed" in script
    assert len(script) > 500_000
