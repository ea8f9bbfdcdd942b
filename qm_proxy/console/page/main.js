// Boot: the route after the # chooses a view; each view is a module loaded when first shown.
//
// A view is `show(place, parts, query)` → {title, close?, theme?}: it fills `place` and undoes what it began in `close`.

import { forgetColours } from "./draw/canvas.js";
import { fill, h, say } from "./lib/dom.js";
import { connect, listen, live } from "./lib/live.js";

const VIEWS = {
  now: () => import("./views/now.js"),
  exchanges: () => import("./views/exchanges.js"),
  exchange: () => import("./views/exchange.js"),
  sessions: () => import("./views/sessions.js"),
  session: () => import("./views/session.js"),
  models: () => import("./views/models.js"),
  probes: () => import("./views/probes.js"),
  run: () => import("./views/run.js"),
  compare: () => import("./views/compare.js"),
  health: () => import("./views/health.js"),
  connect: () => import("./views/connect.js"),
};
const TAB = { exchange: "exchanges", session: "sessions", run: "probes", compare: "probes" };

const main = document.getElementById("main");
let shown = null;
let turn = 0;

async function go() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name = "now", ...parts] = path.split("/").filter(Boolean).map(decodeURIComponent);
  const mine = ++turn;
  const load = VIEWS[name];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${TAB[name] ?? name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const tab = document.querySelector("nav a[aria-current]");
  if (tab) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 40; // in sight where the tabs scroll
  let view = null;
  let wrong = "There is no such view";
  try {
    if (load) view = await load();
  } catch {
    wrong = "The console does not answer: this view could not be loaded";
  }
  if (mine !== turn) return;
  shown?.close?.();
  shown = null;
  main.dataset.view = name;
  if (!view) {
    fill(main, h("div.empty", null, h("h1", null, wrong), h("p", null, h("a", { href: "#/now" }, "Back to Now"))));
    return;
  }
  main.replaceChildren();
  shown = view.show(main, parts, new URLSearchParams(query ?? ""));
  document.title = `${shown.title} · qm-proxy`;
  main.scrollTop = 0;
  window.scrollTo(0, 0);
  if (mine > 1) main.focus({ preventScroll: true });
}

// --- the theme ------------------------------------------------------------------------------------------------------------

const button = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function theme() {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  button.textContent = isDark ? "☾" : "☀";
  button.setAttribute("aria-label", isDark ? "Colour theme: dark; switch to light" : "Colour theme: light; switch to dark");
  forgetColours();
  shown?.theme?.();
  return isDark;
}

button.addEventListener("click", () => {
  const next = (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches) ? "light" : "dark";
  root.dataset.theme = next;
  try { localStorage.setItem("qm-theme", next); } catch { /* stays for this visit */ }
  theme();
});
dark.addEventListener("change", theme);
theme();

// --- the connection, and what a screen reader hears ---------------------------------------------------------------------------

const link = document.getElementById("link");
const said = document.getElementById("said");
let lastSaid = null;

listen((changed) => {
  if (changed.has("link")) {
    link.classList.toggle("on", live.connected);
    say(link.lastElementChild, live.connected ? "live" : "reconnecting");
  }
  if (changed.has("findings") && live.findings.length && live.loaded) {
    const newest = live.findings[0];
    if (lastSaid !== null && newest.id > lastSaid) say(said, newest.summary);
    lastSaid = newest.id;
  }
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash belongs to the routes
  main.focus();
});
addEventListener("hashchange", go);
connect();
go();
