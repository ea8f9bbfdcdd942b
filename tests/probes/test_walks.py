"""A saved report's runs can be walked again: from the recorded answers they come out exactly as they were."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from probes.ask import Answer, Ask
from probes.commands import Options, Session, report_agent
from probes.result import Result
from probes.sim.agent_policies import answer_with
from probes.walks import listing, read, save_replays, walk_all, walk_one
from qm_proxy.errors import SettingsError


def make(out: Path | None, policy: str = "post", **flags: Any) -> Result:
    chat = answer_with(policy)
    documents: dict[str, object] = {
        "/api/version": {"version": "0.33.0"},
        "/api/tags": {"models": [{"name": "m:latest", "digest": "sha256:1", "size": 1}]},
        "/api/show": {"capabilities": ["completion", "tools"], "model_info": {}},
        "/api/ps": {"models": []},
    }

    async def ask(question: Ask) -> Answer:
        if question.path in documents:
            return Answer(question.key, status=200, document=documents[question.path])
        return chat(question)

    options = Options("m", hardware="cpu:64GiB", seed=4, out=out, **{"tiers": "easy,hard", **flags})
    return asyncio.run(report_agent(options, Session("agent", options, ask)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    make(out, both=True)
    return out


def test_every_run_is_walked_as_it_was(folder: Path) -> None:
    result, items = walk_all(folder)
    agent = result.agent
    assert agent is not None
    assert agent.other_path is not None
    known = [run for section in (agent, agent.other_path) for run in section.runs]
    assert [shown["run"] for shown in items] == [run["run"] for run in known]
    assert [(shown["outcome"], shown["why"]) for shown in items] == [(run["outcome"], run["why"]) for run in known]
    by_run = {shown["run"]: shown for shown in items}
    for kept in (*agent.replays, *agent.other_path.replays):
        assert json.loads(json.dumps(by_run[kept["run"]])) == kept
    assert len(agent.replays) + len(agent.other_path.replays) < len(items)


def test_a_run_is_found_by_the_name_a_reader_uses(folder: Path) -> None:
    assert walk_one(folder, "hard/3")["run"] == "agent/native/hard/3/0"
    assert walk_one(folder / "result.json", "agent/native/hard/3/0")["run"] == "agent/native/hard/3/0"
    assert walk_one(folder, "prompt-json/easy/0")["path"] == "prompt-json"
    with pytest.raises(SettingsError) as refused:
        walk_one(folder, "hard/99")
    assert "native/hard/0 to hard/7" in str(refused.value)


def test_the_listing_names_every_run(folder: Path) -> None:
    result, _ = read(folder)
    assert result.agent is not None
    lines = listing(folder)
    for run in result.agent.runs:
        name = "/".join(str(run["run"]).split("/")[2:4])
        assert any(line.strip().startswith(name) and str(run["outcome"]) in line for line in lines)


def test_pages_hold_every_run(folder: Path) -> None:
    path = save_replays(folder)
    assert path is not None
    text = path.read_text()
    _, items = walk_all(folder)
    assert text.count('<section class="qm-replay">') == len(items)
    assert "<script" not in text


def test_without_records_only_the_kept_ones_can_be_walked(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(make(None).to_json())
    assert walk_one(file, "hard/0")["outcome"] != "PASS"
    with pytest.raises(SettingsError, match="not recorded"):
        walk_one(file, "hard/1")
    assert listing(file)[-1].startswith("- :")
    assert save_replays(tmp_path) is None


def test_records_of_another_run_are_refused(folder: Path, tmp_path: Path) -> None:
    """The same keys, other questions: an answer is never shown for what it did not answer."""
    make(tmp_path, policy="oracle")
    (tmp_path / "result.json").write_text((folder / "result.json").read_text().replace('"seed": 4', '"seed": 5'))
    with pytest.raises(SettingsError, match="another run"):
        walk_all(tmp_path)


def test_a_run_that_was_killed_says_how_to_go_on(tmp_path: Path) -> None:
    result = make(tmp_path)
    result.agent, result.run.state, result.run.reason = None, "interrupted", "it is running, or it was killed"
    (tmp_path / "result.json").write_text(result.to_json())
    with pytest.raises(SettingsError, match="or it was killed") as said:
        listing(tmp_path)
    assert "goes on with it" in str(said.value)


def test_what_is_no_report_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        listing(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(SettingsError, match="no qm-probes/1"):
        listing(tmp_path)


def test_another_generators_runs_are_only_shown_as_kept(folder: Path, tmp_path: Path) -> None:
    for name in ("result.json", "rows.jsonl"):
        (tmp_path / name).write_text((folder / name).read_text().replace("qm-world/1", "qm-world/0"))
    assert walk_one(tmp_path, "hard/0")
    with pytest.raises(SettingsError, match="qm-world/0"):
        walk_one(tmp_path, "hard/1")


@pytest.fixture(scope="module")
def compat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compat")
    make(out, compat="quantamind")
    return out


def test_runs_of_the_origins_sampling_are_walked_too(compat_folder: Path) -> None:
    result, items = walk_all(compat_folder)
    assert result.compat is not None
    assert result.agent is not None
    theirs = [shown for shown in items if "sampling" in shown]
    assert [shown["run"] for shown in theirs] == [run["run"] for run in result.compat.runs]
    assert [(shown["outcome"], shown["why"]) for shown in theirs] == [(r["outcome"], r["why"]) for r in result.compat.runs]
    assert len(theirs) == 25 + 64
    assert len(items) == len(theirs) + len(result.agent.runs)
    assert walk_one(compat_folder, "hard-2/7") == walk_one(compat_folder, "compat/hard-2/7")
    assert "sampling" not in walk_one(compat_folder, "hard/3")
    lines = listing(compat_folder)
    assert sum(line.startswith(" compat/") for line in lines) == len(theirs)
    for wrong in ("hard-9/0", "compat/hard/3"):
        with pytest.raises(SettingsError, match="no run"):
            walk_one(compat_folder, wrong)


def test_their_pages_stand_beside_ours(compat_folder: Path) -> None:
    path = save_replays(compat_folder)
    assert path is not None
    text = path.read_text()
    assert text.count("<h2>") == 2
    _, items = walk_all(compat_folder)
    laid, lines = text.count('<section class="qm-replay">'), text.count("the same calls and answers as")
    together = [int(n) for n in re.findall(r"> (\d+) runs, compat/", text)]
    assert laid + lines - len(together) + sum(together) == len(items)
    assert together
    assert "not laid out here" not in text


def test_only_the_origins_sampling_can_be_walked_without_ours(tmp_path: Path) -> None:
    """A report whose own tiers never ran (budget, interruption) still has the origin's runs."""
    result = make(tmp_path, compat="quantamind")
    assert result.agent is not None
    result.agent.runs, result.agent.replays = [], []
    (tmp_path / "result.json").write_text(result.to_json())
    assert walk_one(tmp_path, "compat/hard-0/0")["tier"] == "hard"
    assert save_replays(tmp_path) is not None
    with pytest.raises(SettingsError, match="no run"):
        walk_one(tmp_path, "hard/0")
