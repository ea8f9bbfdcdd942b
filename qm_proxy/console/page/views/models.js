// Models: the league table, computed here from the latest exchanges. A model that one client suffers from is not averaged away.

import { pages } from "../lib/api.js";
import { fill, h, panel, table } from "../lib/dom.js";
import { clock, count, modelName, NONE, quantile, rate, seconds, share } from "../lib/format.js";
import { download, failed } from "../lib/parts.js";
import { pasteBoard } from "./paste.js";

const SIZES = [500, 2000, 5000];
const TOOLS = 40; // rows of the second table

export function show(place, _, query) {
  const abort = new AbortController();
  const most = Number(query.get("of")) || 2000;
  const byClient = query.get("by") === "client";
  const probes = query.get("probes") === "1";
  const sort = query.get("sort") ?? "n";
  const body = h("div", { "aria-live": "polite", "aria-busy": "true" }, h("p.quiet", null, "Reading…"));
  const truth = h("div.stack");
  const link = (change) => `#/models?${new URLSearchParams({ of: most, by: byClient ? "client" : "model", probes: probes ? 1 : 0, sort, ...change })}`;
  const choice = (on, change, text) => h("a", { href: link(change), "aria-current": on ? "true" : null }, text);
  fill(place, h("div.title", null, h("h1", null, "Models"), h("div.choices", null,
    h("span", null, "of the last ", SIZES.map((n) => [choice(most === n, { of: n }, count(n)), " "])),
    h("span", null, "per ", choice(!byClient, { by: "model" }, "model"), " ", choice(byClient, { by: "client" }, "model and client")),
    h("span", null, "probes ", choice(!probes, { probes: 0 }, "out"), " ", choice(probes, { probes: 1 }, "in")))), panel("League table", null, body), truth);

  async function load() {
    const groups = new Map();
    let n = 0;
    let oldest = null;
    try {
      for await (const page of pages("exchanges", { limit: 250, most, signal: abort.signal })) {
        for (const x of page) {
          if (x.operation === null || x.ending === null || !x.model || (x.origin === "probe" && !probes)) continue;
          n += 1;
          oldest = x.started_at;
          const key = byClient ? `${modelName(x.model)}\n${x.client}` : modelName(x.model);
          if (!groups.has(key)) groups.set(key, empty(modelName(x.model), byClient ? x.client : null));
          take(groups.get(key), x);
        }
        await new Promise((next) => setTimeout(next)); // the page stays alive while it counts
      }
      if (!abort.signal.aborted) render([...groups.values()].map(sum), n, oldest);
    } catch (error) {
      if (error.name !== "AbortError") fill(body, failed(error));
    }
    body.setAttribute("aria-busy", "false");
  }

  function render(rows, n, oldest) {
    if (!rows.length) {
      fill(body, h("p.quiet", null, "No generation yet. The table fills as clients ask."));
      fill(truth, pasteBoard("Point a client at the proxy", "Each model it asks gets a row."));
      return;
    }
    rows.sort((a, b) => order(a, b, sort));
    const best = (name, low) => rows.reduce((m, r) => (r[name] == null ? m : m == null ? r[name] : low ? Math.min(m, r[name]) : Math.max(m, r[name])), null);
    const top = { rate: best("rate", false) };
    const head = (name, title, hint, kind = "num") => [h("a", { href: link({ sort: name }), "aria-current": sort === name ? "true" : null }, title), kind, hint];
    fill(body, h("p.quiet", null, `From ${count(n)} generations${oldest ? ` since ${clock(oldest)}` : ""}. Rates and times are medians unless they say otherwise.`),
      table("League table", [["model"], ...(byClient ? [["client"]] : []),
        head("n", "requests", "Generations counted"), head("rate", "tok/s", "Decode rate, median"), ["", "barcell"],
        head("ttft", "ttft", "Time to first token, median"), head("ttft95", "ttft p95", "95th percentile"), head("gap99", "gap p99", "Median of each stream's 99th percentile"),
        head("stalls", "stalls / 1000", "Stalls found per 1000 chunks"), head("loops", "loops", "Exchanges with a loop, share"), head("calls", "calls", "Tool calls"),
        head("truth", "calls valid", "Of the calls that could be judged"), head("cut", "truncated", "Exchanges whose context was cut"), head("failed", "failed", "Ended otherwise than complete, without the clients that left")],
      rows.map((r) => [
        h("a", { href: `#/exchanges?model=${encodeURIComponent(r.model)}${r.client ? `&client=${encodeURIComponent(r.client)}` : ""}` }, r.model),
        ...(byClient ? [r.client] : []),
        count(r.n), rate(r.rate), r.rate == null ? "" : h("span.meter", { "aria-hidden": "true" }, h("i", { style: { width: `${(100 * r.rate) / top.rate}%` } })),
        seconds(r.ttft), seconds(r.ttft95), seconds(r.gap99), warn(r.stalls, r.stalls == null ? NONE : r.stalls.toFixed(1), 5),
        warn(r.loops, share(r.loops, 1), 0), count(r.calls), r.truth == null ? NONE : h(`span${r.truth < 0.95 ? ".red" : ""}`, null, share(r.truth)),
        warn(r.cut, count(r.cut), 0), warn(r.failed, share(r.failed, 1), 0),
      ]), ".league"));
    const tools = rows.flatMap((r) => [...r.tools.values()].map((t) => ({ ...t, model: r.model, client: r.client, truth: t.judged ? t.valid / t.judged : null })));
    tools.sort((x, y) => (x.truth ?? 2) - (y.truth ?? 2) || y.calls - x.calls);
    fill(truth, tools.length > 0 && panel("Tool truth", h("span.quiet", null, "calls against the schemas they were offered with, worst first"), table("Tool truth", [["tool"], ["model"], ...(byClient ? [["client"]] : []),
      ["calls", "num"], ["judged", "num", "Offered with a schema that could be read"], ["valid", "num"], ["", "barcell"], ["what is wrong most often"]],
    tools.slice(0, TOOLS).map((t) => {
      const [worst, n] = [...t.problems].sort((x, y) => y[1] - x[1])[0] ?? [];
      return [h("code", null, t.tool || "(no name)"), t.model, ...(byClient ? [t.client] : []), count(t.calls), count(t.judged),
        t.truth == null ? NONE : h(`span${t.truth < 0.95 ? ".red" : ""}`, null, share(t.truth)), t.truth == null ? "" : h("span.meter", { "aria-hidden": "true" }, h("i.truth", { style: { width: `${100 * t.truth}%` } })),
        worst ? `${worst}${n > 1 ? ` ×${n}` : ""}` : ""];
    }), ".truths"), tools.length > TOOLS && h("p.quiet", null, `and ${tools.length - TOOLS} more`)),
    h("div.actions", null, h("button", { type: "button", onclick: () => download("qm-models.json", new Blob([JSON.stringify(rows.map((r) => ({ ...r, rates: undefined, ttfts: undefined, gaps: undefined, tools: [...r.tools.values()].map((t) => ({ ...t, problems: Object.fromEntries(t.problems) })) })), null, 1)], { type: "application/json" })) }, "Export JSON")));
  }

  load();
  return { title: "Models", close: () => abort.abort() };
}

function warn(value, text, above) {
  return value != null && value > above ? h("span.red", null, text) : text;
}

function empty(model, client) {
  return { model, client, n: 0, rates: [], ttfts: [], gaps: [], stalls: 0, chunks: 0, loops: 0, calls: 0, judged: 0, valid: 0, cut: 0, failed: 0, tools: new Map() };
}

function take(g, x) {
  g.n += 1;
  if (x.tokens_per_s != null && (x.output_tokens ?? x.chunks) >= 8) g.rates.push(x.tokens_per_s);
  if (x.ttft_s != null) g.ttfts.push(x.ttft_s);
  if (x.itl && x.itl.n >= 8) g.gaps.push(x.itl.p99_s);
  if (x.itl) g.chunks += x.chunks;
  for (const f of x.findings) if (f.kind === "stall") g.stalls += 1;
  if (x.findings.some((f) => f.kind.startsWith("loop."))) g.loops += 1;
  if (x.findings.some((f) => f.kind === "context.truncated")) g.cut += 1;
  for (const c of x.tool_calls) {
    g.calls += 1;
    if (c.valid !== null) g.judged += 1;
    if (c.valid) g.valid += 1;
    if (!g.tools.has(c.name)) g.tools.set(c.name, { tool: c.name, calls: 0, judged: 0, valid: 0, problems: new Map() });
    const t = g.tools.get(c.name);
    t.calls += 1;
    if (c.valid !== null) t.judged += 1;
    if (c.valid) t.valid += 1;
    for (const p of c.problems ?? []) {
      const words = typeof p === "string" ? p : p.keyword ? `${p.keyword} at ${p.pointer || "/"}` : JSON.stringify(p);
      t.problems.set(words, (t.problems.get(words) ?? 0) + 1);
    }
  }
  if (x.ending !== "complete" && x.ending !== "client_disconnect" && x.ending !== "shutdown") g.failed += 1;
}

function sum(g) {
  const sorted = (values) => values.sort((a, b) => a - b);
  return {
    ...g, rate: quantile(sorted(g.rates), 0.5), ttft: quantile(sorted(g.ttfts), 0.5), ttft95: quantile(g.ttfts, 0.95), gap99: quantile(sorted(g.gaps), 0.5),
    stalls: g.chunks ? (g.stalls / g.chunks) * 1000 : null, loops: g.loops / g.n, truth: g.judged ? g.valid / g.judged : null, failed: g.failed / g.n,
  };
}

const LOW_FIRST = new Set(["ttft", "ttft95", "gap99", "truth"]);

function order(a, b, name) {
  if (a[name] == null || b[name] == null) return (a[name] == null) - (b[name] == null);
  return LOW_FIRST.has(name) ? a[name] - b[name] : b[name] - a[name];
}
