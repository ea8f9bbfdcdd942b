// Probes: measurements on demand. Start one, follow it, read its report.

import { get, send } from "../lib/api.js";
import { fill, h, panel, table } from "../lib/dom.js";
import { clock, modelName, NONE, seconds } from "../lib/format.js";
import { listen, live } from "../lib/live.js";
import { failed, pill } from "../lib/parts.js";

export const STATES = { queued: "info", running: "live", done: "good", failed: "violation", cancelled: "info" };
const KINDS = [
  ["inspect", "Inspector", "how fast, and how much memory"],
  ["audit", "Audit", "where the context stops working"],
  ["agent", "Agent Report", "whether it can finish long work"],
  ["report", "Report", "all three, and what they say together"],
];

export function progress(run) {
  if (run.state !== "running" && run.state !== "queued") return null;
  const done = run.steps ? run.step / run.steps : null;
  return h("span.meter", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": String(run.steps || 1), "aria-valuenow": String(run.step ?? 0), "aria-label": run.message || "progress" },
    h("i", { style: { width: `${(done ?? 0) * 100}%` } }));
}

export function show(place) {
  const abort = new AbortController();
  const runs = h("div", { "aria-live": "polite" });
  const said = h("p.quiet", { role: "status" });
  const pair = h("span");
  const names = h("datalist", { id: "model-names" });
  const form = h("form.filters", { onsubmit: start },
    h("label", null, "probe ", h("select", { name: "kind" }, KINDS.map(([kind, title, what]) => h("option", { value: kind }, `${title}: ${what}`)))),
    h("label", null, "model ", h("input", { name: "model", list: "model-names", required: true, autocomplete: "off" })), names,
    h("label", null, "depth ", h("select", { name: "depth" }, h("option", { value: "quick" }, "quick"), h("option", { value: "full" }, "full"))),
    h("button", { type: "submit" }, "Start"));
  fill(place, h("div.title", null, h("h1", null, "Probes")),
    panel("Measure a model", null, h("p.quiet", null, "A probe asks the upstream itself, not through the relay, and slows whatever else is running while it lasts."), form, said),
    panel("Runs", pair, runs));

  function command(kind, model, quick) {
    return `qm-proxy ${kind} ${model || "MODEL"}${quick ? " --quick" : ""}`;
  }

  async function start(event) {
    event.preventDefault();
    const { kind, model, depth } = Object.fromEntries(new FormData(form));
    try {
      const run = await send("runs", { kind, model, quick: depth === "quick" });
      location.hash = `#/run/${encodeURIComponent(run.run_id ?? run.id)}`;
    } catch (error) {
      fill(said, h("span.wrong", { role: "alert" }, error.message), " On the command line it is ", h("code", null, command(kind, model, depth === "quick")));
    }
  }

  async function load() {
    try {
      const { items } = await get("runs?limit=100", { signal: abort.signal });
      fill(pair, items.filter((run) => run.state === "done").length > 1 && h("a", { href: "#/compare" }, "compare two"));
      fill(runs, items.length ? table("Runs", [["run"], ["model"], ["state"], ["progress", "barcell"], ["started"], ["took", "num"], ["what it says"]], items.map((kept) => live.runs.get(kept.id) ?? kept).map((run) => [
        h("a", { href: `#/run/${encodeURIComponent(run.id)}` }, run.kind), modelName(run.model), pill(run.state, STATES[run.state] ?? "info"), progress(run) ?? "",
        clock(run.started_at), seconds(run.elapsed_s), run.summary ?? run.message ?? NONE,
      ])) : h("div.empty", null, h("p", null, "No probe has run yet. Start one above, ask for it through the MCP server, or on the command line:"),
        h("pre", null, KINDS.map(([kind, , what]) => `${command(kind, "MODEL", true).padEnd(34)}# ${what}`).join("\n"))));
    } catch (error) {
      if (error.name !== "AbortError") fill(runs, failed(error));
    }
  }

  get("status", { signal: abort.signal }).then((s) => fill(names, [...new Set([...(s.models ?? []).map((m) => m.name), ...live.recent.map((x) => x.model)].filter(Boolean))]
    .map((name) => h("option", { value: name })))).catch(() => {});
  let timer = 0;
  const stop = listen((changed) => {
    if (!changed.has("run")) return;
    clearTimeout(timer);
    timer = setTimeout(load, 200);
  });
  load();
  return { title: "Probes", close: () => { stop(); clearTimeout(timer); abort.abort(); } };
}
