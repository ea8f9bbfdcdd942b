"""`qm-proxy demo`: the product at work on a simulated Ollama whose truth is known; ends with planted beside found."""
