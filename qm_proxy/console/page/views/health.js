// Health: what the instrument itself costs, and whether it lost anything.

import { get } from "../lib/api.js";
import { fill, h, panel, table } from "../lib/dom.js";
import { bytes, clock, count, NONE, quantile, seconds } from "../lib/format.js";
import { live } from "../lib/live.js";
import { failed, figure, pill } from "../lib/parts.js";

export function show(place) {
  const body = h("div");
  fill(place, h("div.title", null, h("h1", null, "Health")), body);

  function render(s) {
    const o = s.observer;
    const lags = s.relays.map((r) => r.loop_lag_max_ms).filter((v) => v != null);
    const ours = live.recent.map((x) => x.proxy_overhead_s).filter((v) => v != null).sort((a, b) => a - b);
    const lost = o.batches_missed + o.pipe_bytes_skipped + s.relays.reduce((n, r) => n + (r.dropped_batches ?? 0), 0) + (s.store?.dropped ?? 0);
    const failures = Object.entries(o.sink_failures ?? {}).filter(([, n]) => n > 0);
    const troubles = Object.entries(o.troubles ?? {}).filter(([, n]) => n > 0);
    fill(body,
      h("p.verdict", { class: lost || failures.length ? "verdict warn" : "verdict ok" }, lost === 0 && !failures.length
        ? "Nothing was lost: every byte that passed was also read."
        : `${count(lost)} pieces were not read${failures.length ? `, and ${failures.map(([n]) => n).join(", ")} failed` : ""}. The clients' streams did not suffer: observation gives way first.`),
      h("dl.figures", null,
        figure("our delay p50", seconds(quantile(ours, 0.5)), `Reading a chunk to having written it, median of the last ${ours.length} exchanges' medians`),
        figure("our delay p99", seconds(quantile(ours, 0.99))),
        figure("relay lag, worst", lags.length ? `${Math.max(...lags).toFixed(2)} ms` : NONE, "Longest that a relay's loop was late"),
        figure("observer lag", seconds(o.loop_lag_s), "How late the observer's loop was lately; it delays this page, not the streams"),
        figure("batches missed", count(o.batches_missed)), figure("bytes missed", bytes(o.bytes_missed)),
        figure("observer restarts", count(o.restarts)), figure("exchanges seen", count(s.exchanges)), figure("connections", count(s.connections)), figure("up", seconds(s.uptime_s))),
      panel("Relays", h("span.quiet", null, `${s.proxy} → ${s.upstream}`), table("Relays", [["relay"], ["memory", "num"], ["cpu", "num"], ["open", "num", "Connections now"], ["total", "num"], ["lag, worst", "num"],
        ["dropped", "num", "Batches that the observer did not take in time"], ["skipped", "num", "Bytes of bodies too large to copy"], ["refused", "num"], ["pending", "num", "Copied, not yet taken"], ["state"]],
      s.relays.map((r) => [String(r.relay), bytes(r.rss_bytes), seconds(r.cpu_s), count(r.connections_open), count(r.connections_total), r.loop_lag_max_ms == null ? NONE : `${r.loop_lag_max_ms.toFixed(2)} ms`,
        bad(r.dropped_batches), bytes(r.skipped_bytes), bad(r.refused_total), bytes(r.pending_bytes), r.draining ? pill("draining", "suspect") : pill("serving", "good")]))),
      h("div.columns", null,
        panel("Observer", null, facts([["process", o.pid], ["memory", bytes(o.rss_bytes)], ["cpu", seconds(o.cpu_s)], ["batches read", count(o.batches)], ["connections given up", o.connections_given_up],
          ["sink failures", failures.map(([n, c]) => `${n} ${c}`).join(", ") || "none"], ["troubles", troubles.map(([n, c]) => `${n} ${c}`).join(", ") || "none"], ["/api/ps failures", o.residency_failures]])),
        s.store && panel("Store", s.store.state === "ok" ? pill("ok", "good") : pill(s.store.state, "violation"), s.store.message && h("p.because", null, `${s.store.message} ${s.store.remedy ?? ""}`),
          facts([["file", s.store.path ?? "in memory"], ["size", bytes(s.store.size_bytes)], ["exchanges written", count(s.store.written)], ["commits", count(s.store.commits)], ["a commit takes", seconds(s.store.commit_s)],
            ["queued", count(s.store.queued)], ["dropped", bad(s.store.dropped)], ["rejected", bad(s.store.rejected)], ["recoveries", count(s.store.recoveries)], ["deleted by age or size", count(s.store.deleted)]])),
        s.sessions && panel("Sessions", null, facts(Object.entries(s.sessions).map(([k, v]) => [k.replaceAll("_", " "), typeof v === "number" ? count(v) : String(v)]))),
        panel("Settings", null, facts([["version", s.version], ["started", clock(s.started_at)], ["proxy", s.proxy], ["upstream", s.upstream], ["guard", s.guard], ["content captured", s.capture_content ? "yes" : "no"]]))),
      h("p.quiet", null, "The same as numbers: ", h("a", { href: "/metrics" }, "/metrics"), " · ", h("a", { href: "/api/v1/status" }, "/api/v1/status")));
  }

  let abort = new AbortController();
  async function ask() {
    try {
      render(await get("status", { signal: abort.signal }));
    } catch (error) {
      if (error.name !== "AbortError") fill(body, failed(error));
    }
  }
  const timer = setInterval(() => { if (!document.hidden && !place.querySelector(":focus-within .scroll:focus")) ask(); }, 2000);
  ask();
  return { title: "Health", close: () => { clearInterval(timer); abort.abort(); abort = null; } };
}

function bad(n) {
  return n > 0 ? h("span.red", null, count(n)) : count(n);
}

function facts(pairs) {
  return h("dl.pairs", null, pairs.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value ?? NONE))));
}
