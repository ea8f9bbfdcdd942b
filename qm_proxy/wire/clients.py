"""Who is asking, and in which session: from headers and request body, by what real clients were seen to send.

Rules that hold here:

- A name is given only on evidence; several tools share one library (LiteLLM, the OpenAI SDK), and then the library is named
  unless the request itself shows the tool. `unknown` is an honest answer.
- Hints correlate, they authorise nothing: anyone can send any of them. Values longer than 256 characters or with control
  characters are dropped. What names a person (`user`, account ids) is not a hint and is not kept.

Sources: captures of real clients, the tools' own sources for those not captured (header builders of Cline, Roo Code, Qwen
Code, Crush, Codex, Zed, Goose, ollama-js), Ollama `api/client.go`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from qm_proxy.events import Asked
from qm_proxy.wire.http import Headers

__all__ = ["BODY_HINTS", "HEADER_HINTS", "PROBE_AGENT", "ClientSeen", "recognise"]

PROBE_AGENT = "qm-probe/"
"""How our own probes sign their requests."""

_MAX_HINT = 256

HEADER_HINTS = (
    "x-claude-code-session-id",
    "x-claude-code-agent-id",
    "x-claude-code-parent-agent-id",
    "session-id",  # Codex
    "session_id",  # Codex before 0.70, pi
    "conversation_id",  # Codex before 0.50
    "thread-id",  # Codex sub-agents
    "x-opencode-session",
    "x-session-id",  # opencode, Amp
    "x-session-affinity",  # opencode to servers it does not know
    "x-parent-session-id",
    "x-task-id",  # Cline
    "x-amp-thread-id",
    "x-qwen-code-session-id",
    "x-conversation-id",
)
"""Headers that name a session, most trusted first. A hint's key is the header's name in lower case."""

BODY_HINTS = (
    "metadata.user_id",
    "metadata.session_id",
    "prompt_cache_key",
    "conversation",
    "session_id",
    "client_metadata.session_id",
)
"""The same in the body; `metadata.user_id` holds only the session part of what Claude Code sends there."""

_AGENTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"^qm-probe/", "qm-probe"),
        (r"^claude-(cli|code)/", "claude-code"),
        (r"^codex([_ -]|/)", "codex"),
        (r"^opencode", "opencode"),
        (r"^aider/", "aider"),
        (r"^qwen-?code/", "qwen-code"),
        (r"^gemini-?cli/", "gemini-cli"),
        (r"^cline/", "cline"),
        (r"^roo-?code/", "roo-code"),
        (r"^kilo-?code/", "kilo-code"),
        (r"^continue([-/]|\b)", "continue"),
        (r"^zed/", "zed"),
        (r"^githubcopilotchat/|^vscode/|^visual studio code/", "vscode"),
        (r"^copilot(-cli)?/|^github-?copilot(-cli)?/", "copilot-cli"),
        (r"^charm-crush/|^crush/", "crush"),
        (r"^factory-cli/", "droid"),
        (r"^goose/", "goose"),
        (r"^kimi(-?cli)?/", "kimi"),
        (r"^openhands", "openhands"),
        (r"^(oh-my-)?pi(-coding-agent)?/", "pi"),
        (r"^open-?webui", "open-webui"),
        (r"^cursor/", "cursor"),
        (r"^ollama-python/", "ollama-python"),
        (r"^ollama-js/", "ollama-js"),
        (r"^ollama/", "ollama-cli"),
        (r"^litellm/", "litellm"),
        (r"^(async)?openai/python", "openai-python"),
        (r"^(async)?anthropic/python", "anthropic-python"),
        (r"^openai/js", "openai-js"),
        (r"^anthropic/js", "anthropic-js"),
        (r"^(async)?(openai|anthropic)/", "openai-sdk"),
        (r"^ai-sdk/|^ai/\d", "ai-sdk"),
        (r"^langchain", "langchain"),
        (r"^curl/", "curl"),
        (r"^python-requests/|^python-httpx/|^python/\S+ aiohttp/|^python-urllib", "python"),
        (r"^go-http-client/", "go"),
        (r"^(node|undici|axios|node-fetch)\b", "node"),
        (r"^bun/", "bun"),
        (r"^deno/", "deno"),
        (r"^mozilla/", "browser"),
    )
)
_LIBRARIES = frozenset({"litellm", "openai-python", "python", "unknown"})
"""What may be in front of a tool that only its request's own words show."""

_TITLES = {
    "cline": "cline",
    "roo code": "roo-code",
    "kilo code": "kilo-code",
    "opencode": "opencode",
    "aider": "aider",
    "zed": "zed",
}
_AIDER_REPLIES = ("Ok, any changes I propose will be to those files.", "Ok, I will use these files as references.")
"""What aider itself puts into its assistant's mouth when it adds files to a chat; it reaches Ollama through LiteLLM."""
_AIDER_SYSTEM = "Act as an expert software developer."


@dataclass(slots=True)
class ClientSeen:
    """`client` is CONTRACT's word; `hints` are session ids by header or body name (see HEADER_HINTS, BODY_HINTS)."""

    client: str
    user_agent: str | None
    origin: Literal["client", "probe"]
    hints: dict[str, str] = field(default_factory=dict)


def recognise(headers: Headers, asked: Asked | None) -> ClientSeen:
    """Name the client of one request. `asked` None: its body was not read. Never raises."""
    seen: dict[str, str] = {}
    for name, value in headers:
        key = name.decode("latin-1").lower()
        if key not in seen:
            seen[key] = value.decode("utf-8", "replace").strip()
    agent = seen.get("user-agent")
    hints = {name: seen[name] for name in HEADER_HINTS if name in seen and _sound(seen[name])}
    if asked is not None and asked.hints:
        hints |= {name: value for name, value in asked.hints.items() if _sound(value)}
    probe = agent is not None and agent.startswith(PROBE_AGENT)
    return ClientSeen(
        client=_client(agent or "", seen, asked),
        user_agent=agent[:_MAX_HINT] if agent else None,
        origin="probe" if probe else "client",
        hints=hints,
    )


def _client(agent: str, headers: dict[str, str], asked: Asked | None) -> str:
    if "x-claude-code-session-id" in headers:
        return "claude-code"
    if headers.get("originator", "").lower().startswith("codex"):
        return "codex"
    name = next((name for pattern, name in _AGENTS if pattern.search(agent)), "unknown")
    if name in _LIBRARIES or name in ("openai-js", "anthropic-js", "node", "ollama-js", "ai-sdk"):
        title = headers.get("x-title", "").lower()
        if title in _TITLES:
            return _TITLES[title]
    if name in _LIBRARIES and asked is not None and _is_aider(asked):
        return "aider"
    return name


def _is_aider(asked: Asked) -> bool:
    return any(
        message.text.startswith(_AIDER_REPLIES if message.role == "assistant" else _AIDER_SYSTEM)
        for message in asked.messages[:16]
        if message.role in ("assistant", "system")
    )


def _sound(value: str) -> bool:
    return 0 < len(value) <= _MAX_HINT and value.isprintable()
