// A canvas in device pixels, and the theme's colours for it: canvases cannot read CSS by themselves.

// canvas → [width, height, zoom]: asking the element itself, its zoom too, would force a layout for each row and frame
const sizes = new WeakMap();
const watch = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) sizes.set(target, [contentRect.width, contentRect.height, zoomOf(target)]);
});

function zoomOf(canvas) {
  return canvas.currentCSSZoom ?? 1;
}

function sizeOf(canvas) {
  let size = sizes.get(canvas);
  if (!size) {
    size = [canvas.clientWidth, canvas.clientHeight, zoomOf(canvas)];
    sizes.set(canvas, size);
    watch.observe(canvas);
  }
  return size;
}

/** Fits the bitmap to its box; returns {context, width, height} in CSS pixels, or null while it has no size. */
export function fit(canvas) {
  const [width, height, zoom] = sizeOf(canvas);
  if (!width || !height) return null;
  const ratio = (window.devicePixelRatio || 1) * zoom;
  const w = Math.round(width * ratio);
  const hgt = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== hgt) {
    canvas.width = w;
    canvas.height = hgt;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

let known = null;

/** The colours of the theme that is on. */
export function colours() {
  if (known) return known;
  const css = getComputedStyle(document.documentElement);
  const of = (name) => css.getPropertyValue(`--${name}`).trim();
  known = {
    text: of("k-text"), thinking: of("k-thinking"), tool: of("k-tool"), stall: of("k-stall"),
    line: of("line"), muted: of("muted"), ink: of("ink"), panel: of("panel"), wait: of("k-wait"),
  };
  return known;
}

export function forgetColours() {
  known = null;
}
