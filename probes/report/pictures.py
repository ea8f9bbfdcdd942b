"""Each chart of a Result as a PNG file."""

from __future__ import annotations

from pathlib import Path

from probes.report.figures import all_figures
from probes.result import Result
from qm_proxy.charts import render

__all__ = ["picture", "pictures"]


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
