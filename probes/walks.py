"""`qm-proxy replay`: any run of a saved Agent Report, step by step. A folder of --out or a result file in, text or pages out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probes.agent import find_run, sections, walk
from probes.ask import Answer, Ask
from probes.report.agent import spoken_run
from probes.report.replays import page
from probes.result import AgentSection, Result
from probes.rows import Rows
from qm_proxy.errors import SettingsError

__all__ = ["listing", "read", "save_replays", "walk_all", "walk_one"]


def read(source: Path) -> tuple[Result, Callable[[Ask], Answer | None] | None]:
    """The result, and its recorded answers if they lie beside it. Raises SettingsError for what is neither folder nor file."""
    file = source / "result.json" if source.is_dir() else source
    try:
        result = Result.from_json(file.read_bytes())
    except OSError as cause:
        raise SettingsError(f"{file} cannot be read: {cause.strerror}.", remedy="Name what --out wrote.") from cause
    except ValueError as cause:
        raise SettingsError(f"{file} is no qm-probes/1 result: {cause}.") from cause
    if result.rows is None:
        return result, None
    recorded, kept = Rows(file.parent / "rows.jsonl"), 1
    with contextlib.suppress(OSError):  # a folder that may not be written is read all the same
        kept = recorded.load()
    return result, recorded.recall if kept else None


def walk_one(source: Path, name: str) -> dict[str, Any]:
    """One run's replay. Raises SettingsError for a run that does not exist or cannot be walked."""
    result, recall = read(source)
    agent = _agent(result, source)
    return walk(agent, result.target.name, find_run(agent, name), recall)


def walk_all(source: Path) -> tuple[Result, list[dict[str, Any]]]:
    """Every run's replay, in the order they were made; those kept in the result where no answers were recorded."""
    result, recall = read(source)
    agent = _agent(result, source)
    if recall is None:
        return result, [shown for section in sections(agent) for shown in section.replays]
    return result, [
        walk(agent, result.target.name, str(run["run"]), recall) for section in sections(agent) for run in section.runs
    ]


def listing(source: Path) -> list[str]:
    """A line for each run: its name, how it ended, and where progress stopped."""
    result, recall = read(source)
    agent = _agent(result, source)
    lines = []
    for section in sections(agent):
        kept = {shown["run"] for shown in section.replays}
        for run in section.runs:
            outcome = str(run["outcome"]) + (f"/{run['sub']}" if run.get("sub") else "")
            mark = " " if recall is not None or run["run"] in kept else "-"
            why = f"  {run['why'][:60]}" if run.get("why") else ""
            lines.append(
                f"{mark}{spoken_run(run['run']):12} {outcome:36} {run['steps']:3} steps (oracle {run['oracle_steps']:2}), "
                f"progress {run['progress']:4.0%}{why}"
            )
    if recall is None:
        lines.append("- : its answers were not recorded (no --out), so it cannot be walked")
    return lines


def save_replays(folder: Path) -> Path | None:
    """Write replays.html with every run; `None` where there is none."""
    result, recall = read(folder)
    if result.agent is None or not result.agent.runs or recall is None:
        return None
    _, items = walk_all(folder)
    path = folder / "replays.html"
    path.write_text(page(items, f"{result.target.name}: {len(items)} agent runs, step by step"), encoding="utf-8")
    return path


def _agent(result: Result, source: Path) -> AgentSection:
    if result.agent is None or not any(section.runs for section in sections(result.agent)):
        raise SettingsError(f"{source} holds no run of an agent.", remedy="Make one with: qm-proxy agent MODEL --out FOLDER")
    return result.agent
