"""What each printed number means, in a sentence: shown on demand, and the glossary of the documentation."""

from __future__ import annotations

__all__ = ["DEFINITIONS"]

DEFINITIONS: dict[str, str] = {
    "Cold load": "The server's load_duration of a request that found the model unloaded (checked with /api/ps).",
    "Cold start in all": "Load, plus the first prefill beyond the warm fit, plus the first gap beyond the median gap.",
    "Implied read rate": "Size of the weights over the load time. More than a drive reads means page cache or lazy mapping.",
    "Warm, new prompt": "Request written to first chunk, model loaded, no cached prefix (state C2).",
    "Prompt cached": "Request written to first chunk for a prompt sent before (state C3).",
    "Prefill": "t(N) = fixed + slope x N (+ curvature x N^2), fitted to prompt_eval_duration of fresh prompts, warm.",
    "Prefill, first request": "The server's prompt_eval_duration of the cold request: holds the first touch of the weights.",
    "Attention doubles cost": "The length b/c at which the quadratic term costs as much as the linear one.",
    "TTFT": "Request written to the first chunk of any kind, warm, short prompt. ttft_content: the first that is not thinking.",
    "Decode, server": "eval_duration / eval_count of one answer; median over answers.",
    "Decode, client": "(last chunk - first chunk) / (chunks - 1), stamped at socket read; elsewhere called TPOT or mean ITL.",
    "Tokens per second": "1 000 over the server's ms per token.",
    "Slowing with depth": "Slope of decode time over context position.",
    "Half speed at": "The depth at which a token takes twice as long as at depth 0, by that slope.",
    "Gap p50": "Gaps between chunks of all warm streams, coalesced runs spread out; order-statistic interval.",
    "Gap p95": "As p50.",
    "Gap p99": "As p50. Below 500 gaps the upper end is unbounded and the value is not printed.",
    "Latency spikes": "Gaps beyond median + max(8 sigma by MAD, 10 ms, the median), of 65 around; chance's share beside.",
    "Drift": "Decode time of the first cell repeated at the end, over the first: throttling, other load.",
    "Memory": "/api/ps size_vram with the tokens then in the cache; share of the device.",
    "KV per token, predicted": "From the layers' shapes in /api/show: GQA, MLA, sliding windows and recurrent layers.",
    "KV per token, measured": "Slope of /api/ps size over the window (MLX: over tokens held), 2 x num_batch taken off.",
    "Advertised window": "context_length of /api/show.",
    "Allocated window": "context_length of /api/ps for the window asked for.",
    "Spill ceiling": "(budget - intercept) / slope: the longest context that stays on the device. Beyond: slow, no error.",
    "Out-of-memory ceiling": "The same with 90 % of all memory: beyond it loading fails. Computed, never provoked.",
    "Usable context": "What the Audit showed.",
    "Baseline": "Share right at the shortest length; Wilson interval. Later lengths are judged against it.",
    "Accuracy": "Share of trials answered right, of those that passed the truncation guard; Wilson interval.",
    "Verdict": "Wald's test of 0.97 against 0.75 x baseline per rung, confirmed by fresh trials, then bisection.",
}
