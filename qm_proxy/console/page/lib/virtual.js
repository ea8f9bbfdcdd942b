// A list of any length: only the rows in sight exist. Rows have one height; pages are fetched as the end comes near.

import { fill, h } from "./dom.js";

const AHEAD = 12; // rows drawn beyond each edge

/** source: async iterator of pages; row(item) → element. `prepend` puts new items on top without moving what is read. */
export function virtualList(label, source, row, { empty, onError, onEmpty = () => {} }) {
  const list = h("ul.vlist", { "aria-label": label });
  const spacer = h("div.vspace", null, list);
  const place = h("div.vscroll", { tabindex: "0", role: "region", "aria-label": `${label}, scrolls` }, spacer);
  const items = [];
  const known = new Set();
  let ended = false;
  let loading = false;
  let drawn = [-1, -1, -1];

  const height = () => parseFloat(getComputedStyle(place).getPropertyValue("--row")) || 34;

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
    draw(true);
    if (!ended && wantsMore()) more();
  }

  function wantsMore() {
    return place.scrollTop + place.clientHeight * 2 > items.length * height();
  }

  function draw(force = false) {
    const tall = height();
    const from = Math.max(0, Math.floor(place.scrollTop / tall) - AHEAD);
    const to = Math.min(items.length, Math.ceil((place.scrollTop + place.clientHeight) / tall) + AHEAD);
    if (!force && drawn[0] === from && drawn[1] === to && drawn[2] === tall) return;
    drawn = [from, to, tall];
    spacer.style.height = `${Math.max(items.length, 1) * tall}px`;
    const focused = document.activeElement?.closest?.("li")?.dataset.at;
    list.style.transform = `translateY(${from * tall}px)`;
    fill(list, items.slice(from, to).map((item, i) => {
      const made = h("li", { "aria-setsize": ended ? String(items.length) : "-1", "aria-posinset": String(from + i + 1), data: { at: String(from + i) } }, row(item));
      return made;
    }));
    if (focused !== undefined) list.querySelector(`li[data-at="${focused}"] a`)?.focus({ preventScroll: true });
    if (!items.length && ended) fill(list, h("li.quiet", null, empty));
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
    draw(true);
    list.querySelector(`li[data-at="${at}"] a`)?.focus({ preventScroll: true });
  });
  const watch = new ResizeObserver(() => { draw(true); if (wantsMore()) more(); });
  watch.observe(place);

  function prepend(fresh) {
    const added = fresh.filter((item) => !known.has(item.id));
    for (const item of fresh) if (known.has(item.id)) items[items.findIndex((x) => x.id === item.id)] = item;
    for (const item of added) known.add(item.id);
    items.unshift(...added);
    if (added.length && place.scrollTop > 0) place.scrollTop += added.length * height();
    draw(true);
  }

  more();
  return { element: place, prepend, length: () => items.length, close: () => watch.disconnect() };
}
