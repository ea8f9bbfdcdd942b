"""Drawn personas are valid, repeatable and different."""

from __future__ import annotations

from probes.sim.drawn import draw
from probes.sim.library import Library


def test_drawn_personas() -> None:
    found = [draw(n) for n in range(200)]
    assert found[3] == draw(3)
    assert len({p.decode.token_ms for p in found}) > 150
    for persona in found:
        assert 4 <= persona.decode.token_ms <= 40
        assert persona.truth()["name"] == f"{persona.name}:latest"
        info = Library.model_info(persona)
        kv = info["llama.block_count"] * info["llama.attention.head_count_kv"] * 2 * 128 * 2
        assert kv == persona.memory.kv_bytes_per_token
    laws = {p.accuracy.law for p in found if p.accuracy is not None}
    assert laws == {"flat", "cliff", "slope", "dip"}
