"""Draws a report's page or its pictures in a process of its own: `python -m probes.report.drawing page|pictures FOLDER FILE`.

The renderer holds the interpreter's lock for seconds, in which no Ctrl-C is heard; a process can be ended at any time, and
two of them share two cores. FILE is the Result as JSON; the paths that were written go to stdout, one a line.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from probes.report.html import html
from probes.report.pictures import pictures
from probes.result import Result

__all__ = ["draw", "main"]

PARTS = ("page", "pictures")
_LOOK_S = 0.05


def draw(result: Result, folder: Path, left_out: Callable[[], bool] = lambda: False) -> list[Path]:
    """Write report.html and every PNG; answers them, and nothing once `left_out` is true.

    Raises OSError with the words of the part that failed."""
    with tempfile.TemporaryDirectory(prefix="qm-report-") as place:
        source = Path(place) / "result.json"
        source.write_text(result.to_json(indent=None), encoding="utf-8")
        running = [_started(part, Path(place), source) for part in PARTS]
        try:
            if not all(_ended(child, left_out) for child in running):
                return []
            drawn = [path for child in running for path in _written(child)]
            return [Path(shutil.move(path, folder / path.name)) for path in drawn]  # so that none is there in half
        finally:
            for child in running:
                child.kill()  # does nothing to one that has ended
                child.communicate()


def _started(part: str, folder: Path, source: Path) -> subprocess.Popen[str]:
    """In a session of its own: the terminal's Ctrl-C is for the one who started it."""
    return subprocess.Popen(
        [sys.executable, "-m", "probes.report.drawing", part, str(folder), str(source)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _ended(child: subprocess.Popen[str], left_out: Callable[[], bool]) -> bool:
    """Wait in slices, between which handlers of signals run; false when it is not waited for any more."""
    while not left_out():
        with suppress(subprocess.TimeoutExpired):
            child.wait(_LOOK_S)
            return True
    return False


def _written(child: subprocess.Popen[str]) -> list[Path]:
    out, err = child.communicate()
    if child.returncode:
        lines = err.strip().splitlines()
        raise OSError(lines[-1] if lines else f"drawing ended with {child.returncode}")
    return [Path(line) for line in out.splitlines()]


def main(part: str, folder: Path, source: Path) -> None:
    """The child's work."""
    result = Result.from_json(source.read_bytes())
    if part == "pictures":
        made = pictures(result, folder)
    else:
        made = [folder / "report.html"]
        made[0].write_text(html(result), encoding="utf-8")
    print(*made, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
