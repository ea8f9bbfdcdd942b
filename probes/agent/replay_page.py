"""A replay as a page or a piece of one: plain HTML and SVG, no script, readable in light and dark and by keyboard.

`fragment` takes what `replay` gave (or what a result file keeps of it), so that a report can show any run it has.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any, Final

__all__ = ["STYLE", "fragment", "page"]

_PATHS: Final = {"native": "native tool calls", "prompt-json": "calls as JSON in the text"}

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5b6577;--line:#d5dae3;--bad:#b3261e;--good:#1b6e3c;
--mark:#fff1d6;--card:#fff;--way:#2f5fd0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa4b5;--line:#38404e;--bad:#ff8a80;--good:#7ad69a;
--mark:#43361a;--card:#1b2029;--way:#8fb0ff}}
.qm-replay{font:15px/1.45 system-ui,sans-serif;color:var(--ink);max-width:60rem;margin:0 auto;padding:1rem;
overflow-wrap:anywhere}
.qm-replay h2{font-size:1.15rem;margin:.2rem 0}
.qm-replay .soft{color:var(--soft)}.qm-replay .bad{color:var(--bad)}.qm-replay .good{color:var(--good)}
.qm-replay pre{white-space:pre-wrap;margin:.2rem 0;font:13px/1.45 ui-monospace,monospace}
.qm-replay ol{list-style:none;padding:0;margin:1rem 0}
.qm-replay li{border:1px solid var(--line);border-radius:6px;background:var(--card);padding:.4rem .7rem;margin:.35rem 0}
.qm-replay li.evidence{background:var(--mark);border-color:var(--bad)}
.qm-replay li.stop{color:var(--bad);background:none;border:0;border-top:2px dashed var(--bad);border-radius:0;margin:.8rem 0}
.qm-replay .n{display:inline-block;min-width:2.2rem;color:var(--soft);font-variant-numeric:tabular-nums}
.qm-replay .tag{font-size:.8rem;border:1px solid var(--line);border-radius:9px;padding:0 .5rem;margin-left:.4rem;
color:var(--soft)}
.qm-replay .oracle{border-left:3px solid var(--way);padding-left:.6rem;margin:.3rem 0 .1rem}
.qm-replay svg{display:block;width:100%;height:auto}
"""


def page(shown: dict[str, Any]) -> str:
    """A whole document with one replay."""
    title = escape(f"{shown['instance']}: {shown['outcome']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>body{{margin:0}}{STYLE}</style></head><body>{fragment(shown)}</body></html>\n"
    )


def fragment(shown: dict[str, Any]) -> str:
    """The replay alone; the page around it brings `STYLE`."""
    passed = shown["outcome"] == "PASS"
    outcome = str(shown["outcome"]) + (f" / {shown['sub']}" if shown["sub"] else "")
    parts = [
        '<section class="qm-replay">',
        f'<h2>{escape(shown["instance"])} <span class="{"good" if passed else "bad"}">{escape(outcome)}</span></h2>',
        f'<p class="soft">horizon {shown["horizon"]} steps · the oracle needs {shown["oracle_steps"]} · '
        f"progress {100 * shown['progress']:.0f} % · {_PATHS[shown['path']]}</p>",
        f"<p>{escape(shown['why'])}</p>" if shown["why"] else "",
        f"<details><summary>The task</summary><pre>{escape(shown['task'])}</pre></details>",
        _way(shown),
        "<ol>",
    ]
    steps = shown["steps"]
    for index, step in enumerate(steps):
        folded = index > 0 and not step["evidence"] and _alike(step, steps[index - 1])
        if folded:
            if index + 1 == len(steps) or steps[index + 1]["evidence"] or not _alike(steps[index + 1], step):
                parts.append(f'<li class="soft">… the same up to step {step["step"]}</li>')
            continue
        parts.append(_step(step))
        if step["step"] == shown["progress_stopped_at"] and not passed:
            short = f"progress stopped here, {step['calls_left']} calls short of the goal"
            parts.append(f'<li class="stop">{short}</li>')
    return "".join([*parts, "</ol></section>"])


def _step(step: dict[str, Any]) -> str:
    call = (
        f"{step['call']} {json.dumps(step['arguments'], ensure_ascii=False)}" if step["call"] else step["detail"] or "(nothing)"
    )
    tags = [step["kind"]] if step["kind"] != "ok" else []
    tags += ["changed the world"] if step["changed"] else []
    tags += [f"learned {len(step['learned'])}"] if step["learned"] else []
    tags += ["evidence"] if step["evidence"] else []
    marks = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
    would = ""
    if step["oracle"] is not None:
        arguments = json.dumps(step["oracle"]["arguments"], ensure_ascii=False)
        call_, with_ = escape(step["oracle"]["call"]), escape(arguments)
        would = f'<div class="oracle soft">the oracle: <code>{call_}</code> <code>{with_}</code></div>'
    kind = " class=evidence" if step["evidence"] else ""
    head = f'<span class="n">{step["step"]}</span><code>{escape(call)}</code>{marks}'
    return f"<li{kind}>{head}<pre class=soft>{escape(step['answer'])}</pre>{would}</li>"


def _way(shown: dict[str, Any]) -> str:
    """Calls left to the goal, step by step, as a staircase: where it stays flat, nothing was gained."""
    steps, start = shown["steps"], shown["start_calls_left"]
    if not steps:
        return ""
    width, height = 600, 90
    top = max(1, start, *(step["calls_left"] for step in steps))
    across, down = width / shown["horizon"], (height - 20) / top
    path = f"M0 {height - 10 - start * down:.1f}"
    for step in steps:
        path += f"H{step['step'] * across:.1f}V{height - 10 - step['calls_left'] * down:.1f}"
    marks = "".join(
        f'<circle cx="{step["step"] * across:.1f}" cy="{height - 10 - step["calls_left"] * down:.1f}" r="4" fill="var(--bad)"/>'
        for step in steps
        if step["evidence"]
    )
    label = f"calls left to the goal over {shown['horizon']} steps, from {start} to {steps[-1]['calls_left']}"
    return (
        f'<figure style="margin:.6rem 0"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f'<line x1="0" y1="{height - 10}" x2="{width}" y2="{height - 10}" stroke="var(--line)"/>'
        f'<path d="{path}" fill="none" stroke="var(--way)" stroke-width="2"/>{marks}</svg>'
        f'<figcaption class="soft">{escape(label)}; red: the evidence</figcaption></figure>'
    )


def _alike(step: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(step[key] == other[key] for key in ("call", "arguments", "answer", "kind"))
