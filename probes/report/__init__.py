"""A Result in, text out: Markdown in the post's order, one HTML file, the terminal, CSV and benchstat lines.

`compose` says what there is to say, once, as blocks; the renderers only differ in how they draw a block.
"""

from __future__ import annotations

from typing import Literal

from probes.report.benchstat import benchstat
from probes.report.compose import compose
from probes.report.csv import csv_rows
from probes.report.html import html
from probes.report.markdown import markdown
from probes.report.pictures import picture, pictures
from probes.report.saved import save
from probes.report.terminal import terminal
from probes.result import Result

__all__ = ["Format", "benchstat", "compose", "csv_rows", "html", "markdown", "picture", "pictures", "render", "save", "terminal"]

Format = Literal["md", "html", "json", "csv", "benchstat"]


def render(result: Result, form: Format, *, definitions: bool = False) -> str:
    """The document in one of CONTRACT's formats."""
    match form:
        case "md":
            return markdown(result, definitions=definitions)
        case "html":
            return html(result)
        case "json":
            return result.to_json() + "\n"
        case "csv":
            return csv_rows(result)
        case "benchstat":
            return benchstat(result)
