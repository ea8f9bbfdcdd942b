"""`qm-proxy replay`: any run of a saved Agent Report, step by step. A folder of --out or a result file in, text or pages out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from probes.agent import compat_key, find_run, sections, walk, walk_compat
from probes.ask import Answer, Ask
from probes.report.replays import page, spoken_run
from probes.result import Result
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
    """One run's replay, of ours or of the origin's sampling. Raises SettingsError for one that does not exist or be walked."""
    result, recall = read(source)
    _check(result, source)
    if result.compat is not None and (key := compat_key(result.compat, name)) is not None:
        return walk_compat(result.compat, result.target.name, key, recall)
    try:
        if result.agent is None or name.startswith("compat/"):
            raise SettingsError(f"There is no run {name!r} in this report.", remedy=f"qm-proxy replay {source} lists them.")
        key = find_run(result.agent, name)
    except SettingsError as unknown:
        if result.compat is None or not result.compat.runs:
            raise
        theirs = f"Of the origin's sampling there are {result.compat.runs[0]['run']} to {result.compat.runs[-1]['run']}."
        raise SettingsError(unknown.message, remedy=f"{unknown.remedy} {theirs}") from unknown
    return walk(result.agent, result.target.name, key, recall)


def walk_all(source: Path) -> tuple[Result, list[dict[str, Any]]]:
    """Every run's replay, ours and then the origin's; those kept in the result where no answers were recorded."""
    result, recall = read(source)
    _check(result, source)
    model, agent, compat = result.target.name, result.agent, result.compat
    parts = sections(agent) if agent is not None else []
    if recall is None:
        kept = [shown for section in parts for shown in section.replays]
        return result, kept + (compat.replays if compat is not None else [])
    walked = [walk(agent, model, str(run["run"]), recall) for section in parts for run in section.runs if agent is not None]
    if compat is not None:
        walked += [walk_compat(compat, model, str(run["run"]), recall) for run in compat.runs]
    return result, walked


def listing(source: Path) -> list[str]:
    """A line for each run: its name, how it ended, and where progress stopped."""
    result, recall = read(source)
    _check(result, source)
    lines = []
    for section in sections(result.agent) if result.agent is not None else []:
        kept = {shown["run"] for shown in section.replays}
        for run in section.runs:
            outcome = str(run["outcome"]) + (f"/{run['sub']}" if run.get("sub") else "")
            lines.append(_listed(run, outcome, f"{run['steps']:3} steps", recall is not None or run["run"] in kept))
    if (compat := result.compat) is not None and compat.runs:
        lines += ["", "By the origin's sampling (--compat quantamind): fixed tasks, a step is a model turn, no done"]
        kept = {shown["run"] for shown in compat.replays}
        for run in compat.runs:
            copy = f" (as {run['same_as']})" if run.get("same_as") else ""
            lines.append(_listed(run, run["outcome"] + copy, f"{run['turns']:3} turns", recall is not None or run["run"] in kept))
    if recall is None:
        lines.append("- : its answers were not recorded (no --out), so it cannot be walked")
    return lines


def _listed(run: dict[str, Any], outcome: str, length: str, can_be_walked: bool) -> str:
    why = f"  {shorten(run['why'], 64, placeholder=' …')}" if run.get("why") else ""
    return (
        f"{' ' if can_be_walked else '-'}{spoken_run(run['run']):16} {outcome:36} {length} (oracle {run['oracle_steps']:2}), "
        f"progress {run['progress']:4.0%}{why}"
    )


def save_replays(folder: Path) -> Path | None:
    """Write replays.html with every run; `None` where there is none."""
    result, recall = read(folder)
    if not _holds_runs(result) or recall is None:
        return None
    _, items = walk_all(folder)
    path = folder / "replays.html"
    path.write_text(page(items, f"{result.target.name}: {len(items)} agent runs, step by step"), encoding="utf-8")
    return path


def _holds_runs(result: Result) -> bool:
    ours = result.agent is not None and any(section.runs for section in sections(result.agent))
    return ours or (result.compat is not None and bool(result.compat.runs))


def _check(result: Result, source: Path) -> None:
    if not _holds_runs(result) and result.run.state != "complete":
        raise SettingsError(
            f"{source} holds no finished run of an agent: {result.run.reason or result.run.state}.",
            remedy="The same command again goes on with it.",
        )
    if not _holds_runs(result):
        raise SettingsError(f"{source} holds no run of an agent.", remedy="Make one with: qm-proxy agent MODEL --out FOLDER")
