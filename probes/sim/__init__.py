"""A simulated Ollama with known true scores."""
