"""The context window as Ollama treats it: silent dropping, the silent cut to half, the two refusals, the shift.

Pure functions on texts and counts. Source: server/prompt.go and completionPromptForRequest of 0.33.0-rc2 as described by
the reference notes; every number here was observed (captures `trunc_*`, `dropped_messages_*`, `err_trunc_*`, `context_*`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from probes.sim.gojson import encode

__all__ = ["Fitted", "TooLong", "cut_length", "fit_messages", "fit_prompt", "generation_limit"]

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)


class TooLong(Exception):
    """Refused with 400; str() is the server's text."""


class Fitted(NamedTuple):
    """How much of a prompt is evaluated."""

    tokens: int  # evaluated: what prompt_eval_count says
    keep_first: int | None  # None: the whole prompt; else the first and …
    keep_last: int  # … the last tokens of it
    asked_tokens: int  # before the cut


def cut_length(window: int, num_keep: int, *, bos: bool) -> tuple[int, int]:
    """Tokens kept at the front and at the back when a raw prompt exceeds window - 1. A negative num_keep keeps all."""
    k = window - 1 if num_keep < 0 else min(num_keep + bos, window - 1)
    total = window - max((window - k) // 2, 1)
    return min(k, total), total - min(k, total)


def exceeds(tokens: int, window: int) -> TooLong:
    """llama-server's refusal, its JSON embedded as text: it names both numbers."""
    inner = {
        "code": 400,
        "message": f"request ({tokens} tokens) exceeds the available context size ({window} tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": tokens,
        "n_ctx": window,
    }
    return TooLong(encode({"error": inner}))


def fit_prompt(
    tokens: int, n_bytes: int, window: int, *, truncate: bool, shift: bool, num_keep: int, bos: bool, native: bool
) -> Fitted:
    """Decide for one rendered prompt. `tokens` includes BOS; `native`: the runner applies the template and never cuts."""
    if tokens < window:
        return Fitted(tokens, None, 0, tokens)
    if native or not truncate or n_bytes <= window:  # with one byte per token the pre-check believes that it fits
        raise exceeds(tokens, window)
    if not shift:
        raise TooLong(TOO_LONG)
    first, last = cut_length(window, num_keep, bos=bos)
    return Fitted(first + last, first, last, tokens)


def fit_messages(roles: Sequence[str], window: int, count: Callable[[Sequence[int]], int]) -> list[int]:
    """Which messages stay: the oldest that are neither system nor the last one go until the rest fits.

    `count` gives the tokens of the rendered prompt of the messages with these indices.
    """
    droppable = [i for i in range(len(roles) - 1) if roles[i] != "system"]

    def without(n: int) -> list[int]:
        gone = set(droppable[:n])
        return [i for i in range(len(roles)) if i not in gone]

    few, many = 0, len(droppable)  # the count only falls: find the fewest by halving, a render costs as much as the prompt
    while few < many:
        middle = (few + many) // 2
        if count(without(middle)) > window:
            few = middle + 1
        else:
            many = middle
    return without(few)


def generation_limit(num_predict: int, window: int) -> int:
    """Most tokens of an answer: none or too large a limit becomes ten windows."""
    most = 10 * window
    return most if num_predict < 0 or num_predict > most else num_predict
