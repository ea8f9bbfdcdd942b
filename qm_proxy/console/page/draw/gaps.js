// From a stored series to marks: when each chunk came, what it was, the gap before it, and whether a stall was found there.

import { quantile } from "../lib/format.js";

const SIGMA = 1.4826;

/** [{i, t_s, gap_s, kind, stall}]. gap_s is null for the first chunk, one that came in the same read, or after a sleep. */
export function marks(chunks, findings = []) {
  const together = new Set(chunks.coalesced);
  const asleep = new Set(chunks.suspended ?? []);
  const found = new Set(findings.filter((f) => f.kind === "stall" && f.chunk != null).map((f) => f.chunk));
  const made = [];
  let run = 0;
  let left = chunks.kinds[0]?.[1] ?? 0;
  chunks.arrival_ns.forEach((ns, i) => {
    while (left === 0 && run + 1 < chunks.kinds.length) left = chunks.kinds[run += 1][1];
    left -= 1;
    const measured = i > 0 && !together.has(i) && !asleep.has(i);
    made.push({
      i, t_s: ns / 1e9, kind: chunks.kinds[run]?.[0] ?? "text",
      gap_s: measured ? (ns - chunks.arrival_ns[i - 1]) / 1e9 : null,
      stall: found.has(i), asleep: asleep.has(i),
    });
  });
  const further = findings.some((f) => f.evidence?.further > 0); // the detector names the first ones and counts the rest
  const limit = further ? threshold(made) : null;
  for (const m of made) if (limit !== null && m.gap_s > limit) m.stall = true;
  return made;
}

/** Where stalls were only counted, a gap longer than this is drawn as one: median + max(8 robust deviations, 10 ms, 1.25 medians), of the whole stream. */
export function threshold(made) {
  const gaps = made.map((m) => m.gap_s).filter((g) => g !== null).sort((a, b) => a - b);
  if (gaps.length < 12) return null;
  const median = quantile(gaps, 0.5);
  const spread = quantile(gaps.map((g) => Math.abs(g - median)).sort((a, b) => a - b), 0.5);
  return median + Math.max(8 * SIGMA * spread, 0.01, 1.25 * median);
}

const MOST = 4000;

/** Rows for the waterfall chart; of a longer stream its longest gaps, evenly over time, and every stall. */
export function waterfallRows(made) {
  const row = (m) => ({ t_ms: m.t_s * 1e3, gap_ms: m.gap_s === null ? null : m.gap_s * 1e3, kind: m.kind, spike: m.stall });
  if (made.length <= MOST) return { rows: made.map(row), of: made.length };
  const size = Math.ceil(made.length / MOST);
  const rows = [];
  for (let at = 0; at < made.length; at += size) {
    const some = made.slice(at, at + size);
    const longest = some.reduce((a, b) => ((b.gap_s ?? 0) > (a.gap_s ?? 0) ? b : a));
    for (const m of some) if (m === longest || m.stall) rows.push(row(m));
  }
  return { rows, of: made.length };
}

/** Rows for the gap histogram: quarter octaves. */
export function histogramRows(made) {
  const bins = new Map();
  for (const m of made) {
    if (!(m.gap_s > 0)) continue;
    const bin = Math.floor(Math.log2(m.gap_s * 1e3) * 4);
    const key = `${bin} ${m.stall ? "spike" : "gap"}`;
    bins.set(key, (bins.get(key) ?? 0) + 1);
  }
  return [...bins].map(([key, n]) => {
    const [bin, kind] = key.split(" ");
    return { lo_ms: 2 ** (bin / 4), hi_ms: 2 ** ((Number(bin) + 1) / 4), n, kind };
  });
}
