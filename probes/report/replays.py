"""Replays as a page or as a piece of one: plain HTML and SVG, no script, readable in light and dark and by keyboard.

`fragment` takes what the Agent Report's `replay` gave (or what a result file keeps of it), so that a report can show any run.
Each step says what the model did, what the world said, and what the oracle would have done, knowing as much. A page of many
runs is bounded: word-for-word copies point at the first, and past `LARGEST` a run is a line and the command that walks it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby
from textwrap import shorten
from typing import Any, Final

__all__ = ["LARGEST", "STYLE", "folded", "fragment", "page", "spoken_run"]

LARGEST: Final = 4_000_000
"""Characters of runs that one page lays open; of each kind of outcome the first ones are."""
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
.qm-replays{overflow-wrap:anywhere}
.qm-replays details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:0 .8rem}
.qm-replays summary{cursor:pointer;padding:.5rem 0;color:var(--ink)}
.qm-replays .line{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.5rem .8rem;color:var(--ink)}
.qm-replays .soft{color:var(--soft)}.qm-replays a,.qm-replay a{color:var(--way)}
"""
_PAGE: Final = """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1rem;max-width:60rem;background:#fff;color:#1c2330;font:16px/1.5 system-ui,sans-serif}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e9ec}}
h1{font-size:1.4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2rem 0 .4rem}h2+p{margin:.2rem 0}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
nav ul{list-style:none;padding:0}nav a{color:#2f5fd0}
@media(prefers-color-scheme:dark){nav a{color:#8fb0ff}}
"""


def page(items: Sequence[dict[str, Any]], title: str) -> str:
    """A whole document: one run laid open, or many, each behind its line, under headings that say which kind of run it is."""
    body = fragment(items[0]) if len(items) == 1 else _grouped(items)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_PAGE}{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


def _grouped(items: Sequence[dict[str, Any]]) -> str:
    lines = _lines(items)
    contents: list[str] = []
    parts: list[str] = []
    for kind, run in groupby(range(len(items)), lambda index: _kind(items[index])):
        parts.append(f"<h2>{escape(kind[0])}</h2><p>{escape(kind[1])}</p>")
        contents.append(f"<li><b>{escape(kind[0])}</b></li>")
        for name, members in groupby(run, lambda index: _set(items[index])):
            chosen = list(members)
            counts = Counter(_outcome(items[index]) for index in chosen)
            made = f"{len(chosen)} run{'' if len(chosen) == 1 else 's'}"
            told = f"{name}: {made}, {', '.join(f'{label} {n}' for label, n in counts.most_common())}"
            anchor = escape(f"set/{items[chosen[0]]['path']}/{name}", quote=True)
            contents.append(f'<li><a href="#{anchor}">{escape(told)}</a></li>')
            inside = "".join(lines[index] for index in chosen)
            parts.append(f'<h3 id="{anchor}">{escape(told)}</h3><div class="qm-replays">{inside}</div>')
    return f"<nav><ul>{''.join(contents)}</ul></nav>{''.join(parts)}"


def _kind(shown: dict[str, Any]) -> tuple[str, str]:
    path = _PATHS.get(shown["path"], shown["path"])
    if "sampling" in shown:
        return (
            f"The origin's sampling (--compat quantamind), {path}",
            "The same few fixed tasks again and again. A step of the origin is a model turn; there is no done: a run ends when "
            "the goal is reached, at a turn without a call, at three identical turns, or at the cap of turns, which it calls "
            "InfiniteLoop too. Shown here call by call.",
        )
    return (
        f"Our own tiers, {path}",
        "Every run is a fresh instance; a step is one call, and the run ends when the model calls done, at a proven loop, at a "
        "forbidden call, or at the horizon.",
    )


def _set(shown: dict[str, Any]) -> str:
    """The runs that belong together: a tier of ours, a fixed task of the origin's."""
    return str(shown["run"]).split("/")[1] if "sampling" in shown else str(shown["tier"]).capitalize()


def _lines(items: Sequence[dict[str, Any]]) -> list[str]:
    """For each run its replay behind a line; or the line alone, with where to look instead."""
    first: dict[str, int] = {}
    same: dict[int, int] = {}
    rank: dict[int, tuple[int, int]] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for index, shown in enumerate(items):
        compared = [shown[key] for key in ("instance", "path", "outcome", "steps")]
        walked = json.dumps(compared, default=str, sort_keys=True)
        if (earlier := first.setdefault(walked, index)) != index:
            same[index] = earlier
            continue
        sort = (str("sampling" in shown), str(shown["path"]), str(shown["tier"]), _outcome(shown))
        rank[index] = seen[sort], index
        seen[sort] += 1
    open_, room = {}, LARGEST
    for index in sorted(rank, key=rank.__getitem__):
        if (room := room - len(laid := fragment(items[index]))) < 0:
            break
        open_[index] = laid
    lines: list[str] = []
    for index, shown in enumerate(items):
        if (laid_open := open_.get(index)) is not None:
            lines.append(_fold(shown, laid_open))
        elif index in same:
            lines.append(_copies(items, same, index))
        else:
            tail = f"not laid out here, walk it with <code>qm-proxy replay FOLDER {escape(_name(shown))}</code>"
            anchor = escape(_name(shown), quote=True)
            lines.append(f'<p class="line" id="{anchor}">{_line(shown)} <span class="soft">· {tail}</span></p>')
    return lines


def _copies(items: Sequence[dict[str, Any]], same: dict[int, int], index: int) -> str:
    """One line for all copies of a run that follow each other; nothing for the later ones of them."""
    if same.get(index - 1) == same[index]:
        return ""
    last = index
    while same.get(last + 1) == same[index]:
        last += 1
    shown, name = items[index], escape(_name(items[same[index]]))
    who = escape(_name(shown))
    if last > index:
        who = f"{last - index + 1} runs, {who} to {escape(_name(items[last]))}"
    label = f'<b class="{"good" if shown["outcome"] == "PASS" else "bad"}">{escape(_outcome(shown))}</b>'
    tail = f'the same calls and answers as <a href="#{escape(_name(items[same[index]]), quote=True)}">{name}</a>'
    return f'<p class="line" id="{escape(_name(shown), quote=True)}">{label} {who} <span class="soft">· {tail}</span></p>'


def folded(items: Sequence[dict[str, Any]]) -> str:
    """Several replays, each closed behind a line that says how it ended."""
    return f'<div class="qm-replays">{"".join(_fold(shown, fragment(shown)) for shown in items)}</div>'


def _fold(shown: dict[str, Any], laid_open: str) -> str:
    return f'<details id="{escape(_name(shown), quote=True)}"><summary>{_line(shown)}</summary>{laid_open}</details>'


def _line(shown: dict[str, Any]) -> str:
    good = shown["outcome"] == "PASS"
    why = "" if good or not shown["why"] else f": {shorten(shown['why'], 120, placeholder=' …')}"
    n, unit = (len(shown["turns"]), "turn") if "sampling" in shown else (len(shown["steps"]), "step")
    length = f'<span class="soft">, {n} {unit}{"" if n == 1 else "s"}</span>'
    return f'<b class="{"good" if good else "bad"}">{escape(_outcome(shown))}</b> {escape(_name(shown))}{length}{escape(why)}'


def fragment(shown: dict[str, Any]) -> str:
    """The replay alone; the page around it brings `STYLE`."""
    passed = shown["outcome"] == "PASS"
    parts = [
        '<section class="qm-replay">',
        f'<h3>{escape(_name(shown))} <span class="{"good" if passed else "bad"}">{escape(_outcome(shown))}</span></h3>',
        f'<p class="soft">{escape(shown["instance"])} · horizon {shown["horizon"]} {shown.get("counts", "steps")} · the oracle '
        f"needs {_calls(shown['oracle_steps'])} · progress {100 * shown['progress']:.0f} % · "
        f"{_PATHS.get(shown['path'], shown['path'])}</p>",
        f'<p class="soft">{escape(shown["sampling"])}</p>' if "sampling" in shown else "",
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
        parts.append(_step(step, words.pop(step["turn"], ""), turns=shown.get("counts") == "turns"))
        if step["step"] == stopped and not passed:
            short = f"progress stopped here, {_calls(step['calls_left'])} short of the goal"
            parts.append(f'<li class="stop">{short}</li>')
    return "".join([*parts, "</ol></section>"])


def _step(step: dict[str, Any], said: str, *, turns: bool) -> str:
    if step["call"]:
        call = f"{step['call']} {json.dumps(step['arguments'], ensure_ascii=False)}"
    else:
        call = step["detail"] or "(nothing)"
    tags = [f"turn {step['turn']}"] if turns else []
    tags += [_KINDS[step["kind"]]] if step["kind"] in _KINDS else []
    tags += ["changed the world"] if step["changed"] and step["kind"] != "fault" else []
    tags += [f"learned {len(step['learned'])}"] if step["learned"] else []
    tags += [f"{_calls(step['calls_left'])} left"]
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
    return spoken_run(str(shown["run"]))


def spoken_run(key: str) -> str:
    """`agent/native/hard/3/0` as a reader names it: `hard/3`; the other path and a second try keep their mark."""
    if key.startswith("compat/"):
        return key
    _, path, tier, index, attempt, *_ = [*key.split("/"), "", "", "", "", ""]
    name = f"{tier}/{index}" if path == "native" else f"{path}/{tier}/{index}"
    return name if attempt in ("", "0") else f"{name}/{attempt}"


def _calls(n: int) -> str:
    return f"{n} call{'' if n == 1 else 's'}"


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
    counts = shown.get("counts", "steps")
    place = counts[:-1]  # the field of a step that says where it stands on that scale
    across, down = width / max(shown["horizon"], *(step[place] for step in steps)), (height - 20) / top
    path = f"M0 {height - 10 - start * down:.1f}"
    for step in steps:
        path += f"H{step[place] * across:.1f}V{height - 10 - step['calls_left'] * down:.1f}"
    marks = "".join(
        f'<circle cx="{step[place] * across:.1f}" cy="{height - 10 - step["calls_left"] * down:.1f}" r="4" fill="var(--bad)"/>'
        for step in steps
        if step["evidence"]
    )
    label = f"calls left to the goal over {shown['horizon']} {counts}, from {start} to {steps[-1]['calls_left']}"
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
