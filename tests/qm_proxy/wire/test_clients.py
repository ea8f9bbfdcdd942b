"""Real clients by their headers and bodies; hints bounded and harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import Asked, Message, Nanoseconds
from qm_proxy.wire.clients import recognise
from qm_proxy.wire.http import Headers


def _agent(value: str, *more: tuple[bytes, bytes]) -> Headers:
    return ((b"User-Agent", value.encode()), *more)


def _asked(*messages: Message, hints: dict[str, str] | None = None) -> Asked:
    return Asked(Nanoseconds(0), "ollama", "chat", "m", True, messages=messages, hints=hints)


@pytest.mark.parametrize(
    ("agent", "client"),
    [
        ("claude-cli/2.1.197 (external, sdk-cli)", "claude-code"),
        ("codex_cli_rs/0.72.0 (Ubuntu 22.4.0; x86_64) xterm-256color", "codex"),
        ("codex_vscode/1.0", "codex"),
        ("codex-tui/0.9", "codex"),
        ("opencode/1.18.33 ai-sdk/provider-utils/4.0.23 runtime/bun/1.3.14", "opencode"),
        ("litellm/1.81.10", "litellm"),
        ("QwenCode/0.14.1 (linux; x64)", "qwen-code"),
        ("Cline/3.74.0", "cline"),
        ("RooCode/3.52.1", "roo-code"),
        ("Continue/1.2.8", "continue"),
        ("Zed/0.200.0 (linux; x86_64)", "zed"),
        ("GitHubCopilotChat/0.26.7", "vscode"),
        ("Charm-Crush/v0.51.2 (https://charm.land/crush)", "crush"),
        ("factory-cli/0.232.0", "droid"),
        ("goose/1.45.0", "goose"),
        ("ollama/0.33.0 (amd64 linux) Go/go1.24", "ollama-cli"),
        ("ollama-python/0.6.3 (x86_64 linux) Python/3.11", "ollama-python"),
        ("ollama-js/0.5.18 (x64 linux Node.js/v22)", "ollama-js"),
        ("OpenAI/Python 1.90.0", "openai-python"),
        ("AsyncOpenAI/Python 3.54.0", "openai-python"),
        ("Anthropic/Python 2.12.0", "anthropic-python"),
        ("OpenAI/JS 6.1", "openai-js"),
        ("curl/7.88.1", "curl"),
        ("python-httpx/0.28", "python"),
        ("Bun/1.4.0", "bun"),
        ("Mozilla/5.0 (X11)", "browser"),
        ("made-up/1", "unknown"),
        ("notopencode/1", "unknown"),
        ("", "unknown"),
    ],
)
def test_by_user_agent(agent: str, client: str) -> None:
    seen = recognise(_agent(agent), None)
    assert seen.client == client
    assert seen.origin == "client"


def test_no_user_agent() -> None:
    seen = recognise((), None)
    assert (seen.client, seen.user_agent, seen.hints) == ("unknown", None, {})


def test_our_probe_is_no_client() -> None:
    seen = recognise(_agent("qm-probe/0.1.0 run-7"), None)
    assert (seen.origin, seen.client) == ("probe", "qm-probe")
    assert recognise(_agent("my qm-probe/1"), None).origin == "client"


def test_aider_behind_litellm_is_told_by_its_own_words() -> None:
    """The capture shows only LiteLLM's agent; the reply that aider itself writes for the model gives it away."""
    history = (Message("user", "hi"), Message("assistant", "Ok, any changes I propose will be to those files."))
    assert recognise(_agent("litellm/1.81.10"), _asked(*history)).client == "aider"
    system = Message("system", "Act as an expert software developer.\nAlways use best practices")
    assert recognise(_agent("OpenAI/Python 1.90"), _asked(system)).client == "aider"
    assert (
        recognise(_agent("litellm/1.81.10"), _asked(Message("user", "Act as an expert software developer."))).client == "litellm"
    )
    assert recognise(_agent("opencode/1"), _asked(*history)).client == "opencode"


def test_titles_and_originators() -> None:
    assert recognise(_agent("OpenAI/JS 4.1", (b"X-Title", b"Roo Code")), None).client == "roo-code"
    assert recognise(_agent("whatever", (b"originator", b"codex_cli_rs")), None).client == "codex"
    assert recognise(_agent("", (b"X-Claude-Code-Session-Id", b"058c83e0")), None).client == "claude-code"


def test_hints_of_real_clients() -> None:
    headers = _agent(
        "opencode/1.18.33",
        (b"x-session-affinity", b"ses_df8a"),
        (b"X-Session-Id", b"ses_df8a"),
        (b"Authorization", b"Bearer secret"),
    )
    seen = recognise(headers, _asked(hints={"prompt_cache_key": "k1"}))
    assert seen.hints == {"x-session-id": "ses_df8a", "x-session-affinity": "ses_df8a", "prompt_cache_key": "k1"}


@pytest.mark.parametrize("value", [b"", b"x" * 257, b"a\x00b", b"a\nb"])
def test_unsound_hints_are_dropped(value: bytes) -> None:
    assert recognise(((b"session-id", value),), _asked(hints={"conversation": value.decode()})).hints == {}


def test_the_first_of_two_headers_counts() -> None:
    assert recognise(((b"session-id", b"a"), (b"Session-ID", b"b")), None).hints == {"session-id": "a"}


@given(st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=60)), max_size=8))
def test_never_raises(headers: list[tuple[bytes, bytes]]) -> None:
    recognise(tuple(headers), None)
