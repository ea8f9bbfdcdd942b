"""What lies in a run's folder: may it be written, may it be replaced, can the run that it tells of go on?

A finished run is replaced by the next one. An unfinished run goes on when the command is the same; when it is not, the rows
are somebody's hour of work, and the command is refused rather than the rows thrown away. So are files that are not ours.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from probes.ask import Ask, Probe
from probes.result import Result
from probes.survey import Survey
from probes.traffic import same_place
from qm_proxy.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from probes.commands import Kind, Options

__all__ = ["keep", "prepare", "still_the_same", "unfinished"]

_OTHER = "Give another --out, or remove that file."


def prepare(folder: Path) -> None:
    """Make the folder and try to write in it, before an hour is spent on what could not be kept. Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".qm-"):
            pass
    except OSError as cause:
        raise SettingsError(
            f"Results cannot be kept in {folder}: {cause.strerror or cause}.", remedy="Give another --out."
        ) from cause


def keep(folder: Path, result: Result) -> None:
    """Write result.json whole or not at all. Raises StoreError; an earlier result.json is then still there."""
    file, new = folder / "result.json", folder / ".result.json.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.write_text(result.to_json() + "\n", encoding="utf-8")
        new.replace(file)
    except OSError as cause:
        with contextlib.suppress(OSError):
            new.unlink()
        raise StoreError(
            f"{file} cannot be written: {cause.strerror or cause}.", remedy="Make room, or give another --out."
        ) from cause


def unfinished(kind: Kind, options: Options) -> Result | None:
    """The unfinished run in `out` that this command goes on with; `None` where it begins anew. Raises SettingsError where
    beginning anew would destroy what is not ours, or what an unfinished run of another command has measured."""
    if options.out is None or options.dry_run:
        return None
    file = options.out / "result.json"
    try:
        found = Result.from_json(file.read_bytes())
    except FileNotFoundError:
        _rows_are_ours(options.out / "rows.jsonl")
        return None
    except OSError as cause:
        raise SettingsError(f"{file} cannot be read: {cause.strerror or cause}.", remedy="Give another --out.") from cause
    except ValueError as cause:
        raise SettingsError(f"{file} is no result of qm-proxy, and would be overwritten.", remedy=_OTHER) from cause
    if found.run.state not in ("interrupted", "cancelled", "failed") or not options.resume:
        return None
    differs = _differences(kind, options, found)
    if not differs:
        return found
    if not _measured(options.out / "rows.jsonl"):
        return None
    raise SettingsError(
        f"{options.out} holds an unfinished run of another command: {', '.join(differs)}.",
        remedy="Give another --out, or the same options to go on with it; remove its result.json to begin anew.",
    )


def _differences(kind: Kind, options: Options, found: Result) -> list[str]:
    there = found.run
    pairs = [
        (there.kind, kind),
        (found.target.name, options.model),
        (f"seed {there.seed}", f"seed {there.seed if options.seed is None else options.seed}"),
        ("--quick" if there.quick else "not --quick", "--quick" if options.quick else "not --quick"),
        (f"--compat {there.compat}", f"--compat {options.compat}"),
    ]
    differs = [f"{theirs} there, {ours} here" for theirs, ours in pairs if theirs != ours]
    if not same_place(found.target.endpoint, options.upstream):
        differs.append(f"{found.target.endpoint} there, {options.upstream} here")
    return differs


def _rows_are_ours(file: Path) -> None:
    """A run killed in its first second leaves rows and no result; anything else under that name is somebody's."""
    try:
        with file.open("rb") as rows:
            first = json.loads(rows.readline() or b"{}")
        ours = isinstance(first, dict) and (not first or "asked" in first)
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise SettingsError(f"{file} is not of qm-proxy, and would be overwritten.", remedy=_OTHER)


def _measured(file: Path) -> bool:
    """Is there a row beyond the first look at the server?"""
    try:
        with file.open("rb") as rows:
            return any(b'{"key":"P0/' not in line[:12] for line in rows)
    except OSError:
        return False


def still_the_same(found: Survey, recorded: int) -> Probe[None]:
    """A run goes on only with the model that it began with: the rows answered for the survey, so the server is asked afresh.
    `recorded`: rows that lie there, so that the question has a key that no row answers.

    Raises SettingsError; a server of another version is a warning."""
    if not recorded:
        return
    key = f"P0/resume/{recorded}"
    tags = yield Ask(f"{key}/tags", "/api/tags", method="GET", silence_s=30)
    listed = tags.document.get("models") if isinstance(tags.document, dict) else None
    digests = [entry.get("digest") for entry in listed or [] if isinstance(entry, dict)]
    if found.target.digest and listed and found.target.digest not in digests:
        raise SettingsError(
            f"{found.target.name} is not the model any more that this run began with (digest {found.target.digest[:12]}).",
            remedy="Give another --out to measure the new one.",
        )
    version = yield Ask(f"{key}/version", "/api/version", method="GET", silence_s=30)
    now = version.document.get("version") if isinstance(version.document, dict) else None
    if isinstance(now, str) and found.target.ollama_version and now != found.target.ollama_version:
        found.warnings.append(
            ("server_changed", f"The server was {found.target.ollama_version} when this run began, and is {now} now.")
        )
