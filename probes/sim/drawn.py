"""Personas drawn at random, so that a measurement cannot be right by knowing the shipped ones."""

from __future__ import annotations

from random import Random
from typing import Any

from probes.sim.personas import Persona

__all__ = ["draw"]


def draw(seed: int | str) -> Persona:
    """A model with drawn times, memory, window and accuracy; the same seed gives the same one. Ranges are those of real
    machines, but short enough to be measured in seconds: load 0.05–2 s, prefill 300–5 000 tok/s, 4–40 ms a token."""
    rng = Random(f"persona/{seed}")

    def log(low: float, high: float) -> float:
        return float(low * (high / low) ** rng.random())

    token_ms = round(log(4, 40), 3)
    jitter = rng.choice(["constant", "lognormal", "lognormal", "gamma"])
    kv_heads, layers = rng.choice([1, 2, 4, 8]), rng.choice([16, 24, 32, 48])
    stated: dict[str, Any] = {
        "name": f"drawn-{seed}",
        "description": f"drawn at random from the seed {seed}",
        "mode": rng.choice(["rendered", "native"]),
        "layers": layers,
        "kv_heads": kv_heads,
        "load": {"cold_ms": round(log(50, 2000), 1), "warm_ms": round(rng.uniform(0.5, 2.5), 2)},
        "prefill": {
            "fixed_ms": round(log(2, 40), 2),
            "tokens_per_s": round(log(300, 5000), 1),
            "curve_ms_per_kilotoken2": round(rng.choice([0, 0, log(0.5, 20)]), 3),
            "first_touch_ms": round(rng.choice([0, log(50, 900)]), 1),
            "jitter": round(rng.choice([0, 0.02, 0.05]), 3),
        },
        "decode": {
            "token_ms": token_ms,
            "per_1k_depth_ms": round(rng.choice([0, token_ms * rng.uniform(0.005, 0.05)]), 4),
            "jitter": jitter,
            "spread": 0 if jitter == "constant" else round(rng.uniform(0.02, 0.2), 3),
            "stalls": rng.choice([{}, {"at": sorted(rng.sample(range(8, 200), 4)), "ms": round(rng.uniform(60, 300), 1)}]),
        },
        "tokenizer": {
            "rule": rng.choice(["characters", "bytes"]),
            "per_token": round(rng.uniform(3, 6), 2),
            "bos": rng.random() < 0.5,
        },
        "memory": {
            "weights_bytes": int(log(2e9, 4e10)),
            "kv_bytes_per_token": layers * kv_heads * 2 * 128 * 2,
            "compute_bytes": int(log(5e7, 1e9)),
            "device_bytes": 2**37,
        },
        "context": {"trained": 131_072, "automatic": rng.choice([4096, 32_768])},
        "accuracy": _accuracy(rng),
        "answer_tokens": rng.randrange(40, 400),
    }
    return Persona.model_validate(stated)


def _accuracy(rng: Random) -> dict[str, Any]:
    law = rng.choice(["flat", "cliff", "slope", "dip"])
    base, at = round(rng.uniform(0.9, 1.0), 3), rng.randrange(1500, 12_000)
    wrong = rng.choice(["confabulate", "refuse", "distractor"])
    stated: dict[str, Any] = {"law": law, "base": base, "wrong": wrong}
    if law != "flat":
        stated |= {"floor": round(rng.uniform(0.1, 0.5), 3), "at": at, "to": at * rng.choice([2, 4, 8])}
    return stated
