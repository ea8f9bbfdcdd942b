// Compare: two finished runs side by side, as `qm-proxy compare` tells it. Each difference is drawn with its interval: what
// touches the zero line is not shown to differ.

import { get } from "../lib/api.js";
import { fill, h, panel, s, table } from "../lib/dom.js";
import { clock, modelName, NONE, share } from "../lib/format.js";
import { download, failed, figure, pill } from "../lib/parts.js";

const VERDICTS = { "B better": "good", "B worse": "violation", same: "info", "no difference detected": "info", different: "suspect" };
const WIDE = 220;
const TALL = 18;

export function show(place, [a, b], query) {
  const abort = new AbortController();
  const body = h("div.compared", { "aria-live": "polite" });
  const choose = h("form.filters", { onsubmit: (event) => { event.preventDefault(); go(); } });
  fill(place, h("div.title", null, h("h1", null, "Compare two runs")), panel("Which", null, choose), body);

  function go(force = false) {
    const { a: one, b: other } = Object.fromEntries(new FormData(choose));
    if (one && other) location.hash = `#/compare/${encodeURIComponent(one)}/${encodeURIComponent(other)}${force ? "?force=1" : ""}`;
  }

  async function load() {
    try {
      const { items } = await get("runs?limit=200&state=done", { signal: abort.signal });
      const options = (chosen) => [h("option", { value: "" }, "choose a run"), items.map((run) => h("option", { value: run.id, selected: run.id === chosen },
        `${run.kind} of ${modelName(run.model)}, ${clock(run.started_at)}`))];
      fill(choose, h("label", null, "A ", h("select", { name: "a" }, options(a))), h("label", null, "B ", h("select", { name: "b" }, options(b))), h("button", { type: "submit" }, "Compare"),
        a && b && h("a", { href: `#/compare/${encodeURIComponent(b)}/${encodeURIComponent(a)}` }, "swap"));
      if (!a || !b) {
        fill(body, h("div.empty", null, items.length < 2
          ? [h("p", null, "A comparison needs two runs that are done. Start them under ", h("a", { href: "#/probes" }, "Probes"), ", or on the command line:"), h("pre", null, "qm-proxy compare MODEL-A MODEL-B --quick")]
          : h("p", null, "Choose two runs. The same kind of probe, the same seed and the same machine make numbers that stand on one ground.")));
        return;
      }
      fill(body, h("p.quiet", { role: "status", "aria-busy": "true" }, "Comparing: resampling takes a second or two…"));
      const force = query.get("force") === "1";
      const made = await get(`compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}${force ? "&force=1" : ""}`, { signal: abort.signal });
      render(made);
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(body, failed(error), error.message.includes("cannot be compared") && h("div.actions", null, h("button", { type: "button", onclick: () => go(true) }, "Compare all the same")));
    }
  }

  function render(made) {
    const bad = made.worse.length > 0;
    const rows = made.metrics;
    const reach = Math.max(0.1, ...rows.flatMap((m) => [m.difference?.value, ...(m.difference?.ci ?? [])]).filter((v) => v != null).map((v) => Math.min(1, Math.abs(v))));
    fill(body,
      h("p.verdict", { class: bad ? "verdict warn" : made.better.length ? "verdict ok" : "verdict plain" }, made.sentence),
      h("div.sides", null, [["A", made.a, a], ["B", made.b, b]].map(([side, it, id]) => h("section.panel", { "aria-label": side }, h("div.head", null, h("h2", null, side), h("div.aside", null, h("a", { href: `#/run/${encodeURIComponent(id)}` }, "its report"))),
        h("p.who", null, modelName(it.name)), h("dl.figures.small", null, figure("quantization", it.quantization ?? NONE), figure("seed", String(it.seed ?? NONE)), figure("digest", it.digest ? it.digest.replace(/^sha256:/, "").slice(0, 12) : NONE))))),
      made.warnings.length > 0 && h("p.because", null, `Compared all the same: ${made.warnings.join("; ")}.`),
      panel("Differences", h("span.quiet", null, `B against A, scale ± ${share(reach)}`), rows.length ? table("Differences", [["what"], ["A", "num"], ["B", "num"], ["difference", "num"], ["with its interval", "forest"], ["verdict"], ["could have seen", "num", "The smallest difference that would have shown, four times in five"]],
        rows.map((m) => [m.name, value(m.a, m.unit), value(m.b, m.unit), signed(m.difference?.value), interval(m, reach), pill(m.verdict, VERDICTS[m.verdict] ?? "info"), m.could_have_seen == null ? NONE : `≥ ${share(m.could_have_seen)}`]), ".forests")
        : h("p.quiet", null, "Nothing was measured in both of them. Two runs of the same kind have more in common.")),
      made.cliffs.words && panel("Where the context ends", null, h("dl.pairs", null, [["A", made.cliffs.a], ["B", made.cliffs.b], ["together", made.cliffs.words]].map(([name, words]) => h("div", null, h("dt", null, name), h("dd", null, words))))),
      h("div.actions", null, h("button", { type: "button", onclick: () => download(`qm-compare-${a}-${b}.json`, new Blob([JSON.stringify(made, null, 1)], { type: "application/json" })) }, "Export JSON")));
  }

  load();
  return { title: "Compare", close: () => abort.abort() };
}

function value(v, unit) {
  if (v == null) return NONE;
  if (unit === "share") return share(v);
  return `${v >= 1000 ? Math.round(v).toLocaleString("en") : v.toPrecision(3)} ${unit}`;
}

function signed(v) {
  return v == null ? NONE : `${v > 0 ? "+" : v < 0 ? "−" : "±"}${share(Math.abs(v), Math.abs(v) < 0.1 ? 1 : 0)}`;
}

/** A dot with its whiskers on a common scale; the line in the middle is no difference. */
function interval(m, reach) {
  const d = m.difference;
  if (!d || d.value == null) return "";
  const x = (v) => WIDE / 2 + (Math.max(-1, Math.min(1, v / reach)) * (WIDE - 14)) / 2;
  const [lo, hi] = d.ci ?? [null, null];
  const words = `${signed(d.value)}${lo == null ? ", no interval" : `, from ${signed(lo)} to ${signed(hi)}`}`;
  return s("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, width: WIDE, height: TALL, role: "img", "aria-label": words, class: `iv ${VERDICTS[m.verdict] ?? "info"}` }, s("title", null, words),
    s("line", { x1: WIDE / 2, x2: WIDE / 2, y1: 0, y2: TALL, class: "iv-zero" }),
    lo != null && s("line", { x1: x(lo), x2: x(hi), y1: TALL / 2, y2: TALL / 2, class: "iv-line" }),
    lo != null && [lo, hi].map((v) => s("line", { x1: x(v), x2: x(v), y1: TALL / 2 - 4, y2: TALL / 2 + 4, class: "iv-line" })),
    s("circle", { cx: x(d.value), cy: TALL / 2, r: 4, class: "iv-dot" }));
}
