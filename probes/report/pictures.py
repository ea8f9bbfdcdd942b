"""Each chart of a Result as a PNG file, and the whole report beside its JSON."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

from probes.report.figures import all_figures
from probes.report.html import html
from probes.report.markdown import markdown
from probes.result import Result
from qm_proxy.charts import render

__all__ = ["picture", "pictures", "save"]


def pictures(result: Result, folder: Path, left_out: Callable[[], bool] = lambda: False) -> list[Path]:
    """Write CHART.png for every figure there is, until `left_out`; answers the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for figure in all_figures(result.inspector, result.audit, result.agent):
        if left_out():
            break
        path = folder / f"{figure.chart}.png"
        path.write_bytes(render.png(render.chart(figure.chart, figure.rows, title=figure.title)))
        made.append(path)
    return made


def picture(result: Result, chart: str) -> bytes | None:
    """One chart as PNG; `None` where the Result has nothing to show in it."""
    for figure in all_figures(result.inspector, result.audit, result.agent):
        if figure.chart == chart:
            return render.png(render.chart(figure.chart, figure.rows, title=figure.title))
    return None


def save(result: Result, folder: Path, left_out: Callable[[], bool] = lambda: False) -> list[Path]:
    """report.md, report.html and the PNGs into `folder`, where result.json and rows.jsonl already are.

    The page's script takes as long as all pictures together, and the renderer lets other threads run: one thread each, and
    the caller's stays free to hear Ctrl-C. Once `left_out` is true nothing more is drawn, and report.md shows no pictures.
    """
    text = folder / "report.md"
    made: list[Path] = []
    if not left_out():
        with ThreadPoolExecutor(2) as pool:
            page = pool.submit(_page, result, folder, left_out)
            drawn = pool.submit(pictures, result, folder, left_out)
            _until_done(page, drawn)
        made = [*page.result(), *drawn.result()]
    whole = not left_out()
    text.write_text(markdown(result, pictures=whole), encoding="utf-8")
    return [text, *made]


def _page(result: Result, folder: Path, left_out: Callable[[], bool]) -> list[Path]:
    path, text = folder / "report.html", html(result)
    if left_out():
        return []
    path.write_text(text, encoding="utf-8")
    return [path]


def _until_done(*work: Future[list[Path]]) -> None:
    while wait_for(work, timeout=0.1).not_done:  # in slices: a handler of signals runs between them
        pass
