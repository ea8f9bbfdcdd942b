"""Agent sessions: legitimate ones of many kinds, and ones that turn in circles from a known answer on.

A session is a list of what happens: a user's words, or an answer with its calls and what they return. `replay` shows it to a
detector as a proxy sees it: with each answer a request that brings the whole history, however the client writes it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qm_proxy.events import Asked, Event, Finished, Message, Nanoseconds, PastCall, TextDelta, ToolCall
from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Placed

__all__ = ["LEGITIMATE", "LOOPS", "Answer", "Session", "opened", "replay"]

T = Nanoseconds(1)
_FILES = [
    f"src/{a}/{b}.py" for a in ("relay", "wire", "store", "detect") for b in ("core", "main", "table", "names", "view", "cache")
]
_WORDS = [
    "timeout",
    "socket",
    "header",
    "retry",
    "cursor",
    "token",
    "buffer",
    "stream",
    "window",
    "parser",
    "codec",
    "shard",
    "quota",
    "lease",
    "ledger",
    "invoice",
]
_THOUGHTS = (
    "Let me look.",
    "I will check this file.",
    "Next step.",
    "",
    "Now I know more.",
    "Trying that.",
    "One moment.",
    "I see.",
)


@dataclass
class Answer:
    text: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    errors: bool = False


@dataclass
class Session:
    kind: str
    steps: list[str | Answer]  # a string is a user's words
    onset: int | None = None  # index of the answer with which the loop begins, None if there is none


def one(name: str, arguments: dict[str, Any], result: str, text: str = "", *, error: bool = False) -> Answer:
    return Answer(text, [(name, arguments)], [result], error)


def _code(rng: random.Random, n: int = 6) -> str:
    return "\n".join(f"{i}: {rng.choice(_WORDS)} = {rng.choice(_WORDS)}({rng.randint(0, 999)})" for i in range(n))


def _work(rng: random.Random, n: int) -> list[str | Answer]:
    """Ordinary progress: reads, searches, edits, tests that change."""
    out: list[str | Answer] = []
    for _ in range(n):
        file = rng.choice(_FILES)
        match rng.randrange(5):
            case 0:
                out.append(one("read_file", {"path": file}, _code(rng), rng.choice(_THOUGHTS)))
            case 1:
                out.append(
                    one("grep", {"pattern": rng.choice(_WORDS), "path": "src"}, f"{file}:{rng.randint(1, 200)}: {_code(rng, 1)}")
                )
            case 2:
                out.append(one("edit_file", {"path": file, "old": _code(rng, 1), "new": _code(rng, 1)}, "File written."))
            case 3:
                out.append(
                    one(
                        "bash",
                        {"command": f"pytest {file}"},
                        f"{rng.randint(0, 9)} failed, {rng.randint(1, 90)} passed in 0.{rng.randint(1, 9)}s",
                    )
                )
            case _:
                out.append(one("list_dir", {"path": file.rpartition("/")[0]}, "\n".join(rng.sample(_FILES, 4))))
    return out


# --- legitimate


def pagination(rng: random.Random) -> list[str | Answer]:
    query = rng.choice(_WORDS)
    pages = rng.randint(6, 30)
    return [one("search_issues", {"query": query, "page": i}, _code(rng, 5)) for i in range(1, pages)]


def cursor_pages(rng: random.Random) -> list[str | Answer]:
    return [one("next_page", {}, _code(rng, 5)) for _ in range(rng.randint(5, 25))]


def polling_that_changes(rng: random.Random) -> list[str | Answer]:
    n = rng.randint(5, 25)
    return [one("get_job_status", {"id": "job-7"}, json.dumps({"state": "running", "percent": 100 * i // n})) for i in range(n)]


def polling_that_does_not(rng: random.Random) -> list[str | Answer]:
    n = rng.randint(3, 10)
    same = [one("get_job_status", {"id": 7}, '{"state": "pending"}', "Still pending.") for _ in range(n)]
    return [*same, one("get_job_status", {"id": 7}, '{"state": "done"}')]


def sleep_and_look(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for _ in range(rng.randint(3, 7)):
        out.append(one("bash", {"command": "sleep 30"}, ""))
        out.append(one("bash", {"command": "kubectl get pods --watch=false"}, "web-1 0/1 ContainerCreating (starting)"))
    return [*out, one("bash", {"command": "kubectl get pods --watch=false"}, "web-1 1/1 Running")]


def retry_until_ready(rng: random.Random) -> list[str | Answer]:
    n = rng.randint(2, 8)
    call = {"command": "curl -s localhost:8080/"}
    return [
        *(
            one("bash", call, "curl: (7) Failed to connect: Connection refused", "Not up yet.", error=rng.random() < 0.5)
            for _ in range(n)
        ),
        one("bash", call, "<html>ok</html>"),
    ]


def edit_and_test(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    file = rng.choice(_FILES)
    for i in range(rng.randint(4, 14)):
        out.append(one("edit_file", {"path": file, "old": f"return {i}", "new": f"return {i + 1}"}, "File written."))
        out.append(one("bash", {"command": "pytest -q"}, "1 failed, 41 passed\nE  assert 3 == 4", "Run the tests again."))
    return out


def edit_by_shell_and_test(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for i in range(rng.randint(4, 12)):
        out.append(one("bash", {"command": f"sed -i 's/x{i}/y{i}/' {rng.choice(_FILES)}"}, ""))
        out.append(one("bash", {"command": "make test"}, "error: 2 tests failed\nexit code: 1", error=rng.random() < 0.5))
    return out


def batch_writes(rng: random.Random) -> list[str | Answer]:
    return [
        one("write_file", {"path": f"out/{i}.txt", "content": _code(rng, 2)}, "File written.") for i in range(rng.randint(6, 30))
    ]


def todo_updates(rng: random.Random) -> list[str | Answer]:
    n = rng.randint(4, 12)
    out: list[str | Answer] = []
    for i in range(n):
        todos = [{"id": j, "state": "done" if j < i else "open"} for j in range(n)]
        out.append(one("todo_write", {"todos": todos}, "Todos updated."))
        out += _work(rng, 2)
    return out


def scrolling(rng: random.Random) -> list[str | Answer]:
    return [one("browser_scroll", {"direction": "down"}, _code(rng, 4)) for _ in range(rng.randint(5, 30))]


def status_between_edits(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for _ in range(rng.randint(4, 10)):
        out.append(one("edit_file", {"path": rng.choice(_FILES), "old": _code(rng, 1), "new": _code(rng, 1)}, "File written."))
        out.append(one("bash", {"command": "git status --short"}, " M src/relay/core.py"))
    return out


def exploring(rng: random.Random) -> list[str | Answer]:
    return [one("read_file", {"path": file}, _code(rng, 12)) for file in rng.sample(_FILES, rng.randint(8, 20))]


def searches_without_result(rng: random.Random) -> list[str | Answer]:
    return [one("grep", {"pattern": word}, "No matches found.") for word in rng.sample(_WORDS, rng.randint(4, 10))]


def heartbeat(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for _ in range(rng.randint(4, 12)):
        out += [
            "Check the inbox and tell me if there is anything.",
            one("list_mail", {"folder": "inbox"}, "[]"),
            Answer("Nothing new."),
        ]
    return out


def conversation(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for _ in range(rng.randint(5, 15)):
        out += [f"And what about the {rng.choice(_WORDS)} of {rng.choice(_FILES)}?", Answer(f"It is {_code(rng, 2)}.")]
    return out


def parallel_calls(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for _ in range(rng.randint(4, 10)):
        files = rng.sample(_FILES, 3)
        out.append(Answer("", [("read_file", {"path": file}) for file in files], [_code(rng) for _ in files]))
    return out


def same_file_in_parts(rng: random.Random) -> list[str | Answer]:
    file = rng.choice(_FILES)
    return [one("read_file", {"path": file, "offset": i * 200, "limit": 200}, _code(rng, 8)) for i in range(rng.randint(6, 20))]


def ordinary_work(rng: random.Random) -> list[str | Answer]:
    return _work(rng, rng.randint(15, 60))


def users_that_ask_again(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    for i in range(rng.randint(4, 9)):
        out += [f"Please run the tests again ({i}).", one("run_tests", {}, "3 failed, 12 passed"), Answer("Three tests fail.")]
    return out


LEGITIMATE: dict[str, Callable[[random.Random], list[str | Answer]]] = {
    make.__name__.replace("_", " "): make
    for make in (
        pagination,
        cursor_pages,
        polling_that_changes,
        polling_that_does_not,
        sleep_and_look,
        retry_until_ready,
        edit_and_test,
        edit_by_shell_and_test,
        batch_writes,
        todo_updates,
        scrolling,
        status_between_edits,
        exploring,
        searches_without_result,
        heartbeat,
        conversation,
        parallel_calls,
        same_file_in_parts,
        ordinary_work,
        users_that_ask_again,
    )
}

# --- loops: what repeats, from its first copy on


def _cycle(period: int, *, fails: bool = False) -> Callable[[random.Random], list[str | Answer]]:
    def make(rng: random.Random) -> list[str | Answer]:
        files = rng.sample(_FILES, period)
        unit = [
            one(
                "read_file",
                {"path": file},
                "Error: permission denied" if fails else _code(rng),
                rng.choice(_THOUGHTS),
                error=fails,
            )
            for file in files
        ]
        return [*unit] * 14

    return make


def parallel_cycle(rng: random.Random) -> list[str | Answer]:
    files = rng.sample(_FILES, 3)
    texts = {file: _code(rng) for file in files}
    out: list[str | Answer] = []
    for _ in range(10):
        rng.shuffle(files)
        out.append(
            Answer(rng.choice(_THOUGHTS), [("read_file", {"path": file}) for file in files], [texts[file] for file in files])
        )
    return out


def rewritten_arguments(rng: random.Random) -> list[str | Answer]:
    out: list[str | Answer] = []
    file = rng.choice(_FILES)
    text = _code(rng)
    for i in range(12):
        arguments = {"path": file, "limit": rng.choice((20, 20.0)), "description": f"look again, {i}"}
        items = list(arguments.items())
        rng.shuffle(items)
        out.append(one("read_file", dict(items), text, f"{rng.choice(_THOUGHTS)} ({i})"))
    return out


def stamped_results(rng: random.Random) -> list[str | Answer]:
    return [
        one(
            "run_build",
            {"target": "all"},
            f"[2026-11-24T09:{i:02d}:11Z] build failed in {i}.{i}s, id 3f2b{i:04d}aa00bb11cc, see /tmp/b{i}",
        )
        for i in range(1, 14)
    ]


def ever_changing_result(rng: random.Random) -> list[str | Answer]:
    return [one("bash", {"command": "date +%S"}, f"{(i * 7) % 60:02d}") for i in range(30)]


def same_error(rng: random.Random) -> list[str | Answer]:
    return [
        one("http_get", {"url": f"https://host/{rng.choice(_WORDS)}/{i}"}, "Error: 401 Unauthorized", error=True)
        for i in range(14)
    ]


def same_error_unmarked(rng: random.Random) -> list[str | Answer]:
    return [one("query", {"sql": f"select {_WORDS[i % 16]} from t{i}"}, 'Error: no such table "t"') for i in range(14)]


def monologue(rng: random.Random) -> list[str | Answer]:
    said = f"I will now open {rng.choice(_FILES)} and fix the {rng.choice(_WORDS)}."
    out: list[str | Answer] = []
    for _ in range(8):
        out += [Answer(said), "Continue."]
    return out[:-1]


def monologue_nearly(rng: random.Random) -> list[str | Answer]:
    words = (
        f"I will now open the file {rng.choice(_FILES)} and look for the place where the {rng.choice(_WORDS)} is set, then change it"
    ).split()
    out: list[str | Answer] = []
    for i in range(8):
        said = words[:]
        said[-1] = ("it", "this", "that")[i % 3]
        out += [Answer(" ".join(said) + "."), "Please use a tool."]
    return out[:-1]


def near_duplicates(rng: random.Random) -> list[str | Answer]:
    words = rng.sample(_WORDS, 4)
    return [
        one(
            "search_docs",
            {"query": " ".join([*words, rng.choice(_WORDS)]), "scope": "all", "language": "en", "limit": 10 + i},
            "No results.",
        )
        for i in range(16)
    ]


def echo(rng: random.Random) -> list[str | Answer]:
    file = rng.choice(_FILES)
    return [one("read_file", {"path": file}, "ok", "</think>") for _ in range(12)]


def dominant_call(rng: random.Random) -> list[str | Answer]:
    a, b, c = (one("read_file", {"path": file}, _code(rng)) for file in rng.sample(_FILES, 3))
    out: list[str | Answer] = []
    for _ in range(16):
        out += [a, a, rng.choice((b, c, a))]
    return out


def endless_polling(rng: random.Random) -> list[str | Answer]:
    return [one("get_job_status", {"id": 7}, '{"state": "pending"}') for _ in range(40)]


LOOPS: dict[str, Callable[[random.Random], list[str | Answer]]] = {
    "cycle of 1": _cycle(1),
    "cycle of 1, failing": _cycle(1, fails=True),
    "cycle of 2": _cycle(2),
    "cycle of 3": _cycle(3),
    "cycle of 5": _cycle(5),
    "cycle of 8": _cycle(8),
    "parallel cycle": parallel_cycle,
    "rewritten arguments": rewritten_arguments,
    "stamped results": stamped_results,
    "ever changing result": ever_changing_result,
    "same error": same_error,
    "same error, unmarked": same_error_unmarked,
    "monologue": monologue,
    "monologue, nearly": monologue_nearly,
    "near duplicates": near_duplicates,
    "echo": echo,
    "dominant call": dominant_call,
    "endless polling": endless_polling,
}


def session(rng: random.Random, kind: str) -> Session:
    before: list[str | Answer] = [
        f"Please fix the {rng.choice(_WORDS)} in {rng.choice(_FILES)}.",
        *_work(rng, rng.randint(0, 12)),
    ]
    if kind in LOOPS:
        return Session(kind, before + LOOPS[kind](rng), len(before))
    after = _work(rng, rng.randint(0, 8))
    return Session(kind, before + LEGITIMATE[kind](rng) + after)


# --- what a proxy sees of it


def messages_of(steps: list[str | Answer], rng: random.Random, *, ids: bool) -> list[Message]:
    out = [Message("system", "You are an agent.")]
    for i, step in enumerate(steps):
        if isinstance(step, str):
            out.append(Message("user", step))
            continue
        calls = tuple(PastCall(f"c{i}_{j}" if ids else "", name, _written(rng, a)) for j, (name, a) in enumerate(step.calls))
        out.append(Message("assistant", step.text, calls=calls))
        for j, result in enumerate(step.results):
            known = step.errors or None
            out.append(Message("tool", result, call_id=f"c{i}_{j}" if ids else "", tool_name=step.calls[j][0], is_error=known))
    return out


def _written(rng: random.Random, arguments: dict[str, Any]) -> str:
    """As different clients write the same object."""
    return json.dumps(arguments, separators=rng.choice(((",", ":"), (", ", ": "))), sort_keys=rng.random() < 0.5)


def opened(messages: list[Message], line: tuple[str, int] | None, turn: int) -> Opened:
    asked = Asked(T, "ollama", "chat", "m", True, messages=tuple(messages))
    placed = None if line is None else Placed(line[0], "prefix", "next", line[1], turn)
    return Opened(
        f"e{turn}", T, "", "POST", "/api/chat", "ollama", "chat", "m", True, "client", None, "client", asked, placed=placed
    )


def answers(session: Session) -> Iterator[tuple[int, Answer]]:
    for i, step in enumerate(session.steps):
        if isinstance(step, Answer):
            yield i, step


def replay(
    session: Session, watch: Callable[[Opened], Any], rng: random.Random, *, ids: bool = True, compact: bool = False
) -> Iterator[tuple[int, Finding]]:
    """Every answer of the session, live; findings with the index of the step that brought them."""
    for turn, (i, answer) in enumerate(answers(session)):
        history = session.steps[:i]
        if compact and len(history) > 24:  # the client drops its first half and writes a summary
            history = ["Summary of what was done so far.", *history[len(history) // 2 :]]
        detector = watch(opened(messages_of(history, rng, ids=ids), ("s", 0), turn))
        if detector is None:
            continue
        events: list[Event] = [TextDelta(T, piece) for piece in answer.text.split(" ") if piece] if answer.text else []
        if answer.text:
            events = [TextDelta(T, answer.text[:7]), TextDelta(T, answer.text[7:])]
        events += [ToolCall(T, j, f"c{i}_{j}", name, _written(rng, a)) for j, (name, a) in enumerate(answer.calls)]
        for event in [*events, Finished(T, "tool_calls" if answer.calls else "stop")]:
            for finding in detector.see(event):
                yield i, finding
