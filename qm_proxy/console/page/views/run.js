// One run of a probe: how far it is, and its report.

import { get, send } from "../lib/api.js";
import { fill, h, panel } from "../lib/dom.js";
import { clock, modelName, seconds } from "../lib/format.js";
import { listen, live } from "../lib/live.js";
import { markdown } from "../lib/markdown.js";
import { download, failed, figure, pill } from "../lib/parts.js";
import { progress, STATES } from "./probes.js";

export function show(place, [id]) {
  const abort = new AbortController();
  let timer = 0;

  async function load() {
    clearTimeout(timer);
    try {
      let run = await get(`runs/${encodeURIComponent(id)}`, { signal: abort.signal });
      const heard = live.runs.get(run.id);
      const stored = run.state;
      if (heard && stored !== "done") run = { ...run, ...heard }; // the feed knows each step, the store only states
      render(run);
      if (run.state === "queued" || run.state === "running") timer = setTimeout(load, 2000);
      else if (stored === "queued" || stored === "running") timer = setTimeout(load, 500); // ended, and about to be stored
    } catch (error) {
      const heard = live.runs.get(id); // started just now: told, but not stored yet
      if (error.status === 404 && heard) {
        render(heard);
        timer = setTimeout(load, 1000);
      } else if (error.name !== "AbortError") fill(place, h("h1", null, "Run"), failed(error), h("p", null, h("a", { href: "#/probes" }, "All runs")));
    }
  }

  function render(run) {
    const going = run.state === "queued" || run.state === "running";
    const said = h("p.quiet", { role: "status" });
    fill(place,
      h("div.title", null, h("h1", null, run.kind, h("span.by", null, ` of ${modelName(run.model)}`)), h("span.marks", null, pill(run.state, STATES[run.state] ?? "info"))),
      run.summary && h("p.summary", null, run.summary),
      h("dl.figures", null, figure("started", clock(run.started_at)), figure("took", seconds(run.elapsed_s)), run.steps > 0 && figure("step", `${run.step} of ${run.steps}`), run.message && figure("now", run.message)),
      progress(run),
      h("div.actions", null,
        going && h("button", { type: "button", onclick: async () => {
          try { await send(`runs/${encodeURIComponent(id)}`, undefined, "DELETE"); load(); }
          catch (error) { fill(said, error.message); }
        } }, "Cancel"),
        run.state === "done" && run.result && h("a.button", { href: `#/compare/${encodeURIComponent(id)}` }, "Compare with…"),
        run.replays && h("a.button", { href: run.replays, target: "_blank", rel: "noopener" }, "Every agent run, step by step"),
        run.report && h("button", { type: "button", onclick: () => download(`${id}.md`, new Blob([run.report], { type: "text/markdown" })) }, "Export Markdown"),
        run.result && h("button", { type: "button", onclick: () => download(`${id}.json`, new Blob([JSON.stringify(run.result, null, 1)], { type: "application/json" })) }, "Export JSON")),
      said,
      run.report ? panel("Report", null, h("article.report", { tabindex: "0" }, markdown(run.report))) : !going && h("p.quiet", null, "It left no report."));
  }

  const stop = listen((changed) => { if (changed.has("run")) load(); });
  load();
  return { title: `Run ${id.slice(-6)}`, close: () => { stop(); clearTimeout(timer); abort.abort(); } };
}
