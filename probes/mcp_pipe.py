"""`qm-proxy mcp`: MCP over stdio, piped message for message to a running console; one code path, one state.

Nothing but JSON-RPC goes to stdout; words go to stderr.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
from mcp.client.streamable_http import streamable_http_client
from mcp.server.stdio import stdio_server
from mcp.shared._httpx_utils import create_mcp_http_client

__all__ = ["pipe"]


def pipe(console: str, token: str | None = None) -> None:
    """Until stdin closes. `console`: its URL without a trailing slash."""
    anyio.run(_pipe, console, token)


async def _pipe(console: str, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else None
    async with (
        create_mcp_http_client(headers=headers) as http,
        stdio_server() as (from_client, to_client),
        streamable_http_client(f"{console}/mcp", http_client=http) as (from_server, to_server),
        anyio.create_task_group() as both,
    ):

        async def pump(source: Any, target: Any, *, ends: bool) -> None:
            async for message in source:
                if isinstance(message, Exception):
                    print(f"qm-proxy mcp: {message}", file=sys.stderr)
                    continue
                await target.send(message)
            if ends:
                both.cancel_scope.cancel()

        both.start_soon(lambda: pump(from_client, to_server, ends=True))
        both.start_soon(lambda: pump(from_server, to_client, ends=False))
