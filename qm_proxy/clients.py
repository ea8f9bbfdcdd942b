"""How each editor and agent is pointed at the proxy and at the MCP server: the lines `clients` prints and `run` applies.

Sources, November 2026. Run with these very lines, the model's through the proxy and the MCP server's to the console: Claude Code
2.1.197, Codex 0.169.0, opencode 1.18.33, Copilot CLI 1.0.102, Qwen Code 0.15.10, Cline's CLI 3.0.65; the model's alone: aider
0.86, Continue's CLI 1.5.47. From documentation only: Zed (ai/mcp, ai/use-a-local-model); VS Code (agent-customization/
language-models, which deprecates its built-in Ollama provider); Roo Code (using-mcp-in-roo); Goose (config-files, extensions);
Cursor (its page on MCP; its backend, not the editor, asks the models, and refuses private addresses); Ollama's own integration
table (cmd/launch) and pages. `<…>` marks what only the user knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CLIENTS", "Client", "environment_for", "find"]


@dataclass(frozen=True, slots=True)
class Client:
    """One tool. `point` and `mcp` make the text from the proxy's and the console's URL (no trailing slash)."""

    name: str
    title: str
    dialect: str
    point: Callable[[str], str]
    mcp: Callable[[str], str] | None = None
    environment: Callable[[str], dict[str, str]] | None = None
    commands: tuple[str, ...] = ()  # executables that `run` recognises


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


def _claude(url: str) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "ollama",
        "ANTHROPIC_API_KEY": "",
        # Claude Code hashes each request into its system prompt unless told not to, which defeats Ollama's prefix cache.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }


def _copilot(url: str) -> dict[str, str]:
    return {
        "COPILOT_PROVIDER_BASE_URL": f"{url}/v1",
        "COPILOT_PROVIDER_API_KEY": "",
        "COPILOT_PROVIDER_WIRE_API": "responses",
    }


def _openai(url: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "ollama"}


def _opencode(url: str) -> dict[str, object]:
    return {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            "ollama": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Ollama",
                "options": {"baseURL": f"{url}/v1"},
                "models": {"<model>": {"name": "<model>"}},
            }
        },
    }


def _vscode(url: str) -> dict[str, object]:
    model = {"id": "<model>", "name": "<model>", "url": f"{url}/v1/chat/completions", "toolCalling": True, "vision": False}
    return {
        "name": "Ollama through qm-proxy",
        "vendor": "customendpoint",
        "apiKey": "ollama",
        "apiType": "chat-completions",
        "models": [model | {"maxInputTokens": 28672, "maxOutputTokens": 4096}],
    }


def _exports(environment: dict[str, str], command: str) -> str:
    return "\n".join(f'export {name}="{value}"' for name, value in environment.items()) + f"\n{command}"


CLIENTS: tuple[Client, ...] = (
    Client(
        "ollama",
        "ollama run, ollama launch, Ollama SDKs",
        "native",
        lambda url: (
            f"OLLAMA_HOST={url} ollama run <model>\nOLLAMA_HOST={url} ollama launch claude   # any tool that launch knows"
        ),
        environment=lambda url: {"OLLAMA_HOST": url},
        commands=("ollama",),
    ),
    Client(
        "claude-code",
        "Claude Code",
        "Anthropic messages",
        lambda url: _exports(_claude(url), "claude --model <model>"),
        lambda url: f"claude mcp add --transport http qm {url}/mcp\n# or over stdio:  claude mcp add qm -- qm-proxy mcp",
        _claude,
        ("claude",),
    ),
    Client(
        "codex",
        "Codex CLI",
        "OpenAI Responses",
        lambda url: (
            "# ~/.codex/config.toml\n"
            'model = "<model>"\nmodel_provider = "qm"\n\n[model_providers.qm]\n'
            f'name = "Ollama through qm-proxy"\nbase_url = "{url}/v1"\nwire_api = "responses"'
        ),
        lambda url: f'# ~/.codex/config.toml\n[mcp_servers.qm]\nurl = "{url}/mcp"',
        lambda url: {"CODEX_OSS_BASE_URL": f"{url}/v1", **_openai(url)},
        ("codex",),
    ),
    Client(
        "opencode",
        "opencode",
        "OpenAI chat",
        lambda url: "# opencode.json\n" + _json(_opencode(url)),
        lambda url: "# opencode.json\n" + _json({"mcp": {"qm": {"type": "remote", "url": f"{url}/mcp", "enabled": True}}}),
        lambda url: {
            "OPENCODE_CONFIG_CONTENT": json.dumps({"provider": {"ollama": {"options": {"baseURL": f"{url}/v1"}}}}),
            "OLLAMA_HOST": url,
        },
        ("opencode",),
    ),
    Client(
        "aider",
        "aider",
        "native",
        lambda url: f"export OLLAMA_API_BASE={url}\naider --model ollama_chat/<model>",
        environment=lambda url: {"OLLAMA_API_BASE": url, "OLLAMA_HOST": url},
        commands=("aider",),
    ),
    Client(
        "continue",
        "Continue (its CLI cn: OpenAI chat)",
        "native",
        lambda url: (
            "# ~/.continue/config.yaml\nname: local\nversion: 1.0.0\nschema: v1\nmodels:\n"
            f"  - name: local\n    provider: ollama\n    model: <model>\n    apiBase: {url}"
        ),
        lambda url: f"# ~/.continue/config.yaml\nmcpServers:\n  - name: qm\n    type: streamable-http\n    url: {url}/mcp",
    ),
    Client(
        "cline",
        "Cline",
        "native; its CLI: OpenAI chat",
        lambda url: (
            f"Settings → API Provider: Ollama → Use custom base URL: {url}\n"
            f"# its CLI:  cline auth -p openai-compatible -k ollama -m <model> -b {url}/v1"
        ),
        lambda url: (
            f"# its CLI:  cline mcp add qm {url}/mcp --transport streamableHttp --yes\n# MCP Servers → Configure\n"
            + _json({"mcpServers": {"qm": {"type": "streamableHttp", "url": f"{url}/mcp"}}})
        ),
    ),
    Client(
        "roo-code",
        "Roo Code",
        "native",
        lambda url: f"Settings → API Provider: Ollama → Base URL: {url}",
        lambda url: "# .roo/mcp.json\n" + _json({"mcpServers": {"qm": {"type": "streamable-http", "url": f"{url}/mcp"}}}),
    ),
    Client(
        "zed",
        "Zed",
        "native",
        lambda url: "# settings.json\n" + _json({"language_models": {"ollama": {"api_url": url}}}),
        lambda url: "# settings.json\n" + _json({"context_servers": {"qm": {"url": f"{url}/mcp"}}}),
    ),
    Client(
        "vscode",
        "VS Code (chat with a custom endpoint)",
        "OpenAI chat",
        lambda url: (
            "# chatLanguageModels.json (command Chat: Manage Language Models → Add Models → Custom Endpoint)\n"
            "# the two token limits together are to be the model's context window\n"
            + _json([_vscode(url)])
            + f'\n# its older, deprecated Ollama provider:  {{"vendor": "ollama", "name": "Ollama", "url": "{url}"}}'
        ),
        lambda url: "# .vscode/mcp.json\n" + _json({"servers": {"qm": {"type": "http", "url": f"{url}/mcp"}}}),
    ),
    Client(
        "cursor",
        "Cursor (MCP only: its models are asked from Cursor's own servers)",
        "-",
        lambda url: "Cursor cannot reach a model on 127.0.0.1; only the MCP server below applies.",
        lambda url: "# .cursor/mcp.json\n" + _json({"mcpServers": {"qm": {"url": f"{url}/mcp"}}}),
    ),
    Client(
        "copilot",
        "Copilot CLI",
        "OpenAI Responses",
        lambda url: _exports(
            _copilot(url) | {"COPILOT_MODEL": "<model>"},
            "copilot",
        ),
        lambda url: f"copilot mcp add --transport http qm {url}/mcp",
        environment=_copilot,
        commands=("copilot",),
    ),
    Client(
        "qwen-code",
        "Qwen Code",
        "OpenAI chat",
        lambda url: _exports(_openai(url) | {"OPENAI_MODEL": "<model>"}, "qwen   # if it asks: /auth, OpenAI-compatible"),
        lambda url: f"qwen mcp add --transport http qm {url}/mcp",
        environment=_openai,
        commands=("qwen",),
    ),
    Client(
        "goose",
        "Goose",
        "native",
        lambda url: f"export GOOSE_PROVIDER=ollama GOOSE_MODEL=<model> OLLAMA_HOST={url}\ngoose session",
        lambda url: f"goose session --with-streamable-http-extension {url}/mcp",
        environment=lambda url: {"GOOSE_PROVIDER": "ollama", "OLLAMA_HOST": url},
        commands=("goose",),
    ),
    Client(
        "openai-sdk",
        "OpenAI SDKs and everything that reads OPENAI_BASE_URL",
        "OpenAI chat, completions, Responses",
        lambda url: f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=ollama",
        environment=_openai,
    ),
    Client(
        "anthropic-sdk",
        "Anthropic SDKs",
        "Anthropic messages",
        lambda url: f"export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=ollama",
        environment=lambda url: {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "ollama"},
    ),
)


def find(name: str) -> Client | None:
    """The client of that name (any case, blanks as dashes), or `None`."""
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    return next((c for c in CLIENTS if wanted in (c.name, c.title.lower(), *c.commands)), None)


def environment_for(command: str, proxy_url: str) -> dict[str, str]:
    """What `run` adds to the environment of `command`: its own variables if we know it, else every common one.

    A key is never put over one that the user has set, except where the tool would otherwise refuse or call its vendor.
    """
    base = os.path.basename(command)  # noqa: PTH119 - a command line word, not a path of ours
    client = next((c for c in CLIENTS if base.removesuffix(".exe") in c.commands), None)
    if client is not None and client.environment is not None:
        return client.environment(proxy_url)
    common = {"OLLAMA_HOST": proxy_url, "OLLAMA_API_BASE": proxy_url, "OLLAMA_BASE_URL": proxy_url}
    wire = _openai(proxy_url) | {"ANTHROPIC_BASE_URL": proxy_url, "ANTHROPIC_API_KEY": "ollama"}
    keys = {name: value for name, value in wire.items() if not (name.endswith("_KEY") and os.environ.get(name))}
    return common | keys
