"""Page and pictures come from processes of their own, which end at once when nobody waits for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.inspector import inspect, plan_for
from probes.report.drawing import draw, main
from probes.result import Result, Run, Target
from probes.runner import replay
from tests.probes.fakes import FakeModel


@pytest.fixture(scope="module")
def result() -> Result:
    model = FakeModel()
    made = Result(
        run=Run(id="x", kind="inspect", started_at="2026-01-01T00:00:00Z", seed=1), target=Target(endpoint="e", name="m")
    )
    made.inspector = replay(inspect(plan_for(model.name, "http://x", seed=1, quick=True)), model.answer)
    return made


def test_page_and_pictures_are_there_when_it_answers(result: Result, tmp_path: Path) -> None:
    drawn = draw(result, tmp_path)
    assert {path.name for path in drawn} >= {"report.html", "waterfall.png", "prefill.png"}
    assert sorted(tmp_path.iterdir()) == sorted(drawn)
    assert (tmp_path / "waterfall.png").read_bytes().startswith(b"\x89PNG")


def test_left_out_leaves_nothing_in_half(result: Result, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    assert draw(result, tmp_path, lambda: next(asked, True)) == []
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_told_in_its_words(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        draw(result, tmp_path / "nowhere")


def test_the_childs_work(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "r.json"
    source.write_text(result.to_json())
    main("page", tmp_path, source)
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()
