"""A player that reads what a model reads and never errs: it proves that an instance can be solved, and in how many steps.

It knows the tools' names and how to read the world's sentences; it knows nothing of an instance but its task and the answers
it has seen. Fed somebody else's calls and answers, it says what it would do next: that is the replay's "the oracle would".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from probes.agent.instance import Instance
from probes.agent.tools import NEED_TOOLS
from probes.agent.world import World

__all__ = ["NUMBER", "Call", "Oracle", "play"]

NUMBER: Final = re.compile(r"\b(APR|LCK|MIG|FLG|SNP|CHG|INC|OVR|rev|sha|rcp)-[0-9a-f]{8}\b")
"""Every value that can only be read, never guessed."""

_PATH = re.compile(r"\b[\w-]+/[\w-]+(?:/[\w-]+)*\.\w+")
_KIND = {"APR": "approval", "LCK": "lock", "MIG": "migration", "FLG": "flag", "SNP": "snapshot"}
_RED = re.compile(r"\bfail(?:ed)?\b|\bis red\b|does not pass")


class Call(NamedTuple):
    """A tool call: name and arguments."""

    name: str
    arguments: dict[str, str]


@dataclass(slots=True)
class _Aim:
    """What is believed about one goal; `None` is "not seen yet"."""

    line: str
    path: str
    service: str
    environment: str
    change: str | None = None
    revision: str | None = None
    applied: str | None = None
    tested: bool = False
    digest: str | None = None
    live: bool = False


class Oracle:
    """`see` takes a call and its answer, `next` gives the call it would make now."""

    def __init__(self, task: str) -> None:
        self.aims = [_aim(line) for line in task.splitlines() if _PATH.search(line)]
        self.incident: str | None = None
        self._behind: dict[str, str] = {}  # a need, or "deploy SERVICE" → the need that must be met first
        self._met: set[str] = set()
        self._pending: set[str] = set()
        self._asks: dict[str, str] = {}  # a need → the sentence that asks for its reference
        self._receipts: dict[str, str] = {}
        self._filed: dict[str, str] = {}  # a need → the file its receipt is in
        self._wanted: dict[str, str] = {}

    # --- reading ----------------------------------------------------------------------------------------------------

    def see(self, name: str, arguments: Mapping[str, object], text: str) -> None:
        """Take note of an answer, whoever made the call."""
        if text.startswith("error"):
            if (incident := _numbers(text, "INC")) and "503" in text:
                self.incident = incident[0]
            return
        refused = text.startswith("refused")
        given = {key: str(value).strip() for key, value in arguments.items()}
        if name == "read_file":
            self._saw_file(given.get("path", ""), text, refused)
        elif name == "write_patch":
            self._saw_patch(given.get("path", ""), set(given.values()) if refused else set(), text, refused)
        elif name in ("run_tests", "build", "deploy"):
            self._saw_stage(name, given, text, refused)
        else:
            for tool, argument in (*NEED_TOOLS.values(), ("get_status", "subject"), ("release_lock", "lock_id")):
                if name == tool:
                    self._saw_need(name, given.get(argument, ""), text, refused)

    def _saw_file(self, path: str, text: str, refused: bool) -> None:
        for need, filed in self._filed.items():
            if filed == path and (receipts := _numbers(text, "rcp")):
                self._receipts[need] = receipts[0]
            elif filed == path and refused:
                self._met.discard(need)
        aim = next((aim for aim in self.aims if aim.path == path), None)
        if aim is None or refused:
            return
        aim.revision = _numbers(text, "rev")[0]
        changes = _numbers(text, "CHG")
        aim.applied = next((change for change in changes if changes.count(change) > 1), None)
        lines = [line for line in text.splitlines() if _numbers(line, "CHG")]
        best = max(lines, key=lambda line: _overlap(line, aim.line), default=None)
        aim.change = _numbers(best, "CHG")[0] if best is not None else None

    def _saw_patch(self, path: str, echoed: set[str], text: str, refused: bool) -> None:
        aim = next((aim for aim in self.aims if aim.path == path), None)
        if aim is None:
            return
        revisions = [revision for revision in _numbers(text, "rev") if revision not in echoed]
        if refused:
            aim.revision = revisions[0] if revisions else None
        elif revisions and revisions[0] != aim.revision:
            aim.revision, aim.applied = revisions[0], next(iter(_numbers(text, "CHG")), None)
            aim.tested, aim.digest, aim.live = False, None, False
        elif revisions:
            aim.applied = next(iter(_numbers(text, "CHG")), None)

    def _saw_stage(self, name: str, given: Mapping[str, str], text: str, refused: bool) -> None:
        aim = next((aim for aim in self.aims if aim.service == given.get("service")), None)
        if aim is None:
            return
        if name == "run_tests":
            aim.tested = not refused and not _RED.search(text.split("revision")[0] + text.split(":")[1])
            if not aim.tested:
                aim.change = aim.applied = aim.revision = None
        elif name == "build":
            aim.digest = None if refused else _numbers(text, "sha")[0]
            aim.tested = not refused
        elif given.get("environment") == aim.environment:
            aim.live = not refused
            echoed = given.get("digest", "") in text  # "…is not the digest of a current build"
            if refused and (echoed or not self._saw_refusal(f"deploy {aim.service}", text)):
                aim.digest = None

    def _saw_need(self, name: str, need: str, text: str, refused: bool) -> None:
        if refused or "expired" in text or "lapsed" in text or "ran out" in text:
            self._met.discard(need)
            self._pending.discard(need)
            self._saw_refusal(need, text)
        elif "pending" in text:
            self._pending.add(need)
        elif receipts := _numbers(text, "rcp"):
            self._grant(need, receipts[0])
        elif filed := _PATH.search(text):
            self._grant(need, None)
            self._filed[need] = filed.group()
        else:  # open again, given back, switched the other way
            self._met.discard(need)
            self._pending.discard(need)

    def _grant(self, need: str, receipt: str | None) -> None:
        self._met.add(need)
        self._pending.discard(need)
        if receipt is not None:
            self._receipts[need] = receipt

    def _saw_refusal(self, refused: str, text: str) -> bool:
        """Learn what stands in the way of `refused`; false when the text names no prerequisite."""
        named = list(dict.fromkeys(found.group() for found in NUMBER.finditer(text) if found.group(1) in _KIND))
        if not named:
            return False
        subject, *others = named  # "…LCK-1 is required; LCK-1 wants a reference: the receipt of APR-2"
        if "reference" in text:
            self._asks[subject] = text
        if wanted := re.search(rf"{subject} (?:is not|is|has to be) (on|off)\b", text):
            self._wanted[subject] = wanted.group(1)
        if subject != refused:
            self._behind[refused] = subject
            self._met.discard(subject)
        for number in others:
            self._behind[subject] = number
        return True

    # --- deciding ---------------------------------------------------------------------------------------------------

    def next(self) -> Call:
        """The next call towards the end of the task."""
        if self.incident is not None:
            return _done("blocked", f"an outage stops this: {self.incident}", self.incident)
        for aim in self.aims:
            if (call := self._toward(aim)) is not None:
                return call
        proof = ", ".join(aim.digest or aim.revision or "" for aim in self.aims)
        return _done("success", "everything asked for is in place", proof)

    def _toward(self, aim: _Aim) -> Call | None:
        if aim.change is None or aim.revision is None:
            return Call("read_file", {"path": aim.path})
        if aim.applied != aim.change:
            return Call("write_patch", {"path": aim.path, "base_rev": aim.revision, "change_id": aim.change})
        if not aim.tested:
            return Call("run_tests", {"service": aim.service})
        if not aim.environment or aim.live:
            return None
        if aim.digest is None:
            return Call("build", {"service": aim.service})
        action = f"deploy {aim.service}"
        while (need := self._behind.get(action)) is not None and need not in self._met:
            action = need
        if action.startswith("deploy "):
            return Call("deploy", {"service": aim.service, "environment": aim.environment, "digest": aim.digest})
        return self._obtain(action, aim)

    def _obtain(self, need: str, aim: _Aim) -> Call:
        if need in self._pending:
            return Call("get_status", {"subject": need})
        kind = _KIND[need[:3]]
        tool, argument = NEED_TOOLS[kind]
        arguments = {argument: need}
        if kind == "flag":
            arguments["value"] = self._wanted.get(need, "off")
        if (asked := self._asks.get(need)) is not None:
            if "digest" in asked:
                arguments["reference"] = aim.digest or ""
            elif "receipt" in asked:
                behind = self._behind.get(need)
                if behind is not None and behind not in self._receipts:
                    if (filed := self._filed.get(behind)) is not None:
                        return Call("read_file", {"path": filed})
                    if behind in self._met:
                        return Call("get_status", {"subject": behind})
                if behind is not None and behind in self._receipts:
                    arguments["reference"] = self._receipts[behind]
            else:
                arguments["reference"] = aim.revision or ""
        return Call(tool, arguments)


def play(instance: Instance, limit: int) -> tuple[World, int]:
    """Let a fresh oracle play an instance to its `done`; answers with the last world and the steps taken (≤ limit)."""
    world, oracle = World(instance), Oracle(instance.task)
    while world.claim is None and world.steps < limit:
        name, arguments = oracle.next()
        oracle.see(name, arguments, world.act(name, arguments).text)
    return world, world.steps


def _aim(line: str) -> _Aim:
    found = _PATH.search(line)
    path = found.group() if found else ""
    last = line.rstrip(" .").rsplit(" ", 1)[-1]
    ships = re.search(r"\blive\b|\bship\b", line) is not None
    return _Aim(line, path, path.split("/")[1], last if ships else "")


def _numbers(text: str, prefix: str) -> list[str]:
    return [found.group() for found in NUMBER.finditer(text) if found.group(1) == prefix]


def _overlap(line: str, other: str) -> int:
    """How many words of a change's line stand in the goal's line, in the same neighbourhood: pairs of words."""
    return len(_pairs(line) & _pairs(other))


def _pairs(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text.lower())
    return set(pairwise(words))


def _done(status: str, summary: str, evidence: str) -> Call:
    return Call("done", {"status": status, "summary": summary, "evidence": evidence})
