"""How much memory a context takes: predicted from the architecture, measured as a slope, and where it stops fitting.

A wrong formula is worse than none: the prediction is always shown beside the measured slope. Lengths are per layer; sources
are llama.cpp's KV cache layout and GGUF's key names. The server's `size` also grows by 2 x num_batch bytes per token of
window (the mask of its compute buffer), so the slope is parallel x KV + 2 x num_batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probes.result import Host

__all__ = ["CACHE_TYPES", "Budget", "Cache", "budget", "cache_of", "ceiling", "everything"]

CACHE_TYPES: dict[str, float] = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes per element; the quantised ones carry a scale per block of 32."""


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache of one slot: bytes = full x tokens + windowed x min(tokens, window) + constant, per element byte."""

    full: float  # elements per token in layers with full attention
    windowed: float  # elements per token in sliding layers
    window: int
    constant: float  # bytes that do not depend on tokens (recurrent state)
    described: str

    def bytes_at(self, tokens: int, element: float = 2.0) -> float:
        """Bytes of one slot holding `tokens`."""
        return element * (self.full * tokens + self.windowed * min(tokens, self.window)) + self.constant

    def mean_slope(self, tokens: float, more: float, element: float = 2.0) -> float:
        """Bytes per token between two lengths, as two measured points see it."""
        if more <= tokens:
            return self.slope(element)
        return (self.bytes_at(round(more), element) - self.bytes_at(round(tokens), element)) / (more - tokens)

    def slope(self, element: float = 2.0, beyond: int | None = None) -> float:
        """Bytes per further token at `beyond` tokens (default: past every sliding window)."""
        inside = beyond is not None and beyond < self.window
        return element * (self.full + (self.windowed if inside else 0.0))


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory a model can use here, and the rule that says so."""

    bytes: int
    source: str


def cache_of(info: Mapping[str, Any]) -> Cache | None:
    """From /api/show's model_info (verbose, else arrays are blank). `None` when the keys do not suffice."""
    architecture = info.get("general.architecture")

    def get(name: str) -> Any:
        return info.get(f"{architecture}.{name}")

    layers, heads, width = get("block_count"), get("attention.head_count"), get("embedding_length")
    if not isinstance(layers, int) or layers <= 0:
        return None
    per_head = _head_sizes(get, heads, width)
    if per_head is None:
        return None
    key, value = per_head
    rank, rope = get("attention.kv_lora_rank"), get("rope.dimension_count")
    if isinstance(rank, int) and rank > 0 and isinstance(rope, int):
        return Cache(float(layers * (rank + rope)), 0.0, 0, 0.0, f"{layers} MLA layers of {rank} + {rope}")
    kv_heads = _per_layer(get("attention.head_count_kv"), layers) or _per_layer(heads, layers)
    if kv_heads is None:
        return None
    interval = get("full_attention_interval")
    if isinstance(interval, int) and interval > 1:
        kv_heads = [count if (layer + 1) % interval == 0 else 0 for layer, count in enumerate(kv_heads)]
    shared = get("attention.shared_kv_layers")
    if isinstance(shared, int) and 0 < shared < layers:
        kv_heads = kv_heads[: layers - shared] + [0] * shared
    window = get("attention.sliding_window")
    sliding = _sliding_layers(get("attention.sliding_window_pattern"), layers) if isinstance(window, int) and window > 0 else []
    swa_key, swa_value = get("attention.key_length_swa"), get("attention.value_length_swa")
    full = windowed = 0.0
    for layer, count in enumerate(kv_heads):
        if layer < len(sliding) and sliding[layer]:
            windowed += count * ((swa_key or key) + (swa_value or value))
        else:
            full += count * (key + value)
    constant, recurrent = _state(get, sum(count == 0 for count in kv_heads))
    attending = sum(count > 0 for count in kv_heads)
    parts = [f"{attending} of {layers} layers, {max(kv_heads)} KV heads of {key} + {value}"]
    if windowed:
        parts.append(f"{sum(sliding)} of them sliding over {window}")
    if recurrent:
        parts.append(f"{recurrent} recurrent")
    return Cache(full, windowed, int(window) if windowed else 0, constant, ", ".join(parts))


def _head_sizes(get: Any, heads: Any, width: Any) -> tuple[int, int] | None:
    key, value = get("attention.key_length"), get("attention.value_length")
    first = heads if isinstance(heads, int) else max(heads, default=0) if isinstance(heads, list) else 0
    derived = width // first if isinstance(width, int) and first else None
    key = key if isinstance(key, int) and key > 0 else derived
    value = value if isinstance(value, int) and value > 0 else key
    return (key, value) if key and value else None


def _per_layer(value: Any, layers: int) -> list[int] | None:
    if isinstance(value, int):
        return [value] * layers
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return [int(value[index % len(value)]) for index in range(layers)]
    return None


def _sliding_layers(pattern: Any, layers: int) -> list[bool]:
    """An array says it layer by layer; an integer n says that each n-th layer attends fully; nothing says all slide."""
    if isinstance(pattern, list) and pattern:
        return [bool(pattern[index % len(pattern)]) for index in range(layers)]
    if isinstance(pattern, int) and pattern > 1:
        return [(index + 1) % pattern != 0 for index in range(layers)]
    return [True] * layers


def _state(get: Any, without_cache: int) -> tuple[float, int]:
    """Bytes of recurrent state (f32) of the layers that keep no KV: convolution window plus state matrix."""
    kernel, inner, state, groups = get("ssm.conv_kernel"), get("ssm.inner_size"), get("ssm.state_size"), get("ssm.group_count")
    if not all(isinstance(part, int) for part in (kernel, inner, state)) or not without_cache:
        return 0.0, 0
    width = inner + 2 * (groups if isinstance(groups, int) else 0) * state
    return 4.0 * without_cache * ((kernel - 1) * width + inner * state), without_cache


def budget(host: Host, resident_elsewhere: int = 0, ours: int = 0) -> Budget | None:
    """What the model may occupy: discrete: total - 5 %; unified: three quarters of RAM (two thirds up to 36 GiB), Apple's
    default working set; CPU: RAM - 10 %. `resident_elsewhere`: bytes other programs hold on the device; `ours`: bytes of RAM that
    the model held itself when what is available was read."""
    gpus = [gpu for gpu in host.gpus if gpu.memory_bytes]
    if host.unified and host.memory_bytes:
        share = 2 / 3 if host.memory_bytes <= 36 * 1024**3 else 3 / 4
        return Budget(int(host.memory_bytes * share), f"{share:.0%} of unified memory: the default GPU working set")
    if gpus:
        total = sum(gpu.memory_bytes or 0 for gpu in gpus)
        return Budget(
            int(total * 0.95) - resident_elsewhere, "device memory - 5 %" + (" - other programs" if resident_elsewhere else "")
        )
    if host.memory_bytes:
        available = min((host.available_bytes or host.memory_bytes) + ours, host.memory_bytes)
        source = "RAM - 10 %" if host.available_bytes is None else "available RAM - 10 %"
        return Budget(int(available - 0.1 * host.memory_bytes), source)
    return None


def everything(host: Host, allowed: Budget) -> int | None:
    """Bytes at which a load fails for good: device and RAM less 10 %; `None` where what spills goes to an unknown RAM."""
    if host.unified:
        return int(0.9 * (host.memory_bytes or 0))
    if not host.gpus:
        return allowed.bytes
    if host.memory_bytes is None:
        return None
    ram = host.memory_bytes if host.available_bytes is None else host.available_bytes
    return int(0.9 * (sum(gpu.memory_bytes or 0 for gpu in host.gpus) + ram))


def ceiling(budget_bytes: float, intercept: float, slope: float) -> float | None:
    """Tokens at which intercept + slope x tokens reaches the budget; `None` if the model alone does not fit or does not grow."""
    if slope <= 0 or budget_bytes <= intercept:
        return None
    return (budget_bytes - intercept) / slope
