"""Each chart of a Result as a PNG file, and the whole report beside its JSON."""

from __future__ import annotations

from pathlib import Path

from probes.report.figures import all_figures
from probes.report.html import html
from probes.report.markdown import markdown
from probes.result import Result
from qm_proxy.charts import render

__all__ = ["picture", "pictures", "save"]


def pictures(result: Result, folder: Path) -> list[Path]:
    """Write CHART.png for every figure there is; answers the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for figure in all_figures(result.inspector, result.audit, result.agent):
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


def save(result: Result, folder: Path) -> list[Path]:
    """report.md, report.html and the PNGs into `folder`, where result.json and rows.jsonl already are."""
    drawn = pictures(result, folder)
    (folder / "report.md").write_text(markdown(result, pictures=True), encoding="utf-8")
    (folder / "report.html").write_text(html(result), encoding="utf-8")
    return [folder / "report.md", folder / "report.html", *drawn]
