// Small parts that several views show the same way: badges, phase bars, findings, figures.

import { h } from "./dom.js";
import { clock, count, modelName, NONE, rate, seconds } from "./format.js";

export const PHASES = [
  ["client_wait_s", "client", "waiting for the client"],
  ["queue_s", "queue", "queued behind another request"],
  ["load_s", "load", "loading the model"],
  ["prefill_s", "prefill", "reading the prompt"],
  ["decode_s", "decode", "writing the answer"],
  ["unexplained_s", "rest", "in no phase the server told of"],
];

export function figure(label, value, hint) {
  return h("div.figure", { title: hint }, h("dt", null, label), h("dd", null, value));
}

export function pill(text, kind, title) {
  return h(`span.pill.${kind}`, { title }, text);
}

/** In the order in which they happen: what a server leaves untold of, where it tells no prefill, is before the first token. */
function phasesOf(x) {
  const known = PHASES.filter(([name]) => x[name] > 0);
  const untold = known.at(-1)?.[0] === "unexplained_s" && x.prefill_s == null && x.ttft_s >= x.unexplained_s / 2 ? [known.pop()] : [];
  const decode = known.findIndex(([name]) => name === "decode_s");
  known.splice(decode < 0 ? known.length : decode, 0, ...untold.map(([name, label]) => [name, label, "before the first token: this API tells queue, load and prefill not apart"]));
  return known;
}

export function phaseBar(x, { legend = false } = {}) {
  const known = phasesOf(x);
  if (!known.length || !x.total_s) return legend ? h("p.quiet", null, "The server told no phases of this exchange.") : h("span.phases");
  const words = known.map(([name, label]) => `${label} ${seconds(x[name])}`).join(", ");
  const bar = h("span.phases", { role: "img", "aria-label": `Phases: ${words}`, title: words },
    known.map(([name, label]) => h(`i.ph-${label}`, { style: { "flex-grow": String(x[name] / x.total_s) } })));
  if (!legend) return bar;
  return h("div.phasebox", null, bar, h("ul.legend", null, known.map(([name, label, meaning]) =>
    h("li", { title: meaning }, h(`i.ph-${label}`), label, " ", h("b", null, seconds(x[name]))))));
}

const ENDINGS = {
  complete: null, client_disconnect: "client left", upstream_error: "error", upstream_truncated: "cut short",
  upstream_unreachable: "unreachable", guard_cut: "cut by guard", shutdown: "shutdown",
};

export function endingPill(x) {
  if (x.ending == null) return pill(x.phase ?? "in flight", "live");
  if (x.ending === "complete") return x.http_status >= 400 ? pill(`HTTP ${x.http_status}`, "violation") : null;
  return pill(ENDINGS[x.ending] ?? x.ending, x.ending === "client_disconnect" || x.ending === "shutdown" ? "info" : "violation");
}

/** One pill for each kind found, with how often. */
export function findingPills(findings) {
  const kinds = new Map();
  for (const f of findings ?? []) {
    const had = kinds.get(f.kind);
    kinds.set(f.kind, { n: (had?.n ?? 0) + 1, severity: worse(had?.severity, f.severity) });
  }
  return [...kinds].map(([kind, { n, severity }]) => pill(n > 1 ? `${kind} ×${n}` : kind, severity));
}

const ORDER = ["info", "suspect", "violation"];
function worse(a, b) {
  return ORDER.indexOf(a) > ORDER.indexOf(b) ? a : b;
}

/** What stands above a column, for who hears the row instead of seeing the head. */
export function named(words) {
  return h("span.unseen", null, ` ${words} `);
}

/** A row of a list of exchanges: one link, read in the order of its columns with their names. */
export function exchangeRow(x) {
  return h("a.xrow", { href: `#/exchange/${x.id}` },
    h("span.c-time", null, clock(x.started_at)),
    h("span.c-who", null, h("b", null, modelName(x.model ?? x.route)), " ", h("span", null, x.client, x.origin === "probe" ? " · probe" : "")),
    h("span.c-bar", null, phaseBar(x)),
    h("span.c-num.ttft", null, named("time to first token"), seconds(x.ttft_s)),
    h("span.c-num.rate", null, named("tokens per second"), rate(x.tokens_per_s)),
    h("span.c-num.toks", null, named("tokens"), x.input_tokens == null && x.output_tokens == null ? NONE : `${count(x.input_tokens)} → ${count(x.output_tokens)}`),
    h("span.c-num.total", null, named("total"), seconds(x.total_s)),
    h("span.c-pills", null, endingPill(x), findingPills(x.findings)));
}

export function exchangeHead() {
  return h("div.xrow.xhead", { "aria-hidden": "true" },
    h("span.c-time", null, "time"), h("span.c-who", null, "model, client"), h("span.c-bar", null, "where its time went"),
    h("span.c-num.ttft", null, "ttft"), h("span.c-num.rate", null, "tok/s"), h("span.c-num.toks", null, "tokens in → out"),
    h("span.c-num.total", null, "total"), h("span.c-pills", null, "found"));
}

/** A finding in a list; `where` links it to its exchange. */
export function findingItem(f, where = true) {
  const text = h("span.f-text", null, f.summary ?? f.kind);
  const inner = [pill(f.kind, f.severity), text, h("span.f-at", null, where ? clockOf(f) : f.t_s == null ? "" : `at ${seconds(f.t_s)}`)];
  const target = f.exchange_id ? `#/exchange/${f.exchange_id}` : f.session_id ? `#/session/${f.session_id}` : null;
  return h("li", null, where && target ? h("a.frow", { href: target }, inner) : h("div.frow", null, inner));
}

function clockOf(f) {
  return clock(new Date(parseInt(f.id.slice(0, 8) + f.id.slice(9, 13), 16)).toISOString());
}

export function failed(error) {
  return h("p.wrong", { role: "alert" }, error.message);
}

/** Hand a file to the user. */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export function copyButton(text) {
  const button = h("button.ghost.copy", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      button.textContent = "select and copy";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  } }, "copy");
  return button;
}
