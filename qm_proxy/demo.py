"""`qm-proxy demo`: the product at work on a simulated Ollama whose truth is known; ends with planted beside found.

Three processes of a user's life: the simulated Ollama (its own process), `serve` in front of it, and scripted editors and agents
(here) whose requests have the shape of real ones. Each asks through the proxy; a twin asks the simulated Ollama directly, and
its own errors are the yardstick: a measurement is good when it errs by no more than the direct client did, plus 1 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from qm_proxy.cli import plan_of
from qm_proxy.errors import QmError
from qm_proxy.servant import Servant, ask
from qm_proxy.settings import load
from qm_proxy.tasks import spawn
from qm_proxy.terminal import seconds

__all__ = ["Row", "run_demo"]

MARGIN_S = 0.001
WARM_UP = "demo-warm-up"


@dataclass(frozen=True, slots=True)
class Scene:
    """One scripted request: who sends it, where, and what it asks. `model` is a persona of the simulated Ollama."""

    name: str
    agent: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    leave_after: int | None = None  # records after which the client leaves
    expects: str | None = None  # the kind of finding that the simulated model's fault must bring
    turns: int = 1  # an agent: so many requests, each with the results of the calls before


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the closing table: CONTRACT's `{name, planted, found, error, unit, within}`."""

    name: str
    planted: float | str | None
    found: float | str | None
    error: float | None
    unit: str
    within: bool
    tolerance: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "planted": self.planted,
            "found": self.found,
            "error": self.error,
            "unit": self.unit,
            "within": self.within,
        }


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "Read a file of the workspace",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Run a command",
            "parameters": {
                "type": "object",
                "properties": {"command": {"type": "string"}, "timeout": {"type": "integer", "minimum": 1}},
                "required": ["command"],
            },
        },
    },
]
_SYSTEM = "You are a careful coding assistant. Answer briefly, and call a tool when one is needed. " * 6


def _native(model: str, text: str, **options: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}],
        "options": {"num_predict": 60, **options},
    }


def _openai(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 60,
        **more,
    }


def _anthropic(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": 60,
        "stream": True,
        "system": [{"type": "text", "text": _SYSTEM}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}],
        **more,
    }


def _responses(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "instructions": _SYSTEM,
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}],
        "stream": True,
        "max_output_tokens": 60,
        "store": False,
        **more,
    }


OPENCODE = "opencode/1.18.33 ai-sdk/provider-utils/4.0.23 runtime/bun/1.3.14"
CLAUDE = "claude-cli/2.1.280 (external, cli)"
CODEX = "codex_cli_rs/0.98.0 (Debian 12; x86_64)"
AIDER = "litellm/1.81.0"


def scenes(round_n: int) -> list[Scene]:
    """The traffic of one round. The words change from round to round, so that no prompt is cached whole."""
    ask = f"(round {round_n}) explain how the parser keeps a record that is cut inside a character"
    return [
        Scene("native chat", AIDER, "/api/chat", _native("steady", ask)),
        Scene(
            "native generate", "curl/8.5.0", "/api/generate", {"model": "steady", "prompt": ask, "options": {"num_predict": 40}}
        ),
        Scene("OpenAI chat", OPENCODE, "/v1/chat/completions", _openai("steady", ask), {"x-session-id": "ses_demo1"}),
        Scene(
            "OpenAI completions",
            "Continue/1.3",
            "/v1/completions",
            {"model": "steady", "prompt": f"def f{round_n}(", "stream": True, "max_tokens": 30},
        ),
        Scene("OpenAI Responses", CODEX, "/v1/responses", _responses("steady", ask), {"session_id": "0199-demo-codex"}),
        Scene("Anthropic messages", CLAUDE, "/v1/messages?beta=true", _anthropic("steady", ask)),
        Scene("a model with stalls", OPENCODE, "/v1/chat/completions", _openai("staller", ask, max_tokens=90)),
        Scene("a jittery model", "ollama-python/0.6.3", "/api/chat", _native("jittery", ask)),
        Scene("a thinking model", CLAUDE, "/v1/messages", _anthropic("thinker", ask, max_tokens=120)),
        Scene("a tool call", AIDER, "/api/chat", _native("tool-user", "read the file notes.txt") | {"tools": TOOLS}),
        Scene("a client that leaves", "Continue/1.3", "/api/generate", {"model": "steady", "prompt": ask}, leave_after=12),
    ]


def faults() -> list[Scene]:
    """What goes wrong with local models, planted once: each with the kind of finding that must name it."""
    long = "word " * 3000
    return [
        Scene("a stream that loops", OPENCODE, "/api/chat", _native("looper", "go on", num_predict=400), expects="loop.token"),
        Scene(
            "an agent that repeats one call", OPENCODE, "/api/chat", _agent("agent-looper"), expects="loop.trajectory", turns=6
        ),
        Scene("an invented tool", AIDER, "/api/chat", _tooled("bad-tools", "wrong-0"), expects="tool."),
        Scene("a prompt over the window", CLAUDE, "/api/chat", _native("short-window", long), expects="context.truncated"),
        Scene("a runner that dies", OPENCODE, "/v1/chat/completions", _openai("mid-crash", "go on"), expects="upstream.aborted"),
        Scene("a stream without its end", AIDER, "/api/chat", _native("no-done", "go on"), expects="upstream.aborted"),
    ]


def _tooled(model: str, text: str) -> dict[str, Any]:
    return _native(model, text) | {"tools": TOOLS}


def _agent(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "fix the failing test"}], "tools": TOOLS, "stream": False}


# --- the clients ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Heard:
    """What one client saw: ns stamps of its request and of each read that brought records."""

    label: str
    sent_ns: int
    reads_ns: list[int] = field(default_factory=list)
    body: bytes = b""
    left: bool = False


async def send(base: str, scene: Scene, label: str) -> Heard:
    """Send `scene` and read its answer to the end; times are taken when the bytes were read."""
    url = urlsplit(base)
    body = json.dumps(scene.body).encode()
    headers = {
        "Host": url.netloc,
        "User-Agent": f"{scene.agent} {label}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Sim-Label": label,
    } | scene.headers
    head = f"POST {scene.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    heard = Heard(label, time.monotonic_ns())
    try:
        writer.write(head.encode() + body)
        while data := await reader.read(65536):
            heard.reads_ns.append(time.monotonic_ns())
            heard.body += data
            if scene.leave_after is not None and len(heard.reads_ns) >= scene.leave_after:
                heard.left = True
                break
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return heard


async def work(base: str, scene: Scene, label: str) -> list[Heard]:
    """An agent's session: ask, do what the model calls (every result is the same failure), ask again."""
    messages = list(scene.body["messages"])
    heard: list[Heard] = []
    for turn in range(scene.turns):
        step = replace(scene, body=scene.body | {"messages": messages})
        one = await send(base, step, f"{label}.{turn}")
        heard.append(one)
        answer = json.loads(one.body.partition(b"\r\n\r\n")[2])["message"]
        calls = answer.get("tool_calls") or []
        if not calls:
            break
        results = [{"role": "tool", "tool_name": c["function"]["name"], "content": "1 failed: expected 4, got 5"} for c in calls]
        messages = [*messages, answer, *results]
    return heard


# --- planted beside found ---------------------------------------------------------------------------------------------


def payload_times(truth: dict[str, Any]) -> list[int]:
    """When the simulated Ollama wrote each record that carries payload, ns."""
    times: list[int] = []
    kinds = iter(truth["kinds"])
    for at, records in zip(truth["written_ns"], truth["written_records"], strict=True):
        for _ in range(records):
            if next(kinds, "") in ("text", "thinking", "tool"):
                times.append(at)
    return times


@dataclass(slots=True)
class Pair:
    """One exchange: what the simulated Ollama did, what the proxy measured, and its chunk times (ns since the request)."""

    truth: dict[str, Any]
    found: dict[str, Any]
    arrivals: list[int]


class Table:
    """Collects errors quantity by quantity; a row says the worst one and whether it is within the yardstick."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def series(
        self, name: str, planted: list[float], found: list[float | None], unit: str, tolerance: float, quantile: float = 0.99
    ) -> None:
        """One row for many pairs: their medians, and a high quantile of the error."""
        pairs = [(p, f) for p, f in zip(planted, found, strict=True) if f is not None]
        missing = len(planted) - len(pairs)
        if not pairs:
            self.rows.append(Row(f"{name} (n=0)", None, None, None, unit, False, tolerance))
            return
        errors = sorted(abs(f - p) for p, f in pairs)
        worst = errors[min(len(errors) - 1, int(len(errors) * quantile))]
        self.rows.append(
            Row(
                f"{name} (n={len(pairs)}{f', {missing} missing' if missing else ''})",
                statistics.median(p for p, _ in pairs),
                statistics.median(f for _, f in pairs),
                worst,
                unit,
                worst <= tolerance and not missing,
                tolerance,
            )
        )

    def exact(self, name: str, planted: float | str, found: float | str | None, unit: str = "") -> None:
        error = None
        if isinstance(planted, (int, float)) and isinstance(found, (int, float)):
            error = abs(found - planted)
        self.rows.append(Row(name, planted, found, error, unit, found == planted, 0.0 if error is not None else None))


def compare(pairs: list[Pair], direct: list[tuple[dict[str, Any], Heard]]) -> list[Row]:
    """The table: every timing of every stream, each judged against what the direct clients achieved in this run."""
    ttft_yard, gap_yard = _yardstick(direct)
    table = Table()
    streams = [p for p in pairs if p.arrivals and payload_times(p.truth) and p.truth["ending"] == "complete"]
    table.series(
        "time to first token, p90 of the error",
        [(payload_times(p.truth)[0] - p.truth["received_ns"]) / 1e6 for p in streams],
        [_ms(p.found["ttft_s"]) for p in streams],
        "ms",
        (ttft_yard + MARGIN_S) * 1e3,
        0.9,
    )
    planted_gaps: list[float] = []
    found_gaps: list[float | None] = []
    for p in streams:
        times = payload_times(p.truth)
        if len(times) == len(p.arrivals):
            planted_gaps += [(b - a) / 1e6 for a, b in pairwise(times)]
            found_gaps += [(b - a) / 1e6 for a, b in pairwise(p.arrivals)]
    table.series("inter-token gap, p99 of the error", planted_gaps, found_gaps, "ms", (gap_yard + MARGIN_S) * 1e3)
    table.exact("chunks", sum(len(payload_times(p.truth)) for p in streams), sum(p.found["chunks"] for p in streams))
    counted = [p for p in streams if p.found["output_tokens"] is not None]
    table.exact("output tokens", sum(p.truth["sampled_tokens"] for p in counted), sum(p.found["output_tokens"] for p in counted))
    table.exact("prompt tokens", sum(p.truth["prompt_tokens"] for p in counted), sum(p.found["input_tokens"] for p in counted))
    native = [p for p in streams if p.found["dialect"] == "ollama"]
    for phase in ("load", "prefill", "decode"):
        known = [p for p in native if p.truth[f"{phase}_ns"] and p.found[f"{phase}_s"] is not None]
        table.series(
            f"{phase} (native)",
            [p.truth[f"{phase}_ns"] / 1e6 for p in known],
            [_ms(p.found[f"{phase}_s"]) for p in known],
            "ms",
            max(MARGIN_S * 1e3, 0.02 * max((p.truth[f"{phase}_ns"] / 1e6 for p in known), default=0)),
        )
    stalls = [(p, index, ns) for p in streams for index, ns in p.truth["stalls"]]
    found_stalls: list[float | None] = []
    for p, index, _ in stalls:
        gaps = [b - a for a, b in pairwise(p.arrivals)]
        found_stalls.append(gaps[index - 1] / 1e6 if 0 < index <= len(gaps) else None)
    if stalls:
        every = [payload_times(p.truth) for p, _, _ in stalls]
        planted = [(t[i] - t[i - 1]) / 1e6 for t, (_, i, _) in zip(every, stalls, strict=True) if 0 < i < len(t)]
        table.series("stalls at their token", planted, found_stalls[: len(planted)], "ms", (gap_yard + MARGIN_S) * 1e3)
    calls = [p for p in streams if p.truth["tool_calls"]]
    planted_names = sorted(c["name"] for p in calls for c in p.truth["tool_calls"])
    table.exact("tool calls", " ".join(planted_names), " ".join(sorted(c["name"] for p in calls for c in p.found["tool_calls"])))
    left = [p for p in pairs if p.truth["ending"] == "client_left"]
    table.exact("clients that left", len(left), sum(p.found["ending"] == "client_disconnect" for p in left))
    dialects = {p.found["dialect"] for p in streams}
    table.exact("dialects understood", 5, len(dialects - {"other"}))
    sums = [p for p in pairs if _parts(p.found) is not None]
    table.series(
        "phases add up to the total",
        [p.found["total_s"] * 1e3 for p in sums],
        [(_parts(p.found) or 0) * 1e3 for p in sums],
        "ms",
        MARGIN_S * 1e3,
    )
    return table.rows


def _yardstick(direct: list[tuple[dict[str, Any], Heard]]) -> tuple[float, float]:
    """(worst TTFT error, worst gap error) of the direct clients, in seconds."""
    ttft, gaps = [0.0], [0.0]
    for truth, heard in direct:
        times = sorted(set(payload_times(truth)))
        if truth["ending"] != "complete" or not times or not heard.reads_ns:
            continue
        ttft.append(abs((heard.reads_ns[0] - heard.sent_ns) - (times[0] - truth["received_ns"])) / 1e9)
        if len(times) <= len(heard.reads_ns):
            seen = heard.reads_ns[: len(times)]
            gaps += [abs((b - a) - (d - c)) / 1e9 for (a, b), (c, d) in zip(pairwise(seen), pairwise(times), strict=True)]
    return max(ttft), max(gaps)


def _ms(value: float | None) -> float | None:
    return None if value is None else value * 1e3


def _parts(found: dict[str, Any]) -> float | None:
    names = ("queue_s", "load_s", "prefill_s", "decode_s", "client_wait_s", "unexplained_s")
    parts = [found[name] for name in names if found[name] is not None]
    return sum(parts) if parts else None


# --- the run ----------------------------------------------------------------------------------------------------------


class Simulator:
    """`qm-proxy sim` as a process of its own."""

    def __init__(self, seed: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qm_proxy", "sim", "--listen", "127.0.0.1:0", "--seed", str(seed)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.url = next((word.rstrip(",") for word in words if word.startswith("http://")), "")
        if not self.url:
            raise QmError("The simulated Ollama did not start.")

    def truths(self) -> list[dict[str, Any]]:
        found = ask(self.url, "/sim/truth?limit=20000")
        rows: list[dict[str, Any]] = found["requests"] if isinstance(found, dict) else found
        return rows

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def run_demo(*, seconds: float | None, listen: str, console: str, db: str | None, seed: int, as_json: bool) -> int:
    """Run till Ctrl-C or `seconds`; print the table; 0 when everything planted was found within tolerance, else 1."""
    with tempfile.TemporaryDirectory(prefix="qm-demo-") as directory:
        simulator = Simulator(seed)
        try:
            flags = {
                "listen": listen,
                "console": console,
                "db": db or str(Path(directory) / "demo.db"),
                "upstream": simulator.url,
            }
            plan = plan_of(load(flags | {"grace": 3.0, "poll": 0.5}), quiet=True)
            with Servant(plan) as servant:
                print(
                    f"qm-proxy ready: proxy {servant.proxy} -> {simulator.url}, console {servant.console or 'off'}",
                    file=sys.stderr if as_json else sys.stdout,
                    flush=True,
                )
                return asyncio.run(_perform(simulator, servant, seconds, as_json))
        finally:
            simulator.close()


async def _perform(simulator: Simulator, servant: Servant, limit_s: float | None, as_json: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if limit_s is not None:
        loop.call_later(limit_s, stop.set)
    screen = None if as_json else Screen(servant)
    follower = spawn(screen.follow(), name="screen") if screen else None
    heard: list[Heard] = []
    straight: list[Heard] = []
    round_n = 0
    planted = faults()
    broken = await asyncio.gather(
        *(work(servant.proxy, scene, f"demo-fault-{n}") for n, scene in enumerate(planted) if scene.turns > 1)
    )
    singles = [(n, scene) for n, scene in enumerate(planted) if scene.turns == 1]
    await asyncio.gather(*(_staggered(send(servant.proxy, s, f"demo-fault-{n}"), 0.1 * n) for n, s in singles))
    labels = {scene.name: [f"demo-fault-{n}"] for n, scene in singles}
    labels |= {scene.name: [h.label for h in one] for scene, one in zip([s for s in planted if s.turns > 1], broken, strict=True)}
    while not stop.is_set():
        label = f"demo-{round_n}"
        batch = scenes(round_n)
        through = [_staggered(send(servant.proxy, scene, f"{label}-{n}"), 0.3 * n) for n, scene in enumerate(batch)]
        whole = [(n, scene) for n, scene in enumerate(batch) if scene.leave_after is None]
        twins = [_staggered(send(simulator.url, scene, f"{label}-{n}-direct"), 0.3 * n + 0.15) for n, scene in whole]
        answers = await asyncio.gather(*through, *twins)
        heard += answers[: len(through)]
        straight += answers[len(through) :]
        round_n += 1
    await asyncio.sleep(0.6)  # what closed last is readable within that
    if follower is not None:
        follower.cancel()
    rows = await asyncio.to_thread(
        _judge, simulator, servant, heard, straight, {s.name: (s.expects or "", labels[s.name]) for s in planted}
    )
    missed = [row for row in rows if not row.within]
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        _show(rows, round_n)
    return 1 if missed else 0


async def _staggered(work: Any, delay_s: float) -> Heard:
    await asyncio.sleep(delay_s)
    heard: Heard = await work
    return heard


def _judge(
    simulator: Simulator, servant: Servant, heard: list[Heard], straight: list[Heard], planted: dict[str, tuple[str, list[str]]]
) -> list[Row]:
    truths = {t["label"]: t for t in simulator.truths() if t["label"]}
    found: dict[str, dict[str, Any]] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = servant.ask("/api/v1/exchanges?limit=500" + (f"&cursor={quote(cursor)}" if cursor else ""))
        found |= {row["user_agent"].rsplit(" ", 1)[-1]: row for row in page["items"] if row["user_agent"]}
        cursor = page["next_cursor"]
    pairs = []
    for one in heard:
        if one.label not in truths or one.label not in found:
            continue
        row = found[one.label]
        arrivals = servant.ask(f"/api/v1/exchanges/{row['id']}/chunks")["arrival_ns"] if row["chunks"] else []
        pairs.append(Pair(truths[one.label], row, arrivals))
    rows = compare(pairs, [(truths[s.label], s) for s in straight if s.label in truths])
    rows.insert(
        0, Row("requests observed", len(heard), len(pairs), abs(len(heard) - len(pairs)), "", len(heard) == len(pairs), 0.0)
    )
    return rows + _faults_found(found, planted) + [_nothing_else(found, planted, pairs)]


def _faults_found(found: dict[str, dict[str, Any]], planted: dict[str, tuple[str, list[str]]]) -> list[Row]:
    """One row for each planted fault: the kind that must name it beside the kinds that were found in its exchanges."""
    rows = []
    for name, (kind, labels) in planted.items():
        kinds = {f["kind"] for label in labels if label in found for f in found[label]["findings"]}
        named = sorted(k for k in kinds if k.startswith(kind))
        rows.append(Row(name, kind.rstrip("."), ", ".join(named) or None, None, "", bool(named)))
    return rows


def _nothing_else(found: dict[str, dict[str, Any]], planted: dict[str, tuple[str, list[str]]], pairs: list[Pair]) -> Row:
    """Findings where nothing was planted. A pause that the stream really had on its way (a busy machine makes them) is counted
    apart: it is no false finding."""
    faulty = {label for _, labels in planted.values() for label in labels}
    of = {p.found["id"]: p for p in pairs}
    false, pauses = 0, 0
    for label, row in found.items():
        for finding in [] if label in faulty else row["findings"]:
            pair = of.get(row["id"])
            paused = finding["kind"] == "stall" and pair is not None and _really_paused(pair)
            pauses += paused and pair is not None and not pair.truth["stalls"]
            false += not paused
    beside = f" (beside {pauses} pauses of this machine)" if pauses else ""
    return Row(f"findings where nothing was planted{beside}", 0, false, false, "", false == 0, 0.0)


def _really_paused(pair: Pair) -> bool:
    """Whether this stream, as written or as it arrived, had a pause of more than twice its usual gap and 10 ms."""
    for times in (payload_times(pair.truth), pair.arrivals):
        gaps = sorted((b - a) / 1e6 for a, b in pairwise(times))
        if gaps and gaps[-1] > 2 * gaps[len(gaps) // 2] + 10:
            return True
    return False


class Screen:
    """One line for each answer as it ends, from the console's event feed: what a user of `serve` sees."""

    def __init__(self, servant: Servant) -> None:
        self.servant = servant

    async def follow(self) -> None:
        if self.servant.console is None:
            return
        url = urlsplit(self.servant.console)
        reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=2**22)
        writer.write(f"GET /api/v1/events HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    with contextlib.suppress(ValueError):
                        self._say(json.loads(line[6:]))
        finally:
            writer.close()

    @staticmethod
    def _say(event: dict[str, Any]) -> None:
        if "ending" in event and event.get("operation"):
            rate = f"{event['tokens_per_s']:.1f}" if event["tokens_per_s"] is not None else "–"
            print(
                f"  {event['client']:<12} {event['model'] or '':<12} {event['dialect']:<18} ttft {seconds(event['ttft_s']):>7}"
                f"  {rate:>6} tok/s  {event['output_tokens'] if event['output_tokens'] is not None else '–':>4} tokens"
                f"  {seconds(event['total_s']):>7}  {event['ending']}",
                flush=True,
            )
            if event["slow_because"]:
                print(f"               {event['slow_because']}", flush=True)
        elif "severity" in event and "kind" in event:
            print(f"  ! {event['kind']}: {event['summary']}", flush=True)


def _show(rows: list[Row], rounds: int) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    table = RichTable(title=f"planted beside found, {rounds} rounds", title_justify="left", header_style="bold")
    for name, side in (
        ("what", "left"),
        ("planted", "right"),
        ("found", "right"),
        ("error", "right"),
        ("allowed", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows:
        mark = "[green]✓[/]" if row.within else "[red]✗ missed[/]"
        table.add_row(
            row.name,
            _text(row.planted, row.unit),
            _text(row.found, row.unit),
            _text(row.error, row.unit),
            _text(row.tolerance, row.unit),
            mark,
        )
    screen = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "110")))
    screen.print(table)
    missed = sum(not row.within for row in rows)
    screen.print(
        "[green]Everything planted was found within what a direct client achieved in this run, plus 1 ms.[/]"
        if not missed
        else f"[red]{missed} of {len(rows)} rows missed.[/]"
    )


def _text(value: float | str | None, unit: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value if len(value) < 30 else f"{value[:27]}…"
    return f"{value:g}" if not unit else f"{value:.2f} {unit}"
