"""The whole report as files beside its result.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from probes.report.markdown import markdown
from probes.result import Result

__all__ = ["save"]


def save(result: Result, folder: Path, left_out: Callable[[], bool] = lambda: False) -> list[Path]:
    """report.md, report.html and the PNGs into `folder`, where result.json and rows.jsonl already are.

    Once `left_out` is true nothing more is drawn, and report.md shows no pictures. Raises OSError where nothing can be
    written or drawn.
    """
    from probes.report.drawing import draw  # a module that is also run by itself must not be imported with its package

    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(result, folder, left_out) if not left_out() else []
    text = folder / "report.md"
    text.write_text(markdown(result, pictures=bool(drawn)), encoding="utf-8")
    return [text, *drawn]
