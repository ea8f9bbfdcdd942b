"""Every policy by the name that persona files use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from probes.sim.knowing import AgentPolicy
from probes.sim.loop_policies import AgentLoop, TokenLoop
from probes.sim.personas import Persona
from probes.sim.policies import Policy
from probes.sim.tool_policies import BadCalls, Mute, ToolUser
from qm_proxy.errors import SettingsError

__all__ = ["POLICIES", "Factory", "make"]

Factory: TypeAlias = Callable[..., Policy]


POLICIES: Final[dict[str, Factory]] = {
    "agent": AgentPolicy,
    "agent-loop": AgentLoop,
    "bad-calls": BadCalls,
    "mute": Mute,
    "token-loop": TokenLoop,
    "tool-user": ToolUser,
}


def make(persona: Persona, more: dict[str, Factory] | None = None) -> Policy | None:
    """The persona's policy. Raises SettingsError for an unknown name or parameter."""
    choice = persona.policy
    if choice is None:
        return None
    known = {**POLICIES, **(more or {})}
    if choice.name not in known:
        raise SettingsError(
            f"Persona {persona.name} wants the policy {choice.name!r}.", remedy=f"There are: {', '.join(sorted(known))}."
        )
    try:
        return known[choice.name](**choice.parameters)
    except (TypeError, ValueError) as cause:
        raise SettingsError(f"Persona {persona.name}: the policy {choice.name!r} refuses its parameters: {cause}.") from cause
