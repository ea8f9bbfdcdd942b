"""A simulated Ollama with known true scores."""

from __future__ import annotations

from probes.sim.personas import Persona, builtin, load_file
from probes.sim.server import SimulatedOllama
from probes.sim.truth import RequestTruth, Truth

__all__ = ["Persona", "RequestTruth", "SimulatedOllama", "Truth", "builtin", "load_file"]
