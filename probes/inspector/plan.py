"""What an inspection will ask, and what that costs: printed before it starts, and all that its seed decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from probes.pace import Pace
from probes.result import Host

__all__ = ["Cost", "Plan", "cost", "plan_for"]

PREFILL_LENGTHS = (128, 512, 2048, 8192, 16384, 32768)
QUICK_LENGTHS = (128, 512, 1024, 2048)
RESERVE = 512  # tokens of the window that stay free of prompt


@dataclass(frozen=True, slots=True)
class Plan:
    """One inspection. Tokens and counts."""

    model: str
    endpoint: str
    seed: int
    quick: bool
    window_tokens: int  # num_ctx of the session
    num_batch: int
    cold_repeats: int
    cold_prompt: int
    cold_tokens: int
    last_cold_tokens: int  # the last cold start may answer at length: the origin reads its whole stream from one
    warm_up_tokens: int
    warm_up_most: int
    prefill_lengths: tuple[int, ...]
    prefill_repeats: int  # of each length; a decode at that depth is one of them
    decode_repeats: int
    decode_tokens: int
    depths: tuple[int, ...]
    depth_repeats: int
    depth_tokens: int
    memory_windows: tuple[int, ...]  # besides the session's own
    compat: Literal["quantamind"] | None = None
    fill_depths: tuple[int, ...] = (1024, 8192)  # MLX: tokens filled in, each after an unload; the cold start is a point too
    evict_page_cache: bool = False  # one more cold start, with the weights put out of the page cache (C0)
    host: Host = field(default_factory=Host)

    @property
    def cached_length(self) -> int:
        """Of the prompt that is sent a second time, to be answered from the cache."""
        return max((n for n in self.prefill_lengths if n <= 2048), default=min(self.prefill_lengths))

    def prefills_of(self, length: int) -> int:
        """Requests that only measure the prefill of `length`; the decodes at that depth measure it too."""
        return max(1, self.prefill_repeats - (self.depth_repeats if length in self.depths else 0))

    def short_starts(self, *, lazy: bool) -> int:
        """Cold starts with a short prompt. Apple's runner is filled by cold starts with a long one, which count too."""
        return max(2 if self.cold_repeats > 2 else 1, self.cold_repeats - len(self.fill_depths)) if lazy else self.cold_repeats

    @property
    def same_machine(self) -> bool:
        """Does the server run where the probe does? Then a pause of the one may be a pause of both."""
        name = urlsplit(self.endpoint if "//" in self.endpoint else f"//{self.endpoint}").hostname or ""
        return name in ("localhost", "::1") or name.startswith("127.")

    @property
    def options(self) -> dict[str, object]:
        """Every option that shapes a load or a sample, sent with every request: nothing is left to the server's defaults."""
        return {
            "num_ctx": self.window_tokens,
            "num_batch": self.num_batch,
            "temperature": 0,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "seed": self.seed % 2**31,
        }


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run asks for. `seconds` is an estimate from the speeds given."""

    requests: int
    loads: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    assumed: str


def plan_for(
    model: str,
    endpoint: str,
    *,
    seed: int,
    quick: bool = False,
    window_tokens: int | None = None,
    advertised_tokens: int | None = None,
    compat: Literal["quantamind"] | None = None,
    evict_page_cache: bool = False,
    host: Host | None = None,
) -> Plan:
    """The standard sequence (or the quick one) for a model of that window."""
    wanted = window_tokens or (4096 if quick else 16384)
    window = min(wanted, advertised_tokens) if advertised_tokens else wanted
    lengths = tuple(n for n in (QUICK_LENGTHS if quick else PREFILL_LENGTHS) if n <= window - RESERVE)
    if len(lengths) < 4:
        room = window - min(RESERVE, window // 2)
        lengths = tuple(sorted({max(16, room * part // 8) for part in (1, 2, 4, 8)}))
    like_the_origin = compat == "quantamind"
    deepest = max(16, min(8192, window - RESERVE))
    depths = tuple(n for n in (2048, 8192, 32768) if n <= window - RESERVE)[: 1 if quick else None]
    if like_the_origin:
        depths = depths[-1:]  # its report knows no depth; ours keeps the deepest
    return Plan(
        model=model,
        endpoint=endpoint,
        seed=seed,
        quick=quick,
        window_tokens=window,
        num_batch=512,
        cold_repeats=1 if quick else 3,
        cold_prompt=123 if like_the_origin else 128,
        cold_tokens=32,
        last_cold_tokens=314 if like_the_origin else 32,
        warm_up_tokens=64 if quick or like_the_origin else 256,
        warm_up_most=3 if quick else 6,
        prefill_lengths=lengths,
        prefill_repeats=2 if quick else 3,
        decode_repeats=3 if quick else 4 if like_the_origin else 5,
        decode_tokens=192 if quick or like_the_origin else 256,
        depths=depths,
        depth_repeats=1 if quick else 2,
        depth_tokens=64 if like_the_origin else 128,
        memory_windows=(max(512, window // 4),) if quick else (max(512, window // 4), max(1024, window // 2)),
        compat=compat,
        fill_depths=(deepest,) if like_the_origin else (min(1024, deepest // 2), deepest),
        evict_page_cache=evict_page_cache,
        host=host or Host(),
    )


def cost(plan: Plan, pace: Pace | None = None, *, lazy: bool = False) -> Cost:
    """Requests, tokens and time at a pace. `lazy`: Apple's runner, which is filled instead of loaded at other windows."""
    pace = pace or Pace()
    largest = max(plan.prefill_lengths)
    ladder = sum(plan.prefills_of(length) for length in plan.prefill_lengths)
    counted = largest in plan.depths and plan.depth_repeats > 1  # the last warm-up is one of the decodes at depth
    deep = plan.depth_repeats * len(plan.depths) - counted
    short = plan.short_starts(lazy=lazy)
    fills = plan.fill_depths if lazy else ()
    warms = 1 if any(tokens >= largest for tokens in fills) else 2
    others = () if lazy else plan.memory_windows
    prompt = (
        short * plan.cold_prompt
        + sum(fills)
        + warms * largest
        + sum(plan.prefills_of(length) * length for length in plan.prefill_lengths)
        + plan.depth_repeats * sum(plan.depths)
        - counted * largest
        + (plan.decode_repeats + 1 + len(others)) * 32
    )
    output = (
        (short - 1) * plan.cold_tokens
        + plan.last_cold_tokens
        + (warms + len(fills)) * plan.warm_up_tokens
        + ladder
        + 1
        + (plan.decode_repeats + 1) * plan.decode_tokens
        + deep * plan.depth_tokens
        + len(others)
    )
    loads = short + len(fills) + len(others)
    return Cost(
        requests=loads + warms + ladder + 1 + plan.decode_repeats + 1 + deep,
        loads=loads,
        prompt_tokens=prompt,
        output_tokens=output,
        seconds=pace.seconds(prompt, output, loads),
        assumed=pace.words(loads),
    )
