"""A folder's contents: what goes on, what is replaced, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from probes.ask import Answer, Ask
from probes.commands import Options, Session, inspect_model
from probes.result import Result
from probes.resume import keep, prepare
from qm_proxy.errors import SettingsError, StoreError
from tests.probes.fakes import FakeModel


def options(folder: Path, **changes: Any) -> Options:
    base: dict[str, Any] = {"model": "fake:8b", "hardware": "cpu:64GiB", "seed": 7, "quick": True, "out": folder}
    return Options(**{**base, **changes})


def run(opts: Options, model: FakeModel, stop_after: int | None = None) -> Result:
    asked = [0]

    async def ask(question: Ask) -> Answer:
        asked[0] += 1
        if asked[0] == stop_after:
            session.stop()
        return model.answer(question)

    session = Session("inspect", opts, ask)
    return asyncio.run(inspect_model(opts, session))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seed": 8}, "seed 7 there, seed 8 here"),
        ({"model": "other:1b"}, "fake:8b there, other:1b here"),
        ({"quick": False}, "--quick there, not --quick here"),
        ({"upstream": "http://10.1.2.3:11434"}, "http://10.1.2.3:11434 here"),
    ],
)
def test_an_unfinished_run_is_not_thrown_away_by_another_command(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    assert run(options(tmp_path), FakeModel(), stop_after=15).run.state == "interrupted"
    rows = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(SettingsError, match=word):
        Session("inspect", options(tmp_path, **changes))
    assert (tmp_path / "rows.jsonl").read_bytes() == rows
    again = run(options(tmp_path, seed=None), FakeModel())
    assert (again.run.state, again.run.seed, again.run.replayed) == ("complete", 7, 14)


def test_a_finished_run_and_one_that_measured_nothing_are_replaced(tmp_path: Path) -> None:
    assert run(options(tmp_path), FakeModel()).run.state == "complete"
    other = run(options(tmp_path, seed=8), FakeModel(), stop_after=4)
    assert (other.run.seed, other.run.replayed) == (8, 0)
    assert run(options(tmp_path, seed=9), FakeModel()).run.seed == 9


def test_a_run_does_not_go_on_with_another_model_under_its_name(tmp_path: Path) -> None:
    run(options(tmp_path), FakeModel(), stop_after=15)

    class Pulled(FakeModel):
        def answer(self, ask: Ask) -> Answer:
            made = super().answer(ask)
            if ask.path == "/api/tags":
                made.document = {"models": [{"name": self.name, "digest": "an0ther"}]}
            return made

    with pytest.raises(SettingsError, match="not the model any more"):
        run(options(tmp_path), Pulled())
    assert run(options(tmp_path), FakeModel()).run.state == "complete"


def test_a_server_of_another_version_is_a_warning(tmp_path: Path) -> None:
    run(options(tmp_path), FakeModel(), stop_after=15)

    class Upgraded(FakeModel):
        def answer(self, ask: Ask) -> Answer:
            made = super().answer(ask)
            if ask.path == "/api/version":
                made.document = {"version": "0.34.0"}
            return made

    result = run(options(tmp_path), Upgraded())
    assert "The server was 0.33.0 when this run began, and is 0.34.0 now." in [warned.text for warned in result.warnings]


@pytest.mark.parametrize(
    ("name", "content"), [("result.json", '{"a": 1}'), ("result.json", "no"), ("rows.jsonl", '{"my": "data"}\n')]
)
def test_files_that_are_not_ours_stay(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match="overwritten"):
        Session("inspect", options(tmp_path))
    assert (tmp_path / name).read_text() == content


def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    Session("inspect", options(tmp_path / "new", dry_run=True))
    assert not (tmp_path / "new").exists()


def test_a_place_that_is_no_folder_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingsError, match="cannot be kept"):
            prepare(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match="Permission denied"):
        prepare(tmp_path)


def test_a_result_is_written_whole_or_the_earlier_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(options(tmp_path), FakeModel())

    def full(self: Path, *args: Any, **more: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left"):
        keep(tmp_path, first)
    assert json.loads((tmp_path / "result.json").read_bytes())["run"]["state"] == "complete"
