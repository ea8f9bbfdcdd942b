"""Puts rows into a chart's specification and draws it: PNG, SVG, or parts of one offline page.

vl_convert brings its own JavaScript and fonts and needs no network; it is imported on first use (some 60 MB).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

__all__ = ["Theme", "bundle", "chart", "names", "png", "svg"]

Theme = Literal["light", "dark"]
_HERE = Path(__file__).parent
_VERSION = "6.4"
_GLOBALS = "window.vegaEmbed = vegaEmbed; window.vega = vega; window.vegaLite = vegaLite;"
_LOOK: dict[Theme, dict[str, Any]] = {
    "light": {"background": "white", "font": "sans-serif"},
    "dark": {
        "background": "#14171a",
        "font": "sans-serif",
        "axis": {"labelColor": "#ddd", "titleColor": "#ddd", "gridColor": "#33383d", "domainColor": "#666", "tickColor": "#666"},
        "legend": {"labelColor": "#ddd", "titleColor": "#ddd"},
        "title": {"color": "#eee"},
        "view": {"stroke": "#444"},
    },
}


def names() -> list[str]:
    """The charts there are."""
    return sorted(path.name.removesuffix(".vl.json") for path in _HERE.glob("*.vl.json"))


@cache
def _spec(name: str) -> str:
    return (_HERE / f"{name}.vl.json").read_text(encoding="utf-8")


def chart(
    name: str, rows: list[dict[str, Any]], *, title: str | None = None, theme: Theme = "light", width: int | None = None
) -> dict[str, Any]:
    """The complete specification: the file, the rows inside, a look. `width` 0 fills its container."""
    made: dict[str, Any] = json.loads(_spec(name))
    made["data"] = {"name": "rows", "values": rows}
    made["config"] = _LOOK[theme]
    if title is not None:
        made["title"] = title
    if width is not None:
        made["width"] = width or "container"
    return made


def png(spec: dict[str, Any], scale: float = 2.0) -> bytes:
    """The picture as PNG."""
    import vl_convert

    drawn: bytes = vl_convert.vegalite_to_png(spec, vl_version=_VERSION, scale=scale)
    return drawn


def svg(spec: dict[str, Any]) -> str:
    """The picture as SVG."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(spec, vl_version=_VERSION)
    return drawn


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script for a page without network; some 0.9 MB, made once for a process."""
    import vl_convert

    script: str = vl_convert.javascript_bundle(_GLOBALS, vl_version=_VERSION)
    return script
