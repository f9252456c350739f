/** Parts that the charts share: a canvas for many marks, an SVG above it for few, axes, colours of the theme. */

import { element, refill, shape } from "./dom.js";

/** A drawing area with the size of its host element: marks on `canvas`, axes and the selection on `svg`. */
export class Area {
  constructor(host, { height, margin, redraw, min = 160 }) {
    this.host = host;
    this.margin = margin;
    this.wanted = height;
    this.min = min;
    this.canvas = element("canvas", { class: "marks" });
    this.svg = shape("svg", { class: "axes", "aria-hidden": "true", focusable: "false" });
    host.append(this.canvas, this.svg);
    this.measure();
    new ResizeObserver(() => {
      if (this.measure()) redraw();
    }).observe(host);
  }

  /** Takes the host's size; returns true if it has changed. */
  measure() {
    const width = Math.max(this.min, this.host.clientWidth);
    const height = typeof this.wanted === "function" ? this.wanted(width) : this.wanted;
    const ratio = window.devicePixelRatio || 1;
    if (width === this.width && height === this.height && ratio === this.ratio) return false;
    Object.assign(this, { width, height, ratio });
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.host.style.height = `${height}px`;
    for (const node of [this.canvas, this.svg]) {
      node.style.width = `${width}px`;
      node.style.height = `${height}px`;
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    return true;
  }

  get left() {
    return this.margin.left;
  }

  get right() {
    return this.width - this.margin.right;
  }

  get top() {
    return this.margin.top;
  }

  get bottom() {
    return this.height - this.margin.bottom;
  }

  /** The canvas, cleared, in CSS pixels. */
  marks() {
    const context = this.canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.globalAlpha = 1;
    return context;
  }
}

/** Grid lines and labels: `x` and `y` are {scale, ticks, text, title}. */
export function axes(area, { x, y }) {
  const group = shape("g", { class: "axis" });
  for (const tick of y.ticks) {
    const at = y.scale(tick);
    group.append(
      shape("line", { class: "grid", x1: area.left, x2: area.right, y1: at, y2: at }),
      shape("text", { x: area.left - 8, y: at, dy: "0.32em", "text-anchor": "end" }, y.text(tick)),
    );
  }
  for (const tick of x.ticks) {
    const at = x.scale(tick);
    group.append(
      shape("line", { class: "grid", x1: at, x2: at, y1: area.top, y2: area.bottom }),
      shape("text", { x: at, y: area.bottom + 18, "text-anchor": "middle" }, x.text(tick)),
    );
  }
  group.append(
    shape("line", { class: "frame", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }),
    shape("line", { class: "frame", x1: area.left, x2: area.left, y1: area.top, y2: area.bottom }),
  );
  if (x.title) {
    const middle = (area.left + area.right) / 2;
    group.append(shape("text", { class: "title", x: middle, y: area.bottom + 38, "text-anchor": "middle" }, x.title));
  }
  if (y.title) group.append(shape("text", { class: "title", x: 2, y: area.top - 12 }, y.title));
  return group;
}

/** A front as steps through `places` [x, y], by ascending x, that ends at x = `end`: the best accuracy at each cost. */
export function staircase(places, end) {
  let path = "";
  let best = null;
  for (const [x, y] of places) {
    if (best !== null && y > best) continue;
    path += path ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}`;
    best = y;
  }
  return `${path}H${end.toFixed(1)}`;
}

/** The theme's colours, by their names in page.css. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    kinds: { tuned: colour("tuned"), searched: colour("searched"), below: colour("below") },
    methods: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => colour(`method-${i}`)),
    ramp: [0, 1, 2, 3, 4, 5].map((i) => colour(`ramp-${i}`)),
    ink: colour("ink"),
    quiet: colour("quiet"),
    surface: colour("surface"),
    accent: colour("accent"),
  };
}

/** Adds the outline of a mark to the path; each kind has its own shape and its own colour. */
export function trace(path, kind, x, y, size) {
  if (kind === "tuned") {
    const reach = size * 1.3;
    path.moveTo(x, y - reach);
    path.lineTo(x + reach, y);
    path.lineTo(x, y + reach);
    path.lineTo(x - reach, y);
    path.closePath();
  } else if (kind === "below") {
    path.moveTo(x - size, y - size * 0.8);
    path.lineTo(x + size, y - size * 0.8);
    path.lineTo(x, y + size);
    path.closePath();
  } else {
    path.moveTo(x + size, y);
    path.arc(x, y, size, 0, 2 * Math.PI);
  }
}

/** The same mark as a small image for legends and lists; "failed", a cross, occurs only there. */
export function glyph(kind, colourClass = "") {
  const outline = {
    tuned: "M7 1.4L12.6 7L7 12.6L1.4 7Z",
    below: "M2.8 3.6H11.2L7 11.2Z",
    searched: "M11.2 7A4.2 4.2 0 1 1 2.8 7A4.2 4.2 0 1 1 11.2 7Z",
    failed: "M3 3L11 11M11 3L3 11",
  };
  const classes = `glyph ${kind} ${colourClass}`.trim();
  return shape(
    "svg",
    { class: classes, viewBox: "0 0 14 14", "aria-hidden": "true" },
    shape("path", { d: outline[kind] }),
  );
}

/** A box beside the pointer that holds `lines`, [term, text] or [title]; null hides it. */
export class Tip {
  constructor(host) {
    this.host = host;
    this.box = element("div", { class: "tip", "aria-hidden": "true" });
    this.box.hidden = true;
    host.append(this.box);
  }

  show(lines, x, y) {
    if (lines === null) {
      this.box.hidden = true;
      return;
    }
    refill(
      this.box,
      lines.map(([term, text]) =>
        text === undefined
          ? element("div", { class: "tip-title" }, term)
          : element("div", { class: "tip-line" }, element("span", {}, term), element("span", {}, text))
      ),
    );
    this.box.hidden = false;
    const width = this.box.offsetWidth;
    const height = this.box.offsetHeight;
    const right = x + 16 + width <= this.host.clientWidth;
    const left = right ? x + 16 : Math.max(4, x - 16 - width);
    const top = Math.min(Math.max(4, y - height / 2), Math.max(4, this.host.clientHeight - height - 4));
    this.box.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }
}
