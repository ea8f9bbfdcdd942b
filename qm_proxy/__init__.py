"""qm-proxy, the passive half: watches what users already do with Ollama, and leaves no trace in it."""

__version__ = "0.1.0"
__all__ = ["__version__"]
