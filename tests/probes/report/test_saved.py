"""A report's files: the text is always there, and shows pictures only where they were drawn."""

from __future__ import annotations

from pathlib import Path

from probes.inspector import inspect, plan_for
from probes.report import save
from probes.result import Result, Run, Target
from probes.runner import replay
from tests.probes.fakes import FakeModel


def test_text_without_pictures_when_they_are_left_out(tmp_path: Path) -> None:
    model = FakeModel()
    made = Result(
        run=Run(id="x", kind="inspect", started_at="2026-01-01T00:00:00Z", seed=1), target=Target(endpoint="e", name="m")
    )
    made.inspector = replay(inspect(plan_for(model.name, "http://x", seed=1, quick=True)), model.answer)
    assert save(made, tmp_path, lambda: True) == [tmp_path / "report.md"]
    assert "waterfall.png" not in (tmp_path / "report.md").read_text()
    written = save(made, tmp_path)
    assert (tmp_path / "waterfall.png") in written
    assert "(waterfall.png)" in (tmp_path / "report.md").read_text()
