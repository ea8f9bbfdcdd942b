"""qm-proxy, the active half: asks its own questions, decodes and measures with the same code as the proxy."""
