"""One HTML file that needs no network: tables, interactive charts, definitions on hover, light and dark by the reader's choice.

Charts are the Vega-Lite specs of `qm_proxy.charts` with the bundle that vl_convert ships; without JavaScript their texts and
tables still say everything.
"""

from __future__ import annotations

import json
from html import escape

from probes.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Replays, Table
from probes.report.compose import compose, title
from probes.report.definitions import DEFINITIONS
from probes.report.replays import STYLE as REPLAY_STYLE
from probes.report.replays import folded
from probes.result import Result
from qm_proxy.charts import render

__all__ = ["html"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --line: #d9dee3; --paper: #fff; --strong: #f2f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5af; --line: #333a41; --paper: #14171a; --strong: #1e2327; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-size: .92rem; }
caption { text-align: left; color: var(--soft); padding: .2rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
th { background: var(--strong); font-weight: 600; }
td[title] { text-decoration: underline dotted var(--soft); cursor: help; }
td[title]:focus { outline: 2px solid var(--line); }
td[title]:focus::after { display: inline-block; content: attr(title); color: var(--soft); font-size: .85rem; padding-top: .3rem; }
@media (max-width: 40rem) { td:nth-child(n+5) { min-width: 13rem; } }
figure { margin: 1.2rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
.chart { width: 100%; min-height: 60px; }
.strong { background: var(--strong); border-left: 4px solid #4c78a8; padding: .6rem .9rem; font-weight: 600; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; color: var(--soft); }
details summary { cursor: pointer; color: var(--soft); }
"""
_SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
for (const node of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(document.getElementById(node.dataset.spec).textContent);
  if (dark) spec.config = JSON.parse(document.getElementById("dark").textContent);
  vegaEmbed(node, spec, {actions: {export: true, source: false, compiled: false, editor: false}, renderer: "svg"});
}
"""


def html(result: Result) -> str:
    """The whole file."""
    blocks = compose(result)
    numbered = iter(range(1000))
    body = "\n".join(_block(block, numbered) for block in blocks)
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in DEFINITIONS.items())
    charts = any(isinstance(block, Figure) for block in blocks)
    dark = json.dumps(render.chart("tiers", [], theme="dark")["config"])
    parts = (
        f'<script type="application/json" id="dark">{dark}</script>',
        f"<script>{_script(render.bundle())}</script>",
        f"<script>{_SCRIPT}</script>",
    )
    scripts = "\n".join(parts) if charts else ""
    raw = _json(result.to_json(indent=None))
    replay_style = REPLAY_STYLE if any(isinstance(block, Replays) for block in blocks) else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title(result))}</title><style>{_STYLE}{replay_style}</style></head>\n"
        f"<body>\n<main>\n{body}\n"
        f"<details><summary>Definitions</summary><dl>{terms}</dl></details>\n</main>\n"
        f'<script type="application/json" id="result">{raw}</script>\n{scripts}\n</body></html>\n'
    )


def _block(block: Block, numbered: object) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, strong):
            return f'<p class="strong">{escape(text)}</p>' if strong else f"<p>{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block, next(numbered))  # type: ignore[call-overload]
        case Replays(items, all_at):
            link = f'<p><a href="{escape(all_at, quote=True)}">Every run, step by step</a></p>' if all_at else ""
            return folded(items) + link


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in table.head) if any(table.head) else ""
    rows = []
    for row in table.rows:
        first, *rest = row
        meant = DEFINITIONS.get(first)
        title = f' title="{escape(meant)}" tabindex="0"' if meant else ""
        rows.append(f"<tr><td{title}>{escape(first)}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{caption}{top}<tbody>{"".join(rows)}</tbody></table></div>'


def _figure(figure: Figure, number: int) -> str:
    spec = _json(json.dumps(render.chart(figure.chart, figure.rows, width=0), separators=(",", ":")))
    return (
        f'<figure><div class="chart" role="img" aria-label="{escape(figure.alt)}" data-spec="spec{number}"></div>'
        f"<figcaption>{escape(figure.title)}: {escape(figure.alt)}</figcaption>"
        f'<script type="application/json" id="spec{number}">{spec}</script></figure>'
    )


def _json(text: str) -> str:
    """JSON that cannot end its script element."""
    return text.replace("<", "\\u003c")


def _script(text: str) -> str:
    """Code that cannot end its script element: a slash in a string or a pattern may be escaped."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
