"""What the MCP server `qm` offers, one idea a file; `probes.mcp_server` joins them."""
