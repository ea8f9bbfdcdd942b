"""The second port: everything that is not Ollama's traffic."""
