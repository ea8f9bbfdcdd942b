"""Embeddings: vectors that depend on the text alone, in the number formats of each route.

/api/embed and /v1/embeddings give unit vectors as 32-bit numbers, the legacy /api/embeddings gives the same as 64-bit ones.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from random import Random

from probes.sim.gojson import JSON, float32, number, quote

__all__ = ["inputs_of", "legacy_body", "native_body", "openai_body", "vector"]


def vector(text: str, dimensions: int) -> list[float]:
    """Unit length; equal texts have equal vectors, and texts that share words are nearer than others."""
    total = [0.0] * dimensions
    for word in sorted({*text.lower().split(), text}):
        rng = Random(f"embedding/{word}")
        for _ in range(min(64, dimensions)):
            total[rng.randrange(dimensions)] += rng.gauss(0, 1)
    length = math.sqrt(sum(x * x for x in total)) or 1.0
    return [struct.unpack("f", struct.pack("f", x / length))[0] for x in total]


def inputs_of(value: JSON) -> list[str] | None:
    """The texts to embed; None when they are of a type that the routes refuse."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return list(value)
    return None


def _numbers(values: Sequence[float]) -> str:
    return "[" + ",".join(map(float32, values)) + "]"


def native_body(model: str, vectors: Sequence[Sequence[float]], total_ns: int, load_ns: int, tokens: int) -> str:
    rows = ",".join(map(_numbers, vectors))
    count = f',"prompt_eval_count":{tokens}' if tokens else ""
    return f'{{"model":{quote(model)},"embeddings":[{rows}],"total_duration":{total_ns},"load_duration":{load_ns}{count}}}'


def legacy_body(values: Sequence[float]) -> str:
    return '{"embedding":[' + ",".join(map(number, values)) + "]}"


def openai_body(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, as_base64: bool) -> str:
    def shown(values: Sequence[float]) -> str:
        if as_base64:
            return quote(base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode())
        return _numbers(values)

    rows = ",".join(f'{{"object":"embedding","embedding":{shown(v)},"index":{n}}}' for n, v in enumerate(vectors))
    usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    return f'{{"object":"list","data":[{rows}],"model":{quote(model)},"usage":{usage}}}\n'
