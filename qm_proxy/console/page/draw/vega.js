// Draws the charts of qm_proxy/charts. The bundle comes when the first chart is asked for; expressions are interpreted, not
// compiled, and nothing adds a style element, so that the Content-Security-Policy holds.

import { h } from "../lib/dom.js";

let bundle = null;
const specs = new Map();

function vega() {
  bundle ??= import("/page/vega.js").then(() => window.vegaEmbed).catch((error) => { bundle = null; throw error; });
  return bundle;
}

async function specOf(name) {
  if (!specs.has(name)) specs.set(name, fetch(`/page/charts/${name}.vl.json`).then((answer) => answer.json()));
  return structuredClone(await specs.get(name));
}

/** Vega knows no CSS zoom: on a wall the page is zoomed, its charts are not, and are drawn larger instead. */
const wall = matchMedia("(min-width: 3000px)");
const larger = () => (wall.matches ? 1.5 : 1);

function look(legend) {
  const css = getComputedStyle(document.documentElement);
  const of = (name) => css.getPropertyValue(`--${name}`).trim();
  const font = "system-ui, sans-serif";
  const words = { labelColor: of("muted"), titleColor: of("muted"), labelFont: font, titleFont: font, titleFontWeight: 500, labelFontSize: 11 * larger(), titleFontSize: 11 * larger() };
  return {
    background: of("panel"), font,
    axis: { ...words, gridColor: of("line"), domainColor: of("line"), tickColor: of("line") },
    axisX: { grid: false, labelOverlap: "greedy", labelSeparation: 8, tickCount: 10 },
    legend: { ...words, disable: !legend, orient: "top", labelColor: of("ink"), symbolType: "square" },
    title: { color: of("ink"), font },
    view: { stroke: null },
  };
}

/** A figure that holds the chart; `draw()` makes or renews it, `png()` gives it as a Blob, `close()` ends it. */
export function chart(name, rows, label, { height = 180, fitTime = false, legend = true } = {}) {
  const place = h("div.vega", { role: "img", "aria-label": label, style: { "min-height": `${height + 60}px` } });
  const tip = h("div.tip", { "aria-hidden": "true" });
  const figure = h("figure", null, place, tip);
  let view = null;
  let closed = false;

  async function draw() {
    try {
      const [embed, spec] = await Promise.all([vega(), specOf(name)]);
      if (closed) return;
      spec.data = { name: "rows", values: rows };
      spec.width = "container";
      spec.height = height * larger();
      spec.autosize = { type: "fit-x", contains: "padding" };
      if (fitTime) spec.encoding.x = { ...spec.encoding.x, scale: { zero: false, nice: false } };
      recolour(spec);
      const made = await embed(place, spec, {
        actions: false, ast: true, renderer: "canvas", defaultStyle: false, logLevel: 1, config: look(legend), tooltip: (_, event, __, value) => hint(event, value),
      });
      view?.finalize();
      view = made.view;
      place.style.minHeight = "";
      if (closed) view.finalize();
    } catch (error) {
      place.textContent = `The chart could not be drawn: ${error.message}`;
    }
  }

  function hint(event, value) {
    tip.classList.toggle("on", value != null && value !== "");
    if (value == null || value === "") return;
    tip.textContent = typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k}: ${v}`).join("\n") : String(value);
    const box = figure.getBoundingClientRect();
    const zoom = figure.currentCSSZoom ?? 1;
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - 150 * zoom) / zoom}px`;
    tip.style.top = `${(event.clientY - box.top + 12) / zoom}px`;
  }

  async function png() {
    if (!view) await draw();
    const canvas = await view.toCanvas(2);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  return { element: figure, draw, png, close: () => { closed = true; view?.finalize(); view = null; } };
}

/** The specs' own colours, in the theme's shade. */
function recolour(spec) {
  const css = getComputedStyle(document.documentElement);
  const shade = { "#4c78a8": "k-text", "#b279a2": "k-thinking", "#54a24b": "k-tool", "#e45756": "k-stall" };
  const walk = (node) => {
    for (const [key, value] of Object.entries(node)) {
      if (typeof value === "string" && shade[value]) node[key] = css.getPropertyValue(`--${shade[value]}`).trim();
      else if (value && typeof value === "object" && key !== "data") walk(value);
    }
  };
  walk(spec);
}
