"""The laws of time of a persona: how long a load, a prefill and each token take. Everything here is stated truth.

Milliseconds in persona files, nanoseconds in code. Distributions keep their stated mean, so that "16 ms per token" stays
true under jitter. All randomness comes from the `random.Random` that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

__all__ = ["Coalesce", "Decode", "Gap", "Load", "Prefill", "Speculative", "Stalls"]

MS = 1_000_000
GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this fraction visit the unit interval as evenly as any sequence can."""
_STATED = ConfigDict(extra="forbid", frozen=True)
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Load(BaseModel):
    """What it takes to bring the model into memory."""

    model_config = _STATED

    cold_ms: NonNegativeFloat = Field(default=250.0, description="load_duration of a request that finds the model unloaded")
    warm_ms: NonNegativeFloat = Field(default=0.8, description="load_duration of any other request: never zero on a real server")
    reload_ms: NonNegativeFloat | None = Field(
        default=None, description="load after a change of launch options; None: as cold_ms"
    )
    fails: str | None = Field(default=None, description="the load ends with 500 and this text")

    @property
    def reload(self) -> float:
        return self.cold_ms if self.reload_ms is None else self.reload_ms


class Prefill(BaseModel):
    """t(N) = fixed + slope·n + curve·(N² - cached²): N prompt tokens, n of them not cached."""

    model_config = _STATED

    fixed_ms: NonNegativeFloat = 2.0
    tokens_per_s: PositiveFloat = Field(default=2000.0, description="slope, as a speed")
    curve_ms_per_kilotoken2: NonNegativeFloat = Field(
        default=0.0, description="attention's quadratic share: ms per (1000 tokens)²"
    )
    first_touch_ms: NonNegativeFloat = Field(
        default=0.0, description="once after each load: lazily mapped weights are touched here"
    )
    batch_tokens: PositiveInt = Field(default=512, description="an abort is noticed between batches")
    jitter: Share = Field(default=0.0, description="relative standard deviation of the whole prefill time")

    def ms(self, total: int, cached: int, rng: Random | None = None) -> float:
        """Without first touch."""
        fresh = max(0, total - cached)
        law = self.fixed_ms + fresh / self.tokens_per_s * 1000 + self.curve_ms_per_kilotoken2 * (total**2 - cached**2) / 1e6
        return law * lognormal(rng, self.jitter) if rng is not None and self.jitter else law


class Stalls(BaseModel):
    """Extra silence before a token. Fixed places, or random ones at a known rate."""

    model_config = _STATED

    at: tuple[PositiveInt, ...] = Field(default=(), description="token indices (0 = first token) before which the stream stalls")
    ms: NonNegativeFloat = Field(default=0.0, description="length of a stall, beyond the ordinary gap")
    every: PositiveInt | None = Field(default=None, description="also before each token whose index is a multiple of this")
    per_1000: NonNegativeFloat = Field(default=0.0, description="also at random: expected stalls per 1000 tokens")
    ms_to: NonNegativeFloat | None = Field(default=None, description="random stalls are uniform between `ms` and this")

    @property
    def any(self) -> bool:
        return bool(self.at or self.every or self.per_1000)

    def before(self, index: int, rng: Random) -> float:
        """Milliseconds of stall before token `index`."""
        stall = 0.0
        if index in self.at or (self.every and index and index % self.every == 0):
            stall += self.ms
        if self.per_1000 and index and rng.random() * 1000 < self.per_1000:
            stall += rng.uniform(self.ms, self.ms_to) if self.ms_to is not None else self.ms
        return stall


class Coalesce(BaseModel):
    """Some records wait for the next and leave with it in one write, as when the network joins them."""

    model_config = _STATED

    share: Share = Field(default=0.0, description="of the tokens whose record is held back")
    most: PositiveInt = Field(default=4, description="records in one write at most")


class Speculative(BaseModel):
    """Drafted tokens: a step yields 1 + accepted tokens at once, so gaps are either (nearly) zero or a whole step."""

    model_config = _STATED

    drafted: int = Field(default=0, ge=0, le=16)
    accepted: Share = Field(default=0.7, description="chance that each further drafted token is accepted")


class Gap(NamedTuple):
    """The time before one token."""

    ns: float
    stall_ns: float  # part of `ns` that is a planted stall
    hold: bool  # this token's record waits for the next
    block_ns: float = 0.0  # from this token on, nothing leaves for so long although the model goes on: a stall of the network


class Decode(BaseModel):
    """The time between tokens."""

    model_config = _STATED

    token_ms: PositiveFloat = Field(default=16.0, description="mean gap without stalls, at depth 0")
    per_1k_depth_ms: NonNegativeFloat = Field(default=0.0, description="added per 1000 tokens of context before the token")
    jitter: Literal["constant", "lognormal", "gamma", "even"] = Field(
        default="constant",
        description="even: equidistributed, in mirrored pairs: any run of gaps has the stated mean to within one; no tail",
    )
    spread: NonNegativeFloat = Field(default=0.0, description="relative standard deviation of a gap")
    stalls: Stalls = Field(default=Stalls(), description="the model stalls: seen by both clocks")
    network: Stalls = Field(default=Stalls(), description="the way to the client stalls: created_at goes on, arrival does not")
    coalesce: Coalesce = Coalesce()
    speculative: Speculative = Speculative()
    spilled_factor: PositiveFloat = Field(default=6.0, description="slower by this when the model does not fit the device")

    @model_validator(mode="after")
    def _spread_fits(self) -> Decode:
        if self.jitter == "constant" and self.spread:
            raise ValueError("spread needs jitter: lognormal, gamma or even")
        if self.jitter == "even" and self.spread > 0.57:
            raise ValueError("an even jitter spreads by 0.57 at most: gaps would be negative")
        return self

    def tokens_per_step(self) -> float:
        """Expected tokens of one step: 1 without speculation."""
        a, k = self.speculative.accepted, self.speculative.drafted
        return float(k + 1) if a == 1 else (1 - a ** (k + 1)) / (1 - a)

    def gaps(self, rng: Random, depth: int, *, slower: float = 1.0) -> Iterator[Gap]:
        """Endless: the gap before token 0, 1, 2, … The gap before token 0 is what the first decode step costs (only an
        MLX runner shows it: the others sample the first token at the end of the prefill)."""
        index = 0
        held = 0
        coalesce, speculative, stalls, network = self.coalesce, self.speculative, self.stalls, self.network
        stalling, blocking = stalls.any, network.any
        mean = self.token_ms * self.tokens_per_step()
        depth_ms = self.per_1k_depth_ms / 1000
        even = rng.random() if self.jitter == "even" else 0.0
        mirror = 0
        while True:
            burst = 1
            while burst <= speculative.drafted and rng.random() < speculative.accepted:
                burst += 1
            # a step costs the same however many of its tokens are accepted: `token_ms` stays the mean of a token
            step = mean + depth_ms * (depth + index)
            if self.jitter == "lognormal":
                step *= lognormal(rng, self.spread)
            elif self.jitter == "gamma" and self.spread:
                shape = 1 / self.spread**2
                step *= rng.gammavariate(shape, 1 / shape)
            elif self.jitter == "even":
                even = (even + GOLDEN) % 1.0 if mirror == 0 else even
                step *= 1 + self.spread * math.sqrt(3) * ((2 * even - 1) if mirror == 0 else (1 - 2 * even))
                mirror = 1 - mirror
            for k in range(burst):
                stall = stalls.before(index, rng) if stalling else 0.0
                hold = held + 1 < coalesce.most and rng.random() < coalesce.share if coalesce.share else False
                held = held + 1 if hold else 0
                block = network.before(index, rng) if blocking else 0.0
                yield Gap(((0.0 if k else step * slower) + stall) * MS, stall * MS, hold, block * MS)
                index += 1


def lognormal(rng: Random, relative_sd: float) -> float:
    """A factor with mean 1 and this relative standard deviation."""
    variance = math.log1p(relative_sd**2)
    return math.exp(rng.gauss(0.0, math.sqrt(variance)) - variance / 2)
