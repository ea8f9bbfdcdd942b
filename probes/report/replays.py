"""Replays as a page or as a piece of one: plain HTML and SVG, no script, readable in light and dark and by keyboard.

`fragment` takes what the Agent Report's `replay` gave (or what a result file keeps of it), so that a report can show any run.
Each step says what the model did, what the world said, and what the oracle would have done, knowing as much.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from textwrap import shorten
from typing import Any, Final

__all__ = ["STYLE", "folded", "fragment", "page"]

_PATHS: Final = {"native": "native tool calls", "prompt-json": "calls as JSON in the text"}
_KINDS: Final = {
    "refused": "refused",
    "fault": "transient fault",
    "down": "outage",
    "decoy": "decoy",
    "trap": "trap",
    "no_tool": "no such tool",
    "schema": "does not fit the tool",
    "fabricated": "made-up value",
    "no_call": "no call",
    "malformed": "unreadable call",
}

STYLE: Final = """
.qm-replay,.qm-replays{--ink:#1c2330;--soft:#5b6577;--line:#d5dae3;--bad:#b3261e;--good:#1b6e3c;
--mark:#fff1d6;--card:#fff;--way:#2f5fd0}
@media(prefers-color-scheme:dark){.qm-replay,.qm-replays{--ink:#e6e9ef;--soft:#9aa4b5;--line:#38404e;--bad:#ff8a80;
--good:#7ad69a;--mark:#43361a;--card:#1b2029;--way:#8fb0ff}}
.qm-replay{font:15px/1.45 system-ui,sans-serif;color:var(--ink);max-width:60rem;margin:0 auto;padding:1rem 0;
overflow-wrap:anywhere}
.qm-replay h3{font-size:1.1rem;margin:.2rem 0}
.qm-replay .soft{color:var(--soft)}.qm-replay .bad,.qm-replays .bad{color:var(--bad)}
.qm-replay .good,.qm-replays .good{color:var(--good)}
.qm-replay pre{white-space:pre-wrap;margin:.1rem 0;font:13px/1.45 ui-monospace,monospace}
.qm-replay code{font:13px/1.45 ui-monospace,monospace}
.qm-replay ol{list-style:none;padding:0;margin:1rem 0}
.qm-replay li{border:1px solid var(--line);border-radius:6px;background:var(--card);padding:.45rem .7rem;margin:.35rem 0}
.qm-replay li.evidence{background:var(--mark);border-color:var(--bad)}
.qm-replay li.stop{color:var(--bad);background:none;border:0;border-top:2px dashed var(--bad);border-radius:0;margin:.8rem 0}
.qm-replay .n{font-weight:600;font-variant-numeric:tabular-nums;margin-right:.3rem}
.qm-replay .tag{font-size:.8rem;border:1px solid var(--line);border-radius:9px;padding:0 .5rem;margin-left:.4rem;
color:var(--soft);white-space:nowrap}
.qm-replay dl{display:grid;grid-template-columns:5.5rem 1fr;gap:.15rem .6rem;margin:.3rem 0 0}
.qm-replay dt{color:var(--soft);font-size:.85rem;font-weight:400;margin:0}.qm-replay dd{margin:0;color:inherit}
.qm-replay dd.oracle{border-left:3px solid var(--way);padding-left:.5rem}
.qm-replay svg{display:block;width:100%;height:auto}
.qm-replays details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:0 .8rem}
.qm-replays summary{cursor:pointer;padding:.5rem 0;color:var(--ink)}
"""
_PAGE: Final = """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1rem;max-width:60rem;background:#fff;color:#1c2330;font:16px/1.5 system-ui,sans-serif}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e9ec}}
h1{font-size:1.4rem;overflow-wrap:anywhere}
"""


def page(items: Sequence[dict[str, Any]], title: str) -> str:
    """A whole document: one run laid open, or several, each behind its line."""
    body = fragment(items[0]) if len(items) == 1 else folded(items)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_PAGE}{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


def folded(items: Sequence[dict[str, Any]]) -> str:
    """Several replays, each closed behind a line that says how it ended."""
    parts = []
    for shown in items:
        good = shown["outcome"] == "PASS"
        why = "" if good or not shown["why"] else f": {shorten(shown['why'], 120, placeholder=' …')}"
        line = f'<b class="{"good" if good else "bad"}">{escape(_outcome(shown))}</b> {escape(_name(shown))}{escape(why)}'
        parts.append(f'<details id="{escape(_name(shown), quote=True)}"><summary>{line}</summary>{fragment(shown)}</details>')
    return f'<div class="qm-replays">{"".join(parts)}</div>'


def fragment(shown: dict[str, Any]) -> str:
    """The replay alone; the page around it brings `STYLE`."""
    passed = shown["outcome"] == "PASS"
    parts = [
        '<section class="qm-replay">',
        f'<h3>{escape(_name(shown))} <span class="{"good" if passed else "bad"}">{escape(_outcome(shown))}</span></h3>',
        f'<p class="soft">{escape(shown["instance"])} · horizon {shown["horizon"]} steps · the oracle needs '
        f"{shown['oracle_steps']} · progress {100 * shown['progress']:.0f} % · {_PATHS.get(shown['path'], shown['path'])}</p>",
        f"<p>{escape(shown['why'])}</p>" if shown["why"] else "",
        f"<p>{escape(_after_loop(shown))}</p>" if shown["went_on_after_loop"] else "",
        f"<details><summary>The task, as the model was given it</summary><pre>{escape(shown['task'])}</pre></details>",
        _way(shown),
        "<ol>",
    ]
    steps = shown["steps"]
    words = {turn["turn"]: turn["text"] for turn in shown.get("turns", ()) if turn["text"].strip()}
    stopped = shown["progress_stopped_at"]
    if stopped is None and steps and not passed:
        parts.append('<li class="stop">no step brought the goal nearer</li>')
    for index, step in enumerate(steps):
        if index > 0 and not step["evidence"] and _alike(step, steps[index - 1]):
            if index + 1 == len(steps) or steps[index + 1]["evidence"] or not _alike(steps[index + 1], step):
                parts.append(f'<li class="soft">… the same up to step {step["step"]}</li>')
            continue
        parts.append(_step(step, words.pop(step["turn"], "")))
        if step["step"] == stopped and not passed:
            short = f"progress stopped here, {step['calls_left']} calls short of the goal"
            parts.append(f'<li class="stop">{short}</li>')
    return "".join([*parts, "</ol></section>"])


def _step(step: dict[str, Any], said: str) -> str:
    if step["call"]:
        call = f"{step['call']} {json.dumps(step['arguments'], ensure_ascii=False)}"
    else:
        call = step["detail"] or "(nothing)"
    tags = [_KINDS[step["kind"]]] if step["kind"] in _KINDS else []
    tags += ["changed the world"] if step["changed"] else []
    tags += [f"learned {len(step['learned'])}"] if step["learned"] else []
    tags += [f"{step['calls_left']} calls left"]
    tags += ["evidence"] if step["evidence"] else []
    marks = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
    rows = [_row("model says", f"<pre>{escape(said)}</pre>")] if said and said.strip() != call else []
    rows.append(_row("model did", f"<code>{escape(call)}</code>"))
    rows.append(_row("world said", f"<pre>{escape(step['answer'])}</pre>"))
    if step["oracle"] is not None:
        would = f"{step['oracle']['call']} {json.dumps(step['oracle']['arguments'], ensure_ascii=False)}"
        rows.append(_row("the oracle", f"<code>{escape(would)}</code>", " class=oracle"))
    elif step.get("as_oracle"):
        rows.append(_row("the oracle", '<span class="soft">the same</span>', " class=oracle"))
    kind = " class=evidence" if step["evidence"] else ""
    return f'<li{kind}><span class="n">Step {step["step"]}</span>{marks}<dl>{"".join(rows)}</dl></li>'


def _row(name: str, value: str, kind: str = "") -> str:
    return f"<dt>{name}</dt><dd{kind}>{value}</dd>"


def _name(shown: dict[str, Any]) -> str:
    """`agent/native/hard/3/0` → `hard/3`; the other path keeps its name."""
    _, path, tier, index, *_ = [*str(shown["run"]).split("/"), "", "", ""]
    return f"{tier}/{index}" if path == "native" else f"{path}/{tier}/{index}"


def _outcome(shown: dict[str, Any]) -> str:
    return str(shown["outcome"]) + (f" / {shown['sub']}" if shown["sub"] else "")


def _after_loop(shown: dict[str, Any]) -> str:
    end = "it passed after all" if shown["recovered"] else "it did not pass"
    return f"Let go on after the proven loop, to measure how often stopping is wrong: {end}."


def _way(shown: dict[str, Any]) -> str:
    """Calls left to the goal, step by step, as a staircase: where it stays flat, nothing was gained."""
    steps, start = shown["steps"], shown["start_calls_left"]
    if not steps:
        return ""
    width, height = 600, 90
    top = max(1, start, *(step["calls_left"] for step in steps))
    across, down = width / max(shown["horizon"], len(steps)), (height - 20) / top
    path = f"M0 {height - 10 - start * down:.1f}"
    for step in steps:
        path += f"H{step['step'] * across:.1f}V{height - 10 - step['calls_left'] * down:.1f}"
    marks = "".join(
        f'<circle cx="{step["step"] * across:.1f}" cy="{height - 10 - step["calls_left"] * down:.1f}" r="4" fill="var(--bad)"/>'
        for step in steps
        if step["evidence"]
    )
    label = f"calls left to the goal over {shown['horizon']} steps, from {start} to {steps[-1]['calls_left']}"
    legend = f"{label}; red: the evidence" if marks else label
    return (
        f'<figure style="margin:.6rem 0"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f'<line x1="0" y1="{height - 10}" x2="{width}" y2="{height - 10}" stroke="var(--line)"/>'
        f'<text x="{width}" y="{height - 14}" text-anchor="end" font-size="11" fill="var(--soft)">the goal</text>'
        f'<path d="{path}" fill="none" stroke="var(--way)" stroke-width="2"/>{marks}</svg>'
        f'<figcaption class="soft">{escape(legend)}</figcaption></figure>'
    )


def _alike(step: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(step[key] == other[key] for key in ("call", "arguments", "answer", "kind"))
