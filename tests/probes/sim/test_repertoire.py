"""Policies by name."""

from __future__ import annotations

import pytest

from probes.sim.personas import Persona
from probes.sim.repertoire import POLICIES, make
from qm_proxy.errors import SettingsError


def test_policies_are_judged_when_the_server_is_made() -> None:
    with pytest.raises(SettingsError, match=r"wants the policy 'nonsense'.*token-loop"):
        make(Persona.model_validate({"name": "x", "policy": {"name": "nonsense"}}))
    with pytest.raises(SettingsError, match="refuses its parameters"):
        make(Persona.model_validate({"name": "x", "policy": {"name": "token-loop", "speed": 3}}))
    with pytest.raises(SettingsError, match="no scripted agent 'nobody'"):
        make(Persona.model_validate({"name": "x", "policy": {"name": "agent", "script": "nobody"}}))


def test_a_callers_own_policy_comes_first() -> None:
    class Mine:
        def answer(self, turn: object, rng: object) -> None: ...

    persona = Persona.model_validate({"name": "x", "policy": {"name": "mute"}})
    assert isinstance(make(persona, {"mute": Mine}), Mine)
    assert make(Persona(name="x")) is None
    assert "mute" in POLICIES
