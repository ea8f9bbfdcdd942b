"""The answer key of a trial's prompt, read from the prompt alone: what a model that reads everything would know.

For simulated models only: a persona that is right with a known chance needs to know what right would be, and what the
plausible wrong answers are. Pure text in, `Key` out; it never sees the trial that made the prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from probes.audit.facts import CODE_FORM, PLACES

__all__ = ["NOT_STATED", "Key", "solve"]

NOT_STATED = "NOT STATED"


@dataclass(frozen=True, slots=True)
class Key:
    """`answer` is the reply of a perfect reader. `others` are values that were planted and not asked for, `stale` a revoked
    one, `form` shows how an invented value would look, `header` is the tag of the first line if the prompt still has it."""

    answer: str
    others: tuple[str, ...]
    stale: tuple[str, ...]
    form: str
    header: str | None


def solve(prompt: str) -> Key | None:
    """`None` when the prompt is none of the audit's."""
    header_found = re.search(r"Header tag: (\S+?)\.?\n", prompt[:400])
    header = header_found.group(1) if header_found else None
    question = prompt[prompt.rfind("Question:") :] if "Question:" in prompt else ""
    if "header tag" in question:
        return Key(header or NOT_STATED, (), (), "2222-222", header)
    if found := re.search(r"rollback code for service (\w+)\?", question):
        return _service(prompt, found.group(1), header)
    if found := re.search(r"which value does register (\w+) hold", question):
        return _register(prompt, found.group(1), header)
    if found := re.search(r"pictures show (.+?)\?", question):
        return _place(prompt, found.group(1), header)
    if found := re.search(r"open_(\w+)\('main'\)", question):
        values = dict(re.findall(r"def open_(\w+)\(path: str, lease: int = (\d+)\)", prompt))
        answer = values.get(found.group(1), NOT_STATED)
        return Key(answer, tuple(v for v in values.values() if v != answer), (), "1000000", header)
    if found := re.search(r"TASK: restart service (\w+) with ticket (\S+)\. Call", prompt):
        call = f'{{"name": "restart_service", "args": {{"service": "{found.group(1)}", "ticket": "{found.group(2)}"}}}}'
        return Key(call, (), (), '{"name": "list_services", "args": {}}', header)
    return None


def _service(prompt: str, service: str, header: str | None) -> Key:
    told = re.findall(r"(?:the|The) rollback code for service (\w+) is ([A-Z0-9-]+)", prompt)
    mine = [code for name, code in told if name == service]
    others = tuple(code for name, code in told if name != service)
    if not mine:
        return Key(NOT_STATED, others, (), "2222-222", header)
    return Key(mine[-1], others, tuple(mine[:-1]), "2222-222", header)


def _register(prompt: str, register: str, header: str | None) -> Key:
    links = dict(re.findall(r"Register (\w+) holds the same value as register (\w+)\.", prompt))
    values = {name: value for name, value in re.findall(r"Register (\w+) holds (\S+)\.", prompt) if CODE_FORM.fullmatch(value)}
    at, hops = register, 0
    while at in links and hops < 16:
        at, hops = links[at], hops + 1
    answer = values.get(at, NOT_STATED)
    return Key(answer, tuple(value for value in values.values() if value != answer), (), "2222-222", header)


def _place(prompt: str, country: str, header: str | None) -> Key:
    told = dict(re.findall(r"The crew that photographed (.+?) carries ([A-Z0-9-]+)\.", prompt))
    wanted = next((place for place, where in PLACES if where == country), None)
    answer = told.get(wanted, NOT_STATED) if wanted else NOT_STATED
    return Key(answer, tuple(code for code in told.values() if code != answer), (), "2222-222", header)
