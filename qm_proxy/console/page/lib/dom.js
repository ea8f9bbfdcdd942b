// Elements from data. Text only ever becomes a text node: what a user or a model wrote cannot become markup.

/** h("a.row", {href, onclick, "aria-label"}, ...children): null and false children are left out. */
export function h(name, props, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  set(made, props);
  add(made, children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG. */
export function s(tag, props, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(props ?? {})) if (value != null) made.setAttribute(key, value);
  add(made, children);
  return made;
}

function set(element, props) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (value === true) element.setAttribute(key, "");
    else element.setAttribute(key, value);
  }
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child == null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Everything in `element` is replaced. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** Set text only if it differs: an unchanged node costs no layout. The text node stays: a new one each time is garbage. */
export function say(element, text) {
  const node = element.firstChild;
  if (node?.nodeType === Node.TEXT_NODE && node === element.lastChild) {
    if (node.data !== text) node.data = text;
  } else if (element.textContent !== text) element.textContent = text;
}

const PACE_MS = 50; // twenty frames a second: smooth, and the machine is left to the model

/** Runs `work(now_ms)` in a coming frame, at most once each `PACE_MS`, however often `ask` is called; → {ask, stop}. */
export function paced(work) {
  let timer = 0;
  let frame = 0;
  let last = 0;
  const run = (now) => { frame = 0; last = performance.now(); work(now); };
  const wake = () => { timer = 0; frame = requestAnimationFrame(run); };
  return {
    ask() {
      if (!timer && !frame) timer = setTimeout(wake, Math.max(0, last + PACE_MS - performance.now()));
    },
    stop() {
      clearTimeout(timer);
      cancelAnimationFrame(frame);
      timer = frame = 0;
    },
  };
}

/** One child per item, keyed, moved and not rebuilt: make(item) → element, update(element, item). */
export function keyed(parent, items, key, make, update) {
  const had = new Map();
  for (const child of parent.children) had.set(child.dataset.key, child);
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let child = had.get(name);
    if (child) had.delete(name);
    else {
      child = make(item);
      child.dataset.key = name;
    }
    update?.(child, item);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const gone of had.values()) gone.remove();
}

/** Arrow keys, Home and End move the focus among `selector` inside `element`. */
export function arrows(element, selector) {
  element.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    const rows = [...element.querySelectorAll(selector)];
    const now = rows.indexOf(document.activeElement.closest(selector));
    if (now < 0) return;
    event.preventDefault();
    rows[Math.max(0, Math.min(rows.length - 1, now + step))].focus();
  });
  return element;
}

/** A table in a region that scrolls sideways by itself. columns: [title, className?, hint?]; rows: arrays of children. */
export function table(label, columns, rows, extra = "") {
  const head = columns.map(([title, kind, hint]) => h("th", { scope: "col", class: kind, title: hint }, title));
  const body = rows.map((row) => {
    const { cells, ...props } = Array.isArray(row) ? { cells: row } : row;
    return h("tr", props, cells.map((cell, i) => h(i === 0 ? "th" : "td", { class: columns[i][1], scope: i === 0 ? "row" : null }, cell)));
  });
  return h("div.scroll", { role: "region", "aria-label": label, tabindex: "0" },
    h(`table${extra}`, null, h("thead", null, h("tr", null, head)), h("tbody", null, body)));
}

export function panel(title, aside, ...children) {
  const id = `p${panel.n = (panel.n ?? 0) + 1}`;
  return h("section.panel", { "aria-labelledby": id },
    h("div.head", null, h("h2", { id }, title), h("div.aside", null, aside)), children);
}
