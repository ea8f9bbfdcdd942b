"""Generated traffic with known sessions: many clients at once, each with the habits that make stitching hard.

A conversation is a coroutine: it yields the request its client sends (with the answer the model will give), and goes on
when that answer is there. The mixer runs many of them at the same time. Nothing here knows how stitching works; what is
ambiguous by nature (the same words from the same kind of client) stays in, at the rate at which `Habits` says.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Dialect = Literal["ollama", "openai-chat", "openai-responses", "anthropic", "openai-completions"]

_WORDS = [
    "alpha",
    "build",
    "cache",
    "delta",
    "error",
    "file",
    "graph",
    "handle",
    "index",
    "join",
    "key",
    "lambda",
    "merge",
    "node",
    "open",
    "parse",
    "query",
    "read",
    "stack",
    "test",
    "update",
    "value",
    "write",
    "xml",
    "yield",
    "zone",
    "async",
    "branch",
    "commit",
    "deploy",
    "event",
    "fetch",
    "guard",
    "hook",
    "image",
    "job",
    "kernel",
    "layer",
    "module",
]
_SHARED_OPENINGS = ("hi", "hello there", "fix the failing test", "explain this repository to me", "continue")
_SHARED_ANSWERS = ("Hello! How can I help you today?", "Sure.", "Done.", "Let me look at the files first.")


@dataclass
class Call:
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass
class Turn:
    """One message of a history, as the client holds it."""

    role: str
    text: str = ""
    thinking: str = ""
    calls: list[Call] = field(default_factory=list)
    call_id: str = ""
    tool: str = ""
    failed: bool | None = None


@dataclass
class Reply:
    """What the model answers. `ok` False: the client left, or the server failed, before it was whole."""

    text: str = ""
    thinking: str = ""
    calls: list[Call] = field(default_factory=list)
    ok: bool = True
    response_id: str = ""


@dataclass
class Ask:
    """One request. `session`: the truth; `line`: main, fork, subagent or side, for the second score."""

    session: int
    line: str
    kind: str
    dialect: Dialect
    client: str
    user_agent: str
    history: list[Turn]
    tools: tuple[str, ...]
    reply: Reply
    hints: dict[str, str] = field(default_factory=dict)
    previous_response_id: str | None = None
    prompt: str | None = None
    connection: int = 0


@dataclass
class Spawn:
    """Sub-agents that run at the same time; the parent goes on when all have ended."""

    lines: list[Conversation]


Conversation = Generator["Ask | Spawn", None, None]


@dataclass(frozen=True)
class Habits:
    """What a client does to its history, and how often its user does something else than go on."""

    name: str
    dialect: Dialect
    user_agent: str
    tools: tuple[str, ...]
    session_id: str | None = None  # the hint that carries its id
    agent_id: str | None = None
    keeps_thinking: bool = False
    reorders: bool = False  # keys of arguments come back in another order
    rewrites_ids: bool = False
    reminders: bool = False  # injected blocks that move and change
    dated_system: bool = False  # its system prompt has the time in it
    few_shot: bool = False  # canned examples before the first message
    moves_reminder: bool = False  # ends each user message with a note that it takes out again later
    prunes: bool = False  # replaces old results by a placeholder
    by_response_id: bool = False
    side_calls: bool = False
    shared_openings: float = 0.25
    fork: float = 0.08
    retry: float = 0.08
    regenerate: float = 0.03
    compaction: float = 0.06
    subagent: float = 0.06


CLIENTS: tuple[Habits, ...] = (
    Habits("claude-code", "anthropic", "claude-cli/2.1", ("Bash", "Read", "Edit", "Task"), "x-claude-code-session-id",
           "x-claude-code-agent-id", keeps_thinking=True, reminders=True, side_calls=True, prunes=True),
    Habits("unknown", "anthropic", "my-agent/1", ("Bash", "Read", "Edit", "Task"), reminders=True, side_calls=True, prunes=True),
    Habits("opencode", "openai-chat", "opencode/1.18", ("bash", "read", "edit", "task"), "x-session-id", side_calls=True,
           reorders=True),
    Habits("openai-python", "openai-chat", "OpenAI/Python 1", ("bash", "read", "write", "task"), reorders=True,
           rewrites_ids=True, dated_system=True),
    Habits("codex", "openai-responses", "codex_cli_rs/0.60", ("shell", "apply_patch", "spawn_agent"), "session-id",
           keeps_thinking=True),
    Habits("openai-js", "openai-responses", "OpenAI/JS 5", ("shell", "search", "spawn_agent"), by_response_id=True, fork=0.05),
    Habits("ollama-python", "ollama", "ollama-python/0.6", ("search", "fetch", "agent"), reorders=True, keeps_thinking=True),
    Habits("ollama-js", "ollama", "ollama-js/0.6", (), shared_openings=0.5, side_calls=True, regenerate=0.08),
    Habits("aider", "ollama", "litellm/1.81", (), few_shot=True, moves_reminder=True, subagent=0.0),
    Habits("go", "openai-completions", "Go-http-client/1.1", (), subagent=0.0, compaction=0.0, fork=0.0, regenerate=0.0,
           shared_openings=0.0),
)  # fmt: skip


class Writer:
    """Words, ids and answers of one mixture."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def words(self, low: int, high: int) -> str:
        n = self.random.randint(low, high)
        return " ".join(self.random.choice(_WORDS) + (f"{self.random.randint(0, 999)}" if i % 5 == 0 else "") for i in range(n))

    def paragraphs(self) -> str:
        return "\n\n".join(self.words(8, 30).capitalize() + "." for _ in range(self.random.randint(1, 4)))

    def number(self) -> int:
        self.count += 1
        return self.count

    def call(self, tools: tuple[str, ...]) -> Call:
        name = self.random.choice([tool for tool in tools if not _spawns(tool)])
        pool: list[dict[str, Any]] = [
            {"command": "ls"},
            {"command": f"cat src/{self.random.choice(_WORDS)}.py", "timeout": 30},
            {"path": f"src/{self.random.choice(_WORDS)}.py", "offset": 0, "limit": self.random.randint(1, 400)},
            {"query": self.words(2, 5), "flags": {"b": 1, "a": [True, None, 1.0]}},
        ]
        return Call(f"call_{self.random.getrandbits(32):08x}", name, self.random.choice(pool))

    def result(self) -> str:
        return self.random.choice(["", "ok", self.words(3, 40), "a.py\nb.py\n" + self.words(1, 9)])


def _spawns(tool: str) -> bool:
    return tool.lower() in ("task", "agent", "spawn_agent")


class Client:
    """One conversation's client: keeps the history, sends it with its habits."""

    def __init__(self, habits: Habits, writer: Writer, session: int, connection: int) -> None:
        self.habits, self.write, self.session, self.connection = habits, writer, session, connection
        self.client_session = f"{writer.random.getrandbits(64):016x}"
        self.responses: list[tuple[int, str]] = []  # (length of the history behind it, id)

    # --- requests -----------------------------------------------------------------------------------------------------

    def ask(
        self,
        history: list[Turn],
        reply: Reply,
        *,
        kind: str,
        line: str = "main",
        system: str | None = None,
        tools: tuple[str, ...] | None = None,
        agent: str | None = None,
    ) -> Ask:
        habits = self.habits
        hints = {}
        if habits.session_id is not None:
            hints[habits.session_id] = self.client_session
            if agent is not None and habits.agent_id is not None:
                hints[habits.agent_id] = agent
        if system is None:
            system = f"You are {habits.name}, a coding agent. Follow the rules of the repository and answer briefly."
            if habits.dated_system:
                system += f" The time is {self.write.number()}."
        previous = None
        sent = [Turn("system", system), *self._habitual(history)]
        if habits.by_response_id and line == "main" and kind != "compaction":
            known = [(length, response) for length, response in self.responses if length <= len(history)]
            if known:
                length, previous = known[-1]
                sent = self._habitual(history[length:])
        return Ask(
            self.session, line, kind, habits.dialect, habits.name, habits.user_agent, sent,
            habits.tools if tools is None else tools, reply, hints, previous, None, self.connection,
        )  # fmt: skip

    def _habitual(self, history: list[Turn]) -> list[Turn]:
        habits, rng = self.habits, self.write.random
        sent = [replace(turn, calls=[replace(call) for call in turn.calls]) for turn in history]
        results = [turn for turn in sent if turn.role == "tool"]
        users = [turn for turn in sent if turn.role == "user"]
        if habits.prunes:
            for turn in results[:-8]:
                turn.text = "[Old tool result content cleared]"
        for turn in sent:
            if not habits.keeps_thinking:
                turn.thinking = ""
            if habits.reorders:
                for call in turn.calls:
                    call.arguments = dict(rng.sample(list(call.arguments.items()), len(call.arguments)))
            if habits.rewrites_ids:
                for call in turn.calls:
                    call.id = "toolu_" + call.id[5:]
                turn.call_id = turn.call_id and "toolu_" + turn.call_id[5:]
        if habits.reminders and users:
            turn = rng.choice(users)
            turn.text = f"<system-reminder>\n{self.write.words(3, 9)}\n</system-reminder>\n{turn.text}"
        if habits.moves_reminder and users:
            users[-1].text += "\n\nReminder: reply with whole files, in fenced blocks, and with nothing else around them."
        if habits.few_shot:
            canned = [("user", "Change the greeting"), ("assistant", "hello.py\n```\nprint('a more casual greeting')\n```\n" * 4),
                      ("user", "I have these files"), ("assistant", "Ok, any changes I propose will be to those files.")]  # fmt: skip
            sent = [Turn(role, text) for role, text in canned] + sent
        return sent

    # --- the conversation ---------------------------------------------------------------------------------------------

    def reply(self, tools: tuple[str, ...]) -> Reply:
        rng = self.write.random
        calls = [self.write.call(tools) for _ in range(rng.choice((1, 1, 1, 2, 3)))] if tools and rng.random() < 0.6 else []
        text = (
            ""
            if calls and rng.random() < 0.5
            else rng.choice(_SHARED_ANSWERS)
            if rng.random() < 0.15
            else self.write.paragraphs()
        )
        thinking = self.write.words(5, 40) if rng.random() < 0.4 else ""
        return Reply(text, thinking, calls, True, f"resp_{self.write.number()}")

    def take(self, history: list[Turn], reply: Reply, *, main: bool = True) -> None:
        text = reply.text.rstrip() if self.write.random.random() < 0.3 else reply.text
        history.append(Turn("assistant", text, reply.thinking, list(reply.calls)))
        if main:
            self.responses.append((len(history), reply.response_id))

    def results(self, history: list[Turn], calls: Iterable[Call], texts: dict[str, str] | None = None) -> None:
        for call in calls:
            text = (texts or {}).get(call.id) or self.write.result()
            history.append(Turn("tool", text, call_id=call.id, tool=call.name, failed=text == ""))

    def opening(self) -> str:
        rng = self.write.random
        return rng.choice(_SHARED_OPENINGS) if rng.random() < self.habits.shared_openings else self.write.words(6, 40)

    def line(
        self, history: list[Turn], turns: int, *, line: str = "main", agent: str | None = None, system: str | None = None
    ) -> Conversation:
        """Go on for some turns. `history` ends with what the model is to answer."""
        habits, rng = self.habits, self.write.random
        kind = "start" if line in ("main", "subagent") and len(history) == 1 else "next"
        if line == "fork":
            kind, line = "fork", "main"
        for turn in range(turns):
            reply = self.reply(habits.tools)
            if agent is None and line == "main" and any(map(_spawns, habits.tools)) and rng.random() < habits.subagent:
                yield from self._subagents(history, kind, system)
                kind = "next"
                continue
            while rng.random() < habits.retry:
                yield self.ask(history, replace(reply, ok=False, text=reply.text[:9], calls=[]), kind=kind, line=line,
                               agent=agent, system=system)  # fmt: skip
                kind = "retry"
            yield self.ask(history, reply, kind=kind, line=line, agent=agent, system=system)
            kind = "next"
            if not reply.calls and reply.text and rng.random() < habits.regenerate and turn:
                reply = self.reply(())
                yield self.ask(history, reply, kind="retry", line=line, agent=agent, system=system)
            before = len(history)
            self.take(history, reply, main=line == "main")
            if reply.calls:
                self.results(history, reply.calls)
            else:
                history.append(Turn("user", self.write.words(3, 30)))
            if line == "main" and agent is None and turn > 1 and rng.random() < habits.fork:
                users = [i for i, old in enumerate(history[:before]) if old.role == "user" and i > 0]
                if users:
                    at = rng.choice(users[-3:])
                    history[at:] = [Turn("user", self.write.words(3, 30))]
                    self.responses = [known for known in self.responses if known[0] <= at]
                    kind = "fork"
            if line == "main" and agent is None and turn > 3 and rng.random() < habits.compaction:
                yield from self._compact(history, system)
                kind = "compaction"

    def _subagents(self, history: list[Turn], kind: str, system: str | None) -> Conversation:
        tool = next(tool for tool in self.habits.tools if _spawns(tool))
        rng = self.write.random
        calls = [
            Call(
                f"call_{rng.getrandbits(32):08x}",
                tool,
                {"description": self.write.words(2, 3), "prompt": self.write.words(9, 30)},
            )
            for _ in range(rng.choice((1, 1, 2)))
        ]
        reply = Reply("", "", calls, True, f"resp_{self.write.number()}")
        yield self.ask(history, reply, kind=kind, system=system)
        self.take(history, reply)
        lines: list[Conversation] = []
        for call in calls:
            agent = f"{rng.getrandbits(32):08x}"
            started = [Turn("user", str(call.arguments["prompt"]))]
            role = "You are a sub-agent. Explore and report."
            lines.append(self.line(started, rng.randint(1, 4), line="subagent", agent=agent, system=role))
        yield Spawn(lines)
        self.results(history, calls, {call.id: self.write.paragraphs() for call in calls})

    def _compact(self, history: list[Turn], system: str | None) -> Conversation:
        """Three ways clients have: a summary instead of everything, a summary and the last messages, only the last ones."""
        rng = self.write.random
        way = rng.choice(("summary", "summary and tail", "tail"))
        # the tail begins at a user's words, so that no result stands without its call
        cut = max((i for i, turn in enumerate(history) if turn.role == "user" and i <= len(history) - 4), default=0)
        tail = history[cut:]
        if way == "tail":
            if cut and sum(turn.role == "assistant" for turn in tail) >= 2:
                history[:] = tail
                self.responses = []
            return
        while history and history[-1].role == "tool":
            last = self.reply(())
            yield self.ask(history, last, kind="next", system=system)
            self.take(history, last)
        summary = Reply("\n".join(self.write.words(10, 20) for _ in range(6)), "", [], True, f"resp_{self.write.number()}")
        question = Turn("user", "Summarise the conversation so far so that work can go on from the summary alone.")
        yield self.ask([*history, question], summary, kind="next", system=system)
        opening = Turn("user", f"This session goes on from an earlier conversation. Its summary:\n{summary.text}\nPlease go on.")
        history[:] = [opening, *(tail if way == "summary and tail" and tail and tail[0].role == "user" else [])]
        if history[-1].role == "assistant":
            history.append(Turn("user", self.write.words(3, 9)))
        self.responses = []

    def title(self, first: str) -> Conversation:
        reply = Reply(self.write.words(3, 6), "", [], True, f"resp_{self.write.number()}")
        yield self.ask([Turn("user", f"Write a short title for this conversation:\n\n{first}")], reply, kind="side", line="side",
                       system="You name conversations. Answer with the title only.", tools=())  # fmt: skip

    def run(self) -> Conversation:
        rng = self.write.random
        if self.habits.dialect == "openai-completions":
            yield from self._completions()
            return
        first = self.opening()
        # No client without ids is asked to be found by a greeting: nobody could tell whose title "hi" becomes.
        named = self.habits.session_id is not None or first not in _SHARED_OPENINGS
        if self.habits.side_calls and named and rng.random() < 0.3:
            yield from self.title(first)
            yield from self.line([Turn("user", first)], rng.randint(3, 25))
        else:
            opening = [Turn("user", first)]
            yield from self.line(opening, rng.randint(1, 3))
            if self.habits.side_calls and named:
                yield from self.title(first)
            yield from self.line(opening, rng.randint(0, 20))

    def _completions(self) -> Conversation:
        text = self.write.words(10, 30)
        for turn in range(self.write.random.randint(1, 12)):
            reply = Reply(self.write.paragraphs(), "", [], True)
            yield Ask(self.session, "main", "next" if turn else "start", "openai-completions", self.habits.name,
                      self.habits.user_agent, [], (), reply, {}, None, text, self.connection)  # fmt: skip
            text += reply.text + "\n" + self.write.words(5, 20) + "\n"


# --- many at once -----------------------------------------------------------------------------------------------------


@dataclass
class Happening:
    """Either an exchange opens (`opens`), or it closes."""

    t_ns: int
    number: int
    ask: Ask
    opens: bool


def mixture(
    seed: int, *, at_once: int = 20, conversations: int = 60, clients: tuple[Habits, ...] = CLIENTS
) -> Iterator[Happening]:
    """The traffic of `conversations`, `at_once` of them at any time, in the order of time."""
    writer = Writer(seed)
    rng = writer.random
    heap: list[tuple[int, int, Any]] = []
    tie = 0
    waiting = iter(range(conversations))

    def start(t_ns: int) -> None:
        number = next(waiting, None)
        if number is None:
            return
        client = Client(rng.choice(clients), writer, number, rng.randint(1, at_once * 2))
        push(t_ns, ("go", client.run(), lambda end: start(end + rng.randint(1, 10**9))))

    def push(t_ns: int, what: Any) -> None:
        nonlocal tie
        tie += 1
        heapq.heappush(heap, (t_ns, tie, what))

    def gap(low: float, high: float) -> int:
        return round(rng.uniform(low, high) * 1e9)

    for _ in range(at_once):
        start(10**12 + gap(0, 5))
    exchange = 0
    while heap:
        t_ns, _, (what, line, then) = heapq.heappop(heap)
        if what == "close":
            number, ask, conversation, done = line
            yield Happening(t_ns, number, ask, False)
            push(t_ns + gap(0.01, 20), ("go", conversation, done))
            continue
        step = next(line, None)
        if step is None:
            then(t_ns)
        elif isinstance(step, Spawn):
            left = [len(step.lines)]

            def ended(end: int, left: list[int] = left, line: Any = line, then: Any = then) -> None:
                left[0] -= 1
                if not left[0]:
                    push(end + gap(0.001, 1), ("go", line, then))

            for child in step.lines:
                push(t_ns + gap(0.001, 0.5), ("go", child, ended))
        else:
            exchange += 1
            yield Happening(t_ns, exchange, step, True)
            push(t_ns + gap(0.2, 30), ("close", (exchange, step, line, then), None))


# --- on the wire ------------------------------------------------------------------------------------------------------


def arguments_text(call: Call) -> str:
    return json.dumps(call.arguments)


def encode(ask: Ask) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of the request, as a client of its dialect sends it."""
    body: dict[str, Any] = {"model": "m", "stream": True}
    headers = {"Content-Type": "application/json", "User-Agent": ask.user_agent, **ask.hints}
    if ask.dialect == "openai-completions":
        return "/v1/completions", headers, json.dumps(body | {"prompt": ask.prompt}).encode()
    path = {
        "ollama": "/api/chat",
        "openai-chat": "/v1/chat/completions",
        "openai-responses": "/v1/responses",
        "anthropic": "/v1/messages",
    }[ask.dialect]
    write = {"ollama": _native, "openai-chat": _chat, "openai-responses": _responses, "anthropic": _anthropic}[ask.dialect]
    body |= write(ask)
    return path, headers, json.dumps(body).encode()


def _function(name: str) -> dict[str, Any]:
    return {"name": name, "description": f"Does {name}.", "parameters": {"type": "object", "properties": {}}}


def _native(ask: Ask) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in ask.history:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.thinking:
            message["thinking"] = turn.thinking
        if turn.calls:
            message["tool_calls"] = [{"function": {"name": call.name, "arguments": call.arguments}} for call in turn.calls]
        if turn.role == "tool":
            message["tool_name"] = turn.tool
        messages.append(message)
    tools = [{"type": "function", "function": _function(name)} for name in ask.tools]
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _chat(ask: Ask) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in ask.history:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text or None}
        if turn.thinking:
            message["reasoning"] = turn.thinking
        if turn.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments_text(call)}}
                for call in turn.calls
            ]
        if turn.role == "tool":
            message |= {"tool_call_id": turn.call_id, "content": turn.text}
        messages.append(message)
    tools = [{"type": "function", "function": _function(name)} for name in ask.tools]
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _responses(ask: Ask) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    system = None
    for turn in ask.history:
        if turn.role == "system":
            system = turn.text
        elif turn.role == "tool":
            items.append({"type": "function_call_output", "call_id": turn.call_id, "output": turn.text})
        else:
            if turn.thinking:
                items.append({"type": "reasoning", "summary": [{"type": "summary_text", "text": turn.thinking}]})
            if turn.text:
                kind = "output_text" if turn.role == "assistant" else "input_text"
                items.append({"type": "message", "role": turn.role, "content": [{"type": kind, "text": turn.text}]})
            items += [
                {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments_text(call)}
                for call in turn.calls
            ]
    tools = [{"type": "function", **_function(name)} for name in ask.tools]
    body: dict[str, Any] = {"input": items, **({"tools": tools} if tools else {})}
    if system is not None:
        body["instructions"] = system
    if ask.previous_response_id is not None:
        body["previous_response_id"] = ask.previous_response_id
    return body


def _anthropic(ask: Ask) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    system = None
    for turn in ask.history:
        if turn.role == "system":
            system = [{"type": "text", "text": turn.text, "cache_control": {"type": "ephemeral"}}]
            continue
        blocks: list[dict[str, Any]] = []
        if turn.role == "tool":
            blocks.append(
                {"type": "tool_result", "tool_use_id": turn.call_id, "content": turn.text, "is_error": bool(turn.failed)}
            )
        if turn.thinking:
            blocks.append({"type": "thinking", "thinking": turn.thinking, "signature": ""})
        if turn.text and turn.role != "tool":
            blocks.append({"type": "text", "text": turn.text})
        blocks += [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in turn.calls]
        role = "user" if turn.role == "tool" else turn.role
        if messages and messages[-1]["role"] == role == "user" and turn.role == "tool":
            messages[-1]["content"] += blocks  # results of calls made at once come in one message
        else:
            messages.append({"role": role, "content": blocks or [{"type": "text", "text": ""}]})
    tools = [{"name": n, "description": f"Does {n}.", "input_schema": {"type": "object", "properties": {}}} for n in ask.tools]
    return {
        "messages": messages,
        "max_tokens": 999,
        **({"system": system} if system else {}),
        **({"tools": tools} if tools else {}),
    }
