// A list of any length: only the rows in sight exist. Rows have one height; pages are fetched as the end comes near.
//
// - A row that stays in sight keeps its element; what is not in sight yet is made in a later task, so that none grows long.

import { fill, h } from "./dom.js";

const AHEAD = 12; // rows drawn beyond each edge
const AT_ONCE = 16; // rows made in one task

/** source: async iterator of pages; row(item) → element. `prepend` puts new items on top without moving what is read. */
export function virtualList(label, source, row, { empty, onError, onEmpty = () => {} }) {
  const list = h("ul.vlist", { "aria-label": label });
  const spacer = h("div.vspace", null, list);
  const place = h("div.vscroll", { tabindex: "0", role: "region", "aria-label": `${label}, scrolls` }, spacer);
  const items = [];
  const known = new Set();
  let ended = false;
  let loading = false;
  let tall = 0; // of a row; read again when the list's own size changes
  let rest = 0; // the task that makes the rows still missing
  const made = new Map(); // item → its row

  function height() {
    tall ||= parseFloat(getComputedStyle(place).getPropertyValue("--row")) || 34;
    return tall;
  }

  async function more() {
    if (loading || ended) return;
    loading = true;
    try {
      const { value, done } = await source.next();
      ended = Boolean(done);
      for (const item of value ?? []) if (!known.has(item.id)) { known.add(item.id); items.push(item); }
    } catch (error) {
      ended = true;
      if (error.name !== "AbortError") onError(error);
    }
    loading = false;
    draw();
    if (!ended && wantsMore()) more();
  }

  function wantsMore() {
    return place.scrollTop + place.clientHeight * 2 > items.length * height();
  }

  function rowOf(item, at) {
    const element = h("li", null, row(item));
    made.set(item, element);
    number(element, at);
  }

  function number(element, at) {
    const size = ended ? String(items.length) : "-1";
    if (element.dataset.at === String(at) && element.getAttribute("aria-setsize") === size) return;
    element.dataset.at = String(at);
    element.setAttribute("aria-posinset", String(at + 1));
    element.setAttribute("aria-setsize", size);
  }

  /** Rows in sight first, those beyond the edges after; at most `AT_ONCE` new ones in this task, the others in the next.
   *  `focused` is made whatever else is. */
  function draw(focused = -1) {
    clearTimeout(rest);
    rest = 0;
    height();
    const top = Math.floor(place.scrollTop / tall);
    const bottom = Math.ceil((place.scrollTop + place.clientHeight) / tall);
    const from = Math.max(0, Math.min(top, items.length - 1) - AHEAD);
    const to = Math.min(items.length, bottom + AHEAD);
    const wanted = items.slice(from, to);
    const keep = new Set(wanted);
    for (const [item, element] of made) {
      if (keep.has(item)) continue;
      element.remove();
      made.delete(item);
    }
    spacer.style.height = `${Math.max(items.length, 1) * tall}px`;
    let budget = AT_ONCE;
    const seen = wanted.map((item, i) => [item, from + i]);
    const inSight = ([, at]) => at >= top && at < bottom;
    for (const [item, at] of [...seen.filter(inSight), ...seen.filter((one) => !inSight(one))]) {
      const had = made.get(item);
      if (had) number(had, at);
      else if (budget > 0 || at === focused) { rowOf(item, at); budget -= 1; } else rest = 1;
    }
    let next = list.firstElementChild;
    for (const [item, at] of seen) {
      const element = made.get(item);
      if (!element) continue;
      element.style.setProperty("transform", `translateY(${at * tall}px)`);
      if (element === next) next = next.nextElementSibling;
      else list.insertBefore(element, next);
    }
    if (rest) rest = setTimeout(() => draw());
    if (items.length) list.querySelector("li.quiet")?.remove();
    else if (ended) fill(list, h("li.quiet", null, empty));
    onEmpty(!items.length && ended);
  }

  place.addEventListener("scroll", () => { draw(); if (wantsMore()) more(); }, { passive: true });
  place.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const now = Number(document.activeElement.closest("li")?.dataset.at ?? -1);
    const at = Math.max(0, Math.min(items.length - 1, now + step));
    const tall = height();
    if (at * tall < place.scrollTop) place.scrollTop = at * tall;
    else if ((at + 1) * tall > place.scrollTop + place.clientHeight) place.scrollTop = (at + 1) * tall - place.clientHeight;
    draw(at);
    made.get(items[at])?.querySelector("a")?.focus({ preventScroll: true });
  });
  const watch = new ResizeObserver(() => { tall = 0; draw(); if (wantsMore()) more(); });
  watch.observe(place);

  function renew(item) {
    const at = items.findIndex((x) => x.id === item.id);
    if (at < 0 || items[at] === item) return;
    const had = made.get(items[at]);
    const focused = had?.contains(document.activeElement);
    had?.remove();
    made.delete(items[at]);
    items[at] = item;
    if (!focused) return;
    draw(at);
    made.get(item)?.querySelector("a")?.focus({ preventScroll: true });
  }

  function prepend(fresh) {
    const added = fresh.filter((item) => !known.has(item.id));
    for (const item of fresh) if (known.has(item.id)) renew(item);
    for (const item of added) known.add(item.id);
    items.unshift(...added);
    if (added.length && place.scrollTop > 0) place.scrollTop += added.length * height();
    draw();
  }

  more();
  return { element: place, prepend, length: () => items.length, close: () => { watch.disconnect(); clearTimeout(rest); } };
}
