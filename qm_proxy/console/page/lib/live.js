// What happens, as it happens: the event feed folded into a small bounded state, told to the view once per frame.
//
// - EventSource reconnects by itself and says the last event it saw, so that short breaks leave no hole; when the console
//   says that events are gone (`missed`), or is another one, the lists are read again.
// - Listeners run in a frame, at most twenty times a second, once for however many events came in between.

import { askForToken, get } from "./api.js";
import { paced } from "./dom.js";

const RECENT = 60;
const FINDINGS = 60;
const RUNS = 50;
const SAMPLES = 600; // of one stream's strip: two minutes at five a second

export const live = {
  inFlight: new Map(), // id → exchange in flight, with `samples` and `seen_ms`
  recent: [], // closed, newest first
  findings: [], // newest first
  runs: new Map(), // id → the latest told of a probe's run
  loaded: false,
  connected: false,
};

const listeners = new Set();
let changed = new Set();

/** listener(changed: Set of "flight", "recent", "findings", "link", "run", "reload"); returns its own removal. */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const telling = paced(() => {
  const told = changed;
  changed = new Set();
  for (const listener of [...listeners]) listener(told);
});

function tell(...kinds) {
  for (const kind of kinds) changed.add(kind);
  telling.ask();
}

// --- the events -----------------------------------------------------------------------------------------------------------

function entry(given) {
  return { phase: "waiting", chunks: 0, findings: [], ...given, samples: [], stalls: [], seen_ms: performance.now() };
}

function opened(data) {
  if (live.inFlight.has(data.id) || live.recent.some((x) => x.id === data.id)) return;
  live.inFlight.set(data.id, entry(data));
  tell("flight");
}

function progress(data) {
  const one = live.inFlight.get(data.id);
  if (!one) return;
  Object.assign(one, data);
  one.seen_ms = performance.now();
  one.samples.push([data.elapsed_s, data.chunks, data.phase]);
  if (one.samples.length > SAMPLES) one.samples.splice(0, SAMPLES / 4);
  tell("flight");
}

function closed(data) {
  live.inFlight.delete(data.id);
  const at = live.recent.findIndex((x) => x.id === data.id);
  if (at >= 0) live.recent[at] = data;
  else live.recent.unshift(data);
  if (live.recent.length > RECENT) live.recent.length = RECENT;
  tell("flight", "recent");
}

function finding(data) {
  const at = live.findings.findIndex((x) => x.id === data.id);
  if (at >= 0) live.findings[at] = data;
  else live.findings.unshift(data);
  if (live.findings.length > FINDINGS) live.findings.length = FINDINGS;
  const one = live.inFlight.get(data.exchange_id);
  if (one) {
    if (!one.findings.some((f) => f.id === data.id)) one.findings = [...one.findings, data];
    if (data.kind === "stall" && data.t_s != null) one.stalls.push([data.t_s, data.evidence?.gap_s ?? null]);
  }
  tell("findings", "flight");
}

// --- the connection -------------------------------------------------------------------------------------------------------

function run(data) {
  live.runs.delete(data.id);
  live.runs.set(data.id, data);
  if (live.runs.size > RUNS) live.runs.delete(live.runs.keys().next().value);
  tell("run");
}

const EVENTS = { "exchange.opened": opened, "exchange.progress": progress, "exchange.closed": closed, finding, run };
let source = null;

export function connect() {
  source?.close();
  source = new EventSource("/api/v1/events");
  for (const [name, fold] of Object.entries(EVENTS)) source.addEventListener(name, (e) => fold(JSON.parse(e.data)));
  source.addEventListener("missed", reload);
  source.addEventListener("open", () => {
    live.connected = true;
    tell("link");
    reload();
  });
  source.addEventListener("error", async () => {
    live.connected = false;
    tell("link");
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    source = null;
    setTimeout(async () => {
      const answer = await fetch("/api/v1/status").catch(() => null);
      if (answer?.status === 401) await askForToken();
      if (!source) connect();
    }, 1000);
  });
}

let reloading = null;

/** Reads what is in flight, the latest closed and the latest findings; events that came meanwhile are kept. */
export function reload() {
  reloading ??= readLists().catch(() => {}).finally(() => { reloading = null; });
  return reloading;
}

async function readLists() {
  const before = new Set(live.inFlight.keys());
  const [exchanges, findings] = await Promise.all([get(`exchanges?limit=${RECENT}`), get(`findings?limit=${FINDINGS}`)]);
  for (const item of exchanges.items) {
    before.delete(item.id);
    if (item.ending !== null) {
      if (!live.recent.some((x) => x.id === item.id)) live.recent.push(item);
      live.inFlight.delete(item.id);
    } else if (!live.inFlight.has(item.id) && !live.recent.some((x) => x.id === item.id)) {
      const one = entry(item);
      one.elapsed_s = (Date.now() - Date.parse(item.started_at)) / 1000;
      live.inFlight.set(item.id, one);
    }
  }
  for (const id of before) await recheck(id);
  live.recent.sort((a, b) => endOf(b) - endOf(a));
  live.recent.length = Math.min(live.recent.length, RECENT);
  for (const item of findings.items) if (!live.findings.some((x) => x.id === item.id)) live.findings.push(item);
  live.findings.sort((a, b) => (a.id < b.id ? 1 : -1));
  live.findings.length = Math.min(live.findings.length, FINDINGS);
  live.loaded = true;
  tell("flight", "recent", "findings", "reload");
}

/** In flight here, but not on the list's first page: old and still going, or ended while nobody told. */
async function recheck(id) {
  const item = await get(`exchanges/${id}`).catch(() => null);
  if (item === null || item.ending !== null) {
    live.inFlight.delete(id);
    if (item && !live.recent.some((x) => x.id === id)) live.recent.push(item);
  }
}

function endOf(x) {
  return Date.parse(x.started_at) + (x.total_s ?? 0) * 1000;
}

/** Seconds since the stream began, as of now. */
export function elapsed(one) {
  return (one.elapsed_s ?? 0) + (performance.now() - one.seen_ms) / 1000;
}
