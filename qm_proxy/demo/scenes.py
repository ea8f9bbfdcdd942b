"""The traffic of the demo: scripted editors and agents, shaped like real ones, and the faults that are planted.

`model` names a persona of the simulated Ollama (`qm-proxy sim --list`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["HUNG_NEEDS_S", "TOOLS", "Scene", "faults", "scenes"]


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
    variations: tuple[dict[str, Any], ...] = ()  # the same request again, with these options
    aborts: int = 0  # first so many streams that their client leaves
    patience_s: float | None = None  # then the client gives up


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


HUNG_NEEDS_S = 30.0
"""A hung slot is told after 20 s without a byte: a shorter demo does not plant one."""


def faults(limit_s: float | None) -> list[Scene]:
    """What goes wrong with local models, planted once: each with the kind of finding that must name it."""
    long = "word " * 3000
    hung = Scene(
        "a slot that hangs",
        "Continue/1.3",
        "/api/chat",
        _native("hang-prone", "go on"),
        expects="model.hung",
        aborts=7,
        patience_s=24.0,
    )
    always = [
        Scene("a stream that loops", OPENCODE, "/api/chat", _native("looper", "go on", num_predict=400), expects="loop.token"),
        Scene(
            "an agent that repeats one call", OPENCODE, "/api/chat", _agent("agent-looper"), expects="loop.trajectory", turns=6
        ),
        Scene("an invented tool", AIDER, "/api/chat", _tooled("bad-tools", "wrong-0"), expects="tool."),
        Scene("a prompt over the window", CLAUDE, "/api/chat", _native("short-window", long), expects="context.truncated"),
        Scene("a runner that dies", OPENCODE, "/v1/chat/completions", _openai("mid-crash", "go on"), expects="upstream.aborted"),
        Scene("a stream without its end", AIDER, "/api/chat", _native("no-done", "go on"), expects="upstream.aborted"),
        Scene(
            "two windows that take turns",
            OPENCODE,
            "/api/chat",
            _native("heavy-tailed", "go on", num_predict=4),
            expects="model.reload",
            variations=({"num_ctx": 8192}, {"num_ctx": 16384}, {"num_ctx": 8192}),
        ),
    ]
    return always if limit_s is not None and limit_s < HUNG_NEEDS_S else [hung, *always]


def _tooled(model: str, text: str) -> dict[str, Any]:
    return _native(model, text) | {"tools": TOOLS}


def _agent(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "fix the failing test"}], "tools": TOOLS, "stream": False}
