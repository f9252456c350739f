/** Parallel coordinates: the settings of a method's trials, and their results. */

import { Area, palette } from "./chart.js";
import { element, named, refill, shape } from "./dom.js";
import { count, known, number } from "./format.js";
import { linear } from "./scale.js";
import { whenSeen } from "./view.js";

const SLICE_MS = 9;
/* Milliseconds of drawing before the browser handles events: thousands of lines must not delay a key. */
const ALWAYS = [
  { key: "allocation", title: "widths by" },
  { key: "epochs", title: "epochs" },
  { key: "flops_fraction", title: "FLOPs, %", factor: 100 },
  { key: "params_fraction", title: "parameters, %", factor: 100 },
  { key: "latency_fraction", title: "latency, %", factor: 100 },
  { key: "accuracy_after_cut", title: "after cut, %", factor: 100 },
  { key: "accuracy_after_repair", title: "after repair, %", factor: 100 },
  { key: "val_accuracy", title: "validation, %", factor: 100 },
];
const NOT_AT_FIRST = ["params_fraction", "accuracy_after_cut", "accuracy_after_repair", "epochs"];
const MOST_AT_FIRST = 7;

/** Ranges on the axes, which the filter of the page applies. */
class Brushes {
  constructor(lines, ranges) {
    this.lines = lines;
    this.ranges = ranges;
  }

  passes(i) {
    const line = this.lines.get(i);
    if (line === undefined) return false;
    for (const [key, [low, high]] of this.ranges) {
      const at = line[key];
      if (at === undefined || at < low - 1e-9 || at > high + 1e-9) return false;
    }
    return true;
  }
}

export class Parallel {
  constructor(view) {
    this.view = view;
    this.host = named("parallel-chart");
    this.list = named("parallel-method");
    this.ranges = new Map();
    this.hidden = null;
    this.area = new Area(this.host, {
      height: 300,
      margin: { left: 40, right: 40, top: 40, bottom: 16 },
      redraw: () => this.draw(),
    });
    const draw = whenSeen(this.host, () => this.draw());
    view.on(["rows"], () => this.#methods());
    view.on(["rows", "theme"], () => {
      this.stale = true;
      draw();
    });
    view.on(["visible", "selected"], draw);
    view.on(["brushes"], () => {
      if (view.get("brushes") === null && this.ranges.size) {
        this.ranges.clear();
        draw();
      }
    });
    this.list.addEventListener("input", () => this.#choose());
    named("parallel-clear").addEventListener("click", () => this.#brush(null));
    this.host.addEventListener("pointerdown", (event) => this.#drag(event));
  }

  #methods() {
    const methods = this.view.get("methods");
    const shown = [...this.list.options].slice(1).map((option) => option.value);
    if (methods.join("\n") === shown.join("\n")) return;
    const chosen = this.list.value;
    refill(this.list, this.list.options[0], methods.map((name) => element("option", { value: name }, name)));
    this.list.value = methods.includes(chosen) ? chosen : "";
  }

  #choose() {
    this.hidden = null;
    this.stale = true;
    this.ranges.clear();
    this.view.set({ brushes: null });
    this.draw();
  }

  draw() {
    if (!this.view.get("run")) return;
    const started = performance.now();
    if (this.stale) {
      this.#prepare();
      this.stale = false;
    }
    this.#axes();
    this.#lines();
    performance.measure("parallel", { start: started });
  }

  /** Chooses the trials and the axes; each value becomes a position in [0, 1] on its axis. */
  #prepare() {
    const trials = this.view.get("trials");
    const method = this.list.value;
    this.members = [];
    for (let i = 0; i < trials.length; i += 1) {
      if ((!method || trials.columns.method[i] === method) && known(trials.get(i, "val_accuracy"))) {
        this.members.push(i);
      }
    }
    this.known = this.#candidates(trials, method);
    if (this.hidden === null) {
      const settings = this.known.filter((axis) => axis.setting);
      const spare = new Set(settings.slice(MOST_AT_FIRST - 3).map((axis) => axis.key));
      this.hidden = new Set([...NOT_AT_FIRST, ...spare]);
    }
    this.lines = new Map(this.members.map((i) => [i, {}]));
    for (const axis of this.known) {
      for (const i of this.members) {
        const at = axis.place(axis.value(i));
        if (at !== undefined) this.lines.get(i)[axis.key] = at;
      }
    }
    const accuracies = this.members.map((i) => trials.get(i, "val_accuracy")).sort((a, b) => a - b);
    const cuts = [0.2, 0.4, 0.6, 0.8, 0.95].map((share) => accuracies[Math.floor(share * (accuracies.length - 1))]);
    this.bin = (i) => cuts.filter((cut) => trials.get(i, "val_accuracy") > cut).length;
    this.#menu();
  }

  #candidates(trials, method) {
    const axes = [];
    if (method) {
      const keys = new Set(this.members.flatMap((i) => Object.keys(trials.settings[i])));
      for (const key of keys) {
        axes.push(
          scaled({ key: `setting ${key}`, title: key, setting: true }, this.members, (i) => trials.settings[i][key]),
        );
      }
    } else axes.push(scaled({ key: "method", title: "method" }, this.members, (i) => trials.get(i, "method")));
    for (const axis of ALWAYS) {
      const factor = axis.factor ?? 1;
      const value = (
        i,
      ) => (typeof trials.get(i, axis.key) === "number" ? factor * trials.get(i, axis.key) : trials.get(i, axis.key));
      axes.push(scaled(axis, this.members, value));
    }
    // An axis of one value tells nothing, except for cost and accuracy, which people look for.
    return axes.filter((axis) => axis.distinct > 1 || ["flops_fraction", "val_accuracy"].includes(axis.key));
  }

  #menu() {
    const boxes = this.known.map((axis) => {
      const toggle = (event) => {
        if (event.target.checked) this.hidden.delete(axis.key);
        else {
          this.hidden.add(axis.key);
          this.ranges.delete(axis.key);
        }
        this.#brush(this.ranges);
      };
      const box = element("input", { type: "checkbox", checked: !this.hidden.has(axis.key), change: toggle });
      return element("label", {}, box, ` ${axis.title}`);
    });
    refill(named("parallel-axes"), boxes);
  }

  #axes() {
    const { area } = this;
    this.shown = this.known.filter((axis) => !this.hidden.has(axis.key));
    const across = linear([0, Math.max(1, this.shown.length - 1)], [area.left, area.right]);
    this.x = this.shown.map((_, k) => (this.shown.length === 1 ? (area.left + area.right) / 2 : across(k)));
    this.y = linear([0, 1], [area.bottom, area.top]);
    const focus = document.activeElement?.dataset?.handle;
    refill(area.svg, this.shown.map((axis, k) => this.#axis(axis, k)));
    area.svg.setAttribute("aria-hidden", "false");
    area.svg.setAttribute("role", "group");
    area.svg.setAttribute("aria-label", "Axes; each has two handles that select a range");
    if (focus) area.svg.querySelector(`[data-handle="${CSS.escape(focus)}"]`)?.focus();
    named("parallel-clear").disabled = this.ranges.size === 0;
    named("parallel-count").textContent = this.members.length
      ? `${count(this.members.length)} ${this.members.length === 1 ? "network" : "networks"}${
        this.ranges.size ? `, ${count(this.members.filter((i) => this.#bright(i)).length)} within the ranges` : ""
      }`
      : "No network of this method yet.";
  }

  #axis(axis, k) {
    const { area, y } = this;
    const x = this.x[k];
    const range = this.ranges.get(axis.key);
    const anchor = k === 0 && this.shown.length > 1 ? "start" : k === this.shown.length - 1 && k > 0 ? "end" : "middle";
    const shift = anchor === "start" ? -32 : anchor === "end" ? 32 : 0;
    const room = this.shown.length > 1 ? Math.max(5, Math.floor((this.x[1] - this.x[0]) / 7)) : 30;
    const title = shape("text", {
      class: "title",
      x: x + shift,
      y: k % 2 && room < 12 ? 12 : 26,
      "text-anchor": anchor,
    }, cut(axis.title, room < 12 ? room * 2 : room));
    title.append(shape("title", {}, axis.title));
    const group = shape(
      "g",
      { class: range ? "axis brushed" : "axis" },
      title,
      shape("line", { class: "frame", x1: x, x2: x, y1: area.top, y2: area.bottom }),
    );
    const flip = k === this.shown.length - 1 && k > 0;
    for (const [at, text] of axis.labels) {
      group.append(
        shape("line", { class: "frame", x1: x - 3, x2: x + 3, y1: y(at), y2: y(at) }),
        shape(
          "text",
          { class: "halo", x: flip ? x + 6 : x + 6, y: y(at), dy: "0.32em" },
          cut(text, flip ? 6 : Math.max(4, room - 2)),
        ),
      );
    }
    const [low, high] = range ?? [0, 1];
    if (range) {
      group.append(shape("rect", { class: "brush", x: x - 7, width: 14, y: y(high), height: y(low) - y(high) }));
    }
    group.append(this.#handle(axis, x, 0, low, high), this.#handle(axis, x, 1, low, high));
    return group;
  }

  /** An end of an axis's range: dragged, or moved by the arrow keys. */
  #handle(axis, x, end, low, high) {
    const at = end ? high : low;
    const label = `${axis.title}, ${end ? "highest" : "lowest"} to keep`;
    const key = (event) => {
      const fine = event.shiftKey ? 0.01 : 0.05;
      const to = {
        ArrowUp: at + fine,
        ArrowRight: at + fine,
        ArrowDown: at - fine,
        ArrowLeft: at - fine,
        PageUp: at + 0.2,
        PageDown: at - 0.2,
        Home: 0,
        End: 1,
      }[event.key];
      if (event.key === "Escape") this.ranges.delete(axis.key);
      else if (to === undefined) return;
      else this.#range(axis, end ? [low, Math.max(to, low)] : [Math.min(to, high), high]);
      event.preventDefault();
      this.#brush(this.ranges);
    };
    const y = this.y(at);
    return shape("rect", {
      class: "handle",
      x: x - 8,
      width: 16,
      y: y - (end ? 5 : 0),
      height: 5,
      rx: 2,
      tabindex: 0,
      role: "slider",
      "aria-label": label,
      "aria-orientation": "vertical",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": Math.round(100 * at),
      "aria-valuetext": axis.read(at),
      "data-handle": `${axis.key} ${end}`,
      keydown: key,
    });
  }

  #range(axis, [low, high]) {
    const range = [Math.max(0, low), Math.min(1, high)];
    if (range[0] <= 0 && range[1] >= 1) this.ranges.delete(axis.key);
    else this.ranges.set(axis.key, range);
  }

  #brush(ranges) {
    this.ranges = ranges ?? new Map();
    this.view.set({ brushes: this.ranges.size ? new Brushes(this.lines, new Map(this.ranges)) : null });
    this.draw();
  }

  #drag(event) {
    const box = this.host.getBoundingClientRect();
    const k = this.x.findIndex((x) => Math.abs(x - (event.clientX - box.left)) <= 14);
    if (k < 0 || event.button !== 0) return;
    const axis = this.shown[k];
    const range = this.ranges.get(axis.key) ?? [0, 1];
    const handle = event.target.dataset?.handle;
    const at = (one) => this.y.back(one.clientY - box.top);
    // A drag from a handle moves this end; a drag from elsewhere on the axis begins a new range.
    const fixed = handle ? (handle.endsWith("1") ? range[0] : range[1]) : at(event);
    const move = (one) => {
      this.#range(axis, [Math.min(fixed, at(one)), Math.max(fixed, at(one))]);
      this.#brush(this.ranges);
    };
    const stop = (one) => {
      this.host.removeEventListener("pointermove", move);
      if (!handle && Math.abs(at(one) - fixed) < 0.01) {
        this.ranges.delete(axis.key);
        this.#brush(this.ranges);
      }
    };
    this.host.setPointerCapture(event.pointerId);
    this.host.addEventListener("pointermove", move);
    this.host.addEventListener("pointerup", stop, { once: true });
  }

  #bright(i) {
    for (const [key, [low, high]] of this.ranges) {
      const at = this.lines.get(i)[key];
      if (at === undefined || at < low - 1e-9 || at > high + 1e-9) return false;
    }
    const visible = this.view.get("visible");
    return visible === null || visible[i] === 1;
  }

  /** Faint ones first, the most accurate last, by slices of time. */
  #lines() {
    const colours = palette();
    const context = this.area.marks();
    const work = (this.work = {});
    const bright = [];
    const faint = [];
    for (const i of this.members) (this.#bright(i) ? bright : faint).push(i);
    bright.sort((a, b) => this.bin(a) - this.bin(b));
    // Thousands of opaque lines would hide each other and the order of their accuracies.
    const clarity = Math.min(0.6, Math.max(0.12, 400 / bright.length));
    const selected = this.view.get("selected");
    const order = [...faint, ...bright];
    if (selected !== null && this.lines.has(selected)) order.push(selected);
    let next = 0;
    const slice = () => {
      if (this.work !== work) return;
      const until = performance.now() + SLICE_MS;
      while (next < order.length && performance.now() < until) {
        const end = Math.min(next + 40, order.length);
        for (; next < end; next += 1) {
          const i = order[next];
          const picked = next === faint.length + bright.length;
          const lit = next >= faint.length;
          context.globalAlpha = picked ? 1 : lit ? clarity : 0.05;
          context.strokeStyle = picked ? colours.accent : lit ? colours.ramp[this.bin(i)] : colours.quiet;
          context.lineWidth = picked ? 3 : 1;
          this.#stroke(context, this.lines.get(i));
        }
      }
      if (next < order.length) setTimeout(slice);
      else this.host.dataset.drawn = String(order.length);
    };
    delete this.host.dataset.drawn;
    slice();
  }

  #stroke(context, line) {
    context.beginPath();
    let open = false;
    this.shown.forEach((axis, k) => {
      const at = line[axis.key];
      if (at === undefined) open = false;
      else if (open) context.lineTo(this.x[k], this.y(at));
      else {
        context.moveTo(this.x[k], this.y(at));
        open = true;
      }
    });
    context.stroke();
  }
}

/** An axis of these values: numbers in proportion (by logarithm over more than two decades), others by rank. */
function scaled(axis, members, value) {
  const values = members.map(value).filter(known);
  const distinct = [...new Set(values)];
  const made = { ...axis, value, distinct: distinct.length };
  if (distinct.length && distinct.every((one) => typeof one === "number")) {
    const [low, high] = [Math.min(...distinct), Math.max(...distinct)];
    const wide = low > 0 && high / low > 100;
    const map = wide ? Math.log : (one) => one;
    const scale = linear([map(low), map(high)], [0, 1]);
    made.place = (one) => (typeof one === "number" ? (high === low ? 0.5 : scale(map(one))) : undefined);
    made.read = (at) => brief(wide ? Math.exp(scale.back(at)) : scale.back(at));
    made.labels = high === low ? [[0.5, brief(low)]] : [0, 0.5, 1].map((at) => [at, made.read(at)]);
  } else {
    const names = distinct.map(String).sort();
    made.place = (
      one,
    ) => (known(one) ? (names.length === 1 ? 0.5 : names.indexOf(String(one)) / (names.length - 1)) : undefined);
    made.labels = names.map((name) => [made.place(name), name]);
    made.read = (at) => names[Math.round(at * (names.length - 1))] ?? "";
  }
  return made;
}

/** Formats with three digits, because the labels of an axis are among the lines. */
function brief(value) {
  return number(Number(value.toPrecision(3)));
}

function cut(text, length) {
  return text.length > length ? `${text.slice(0, Math.max(1, length - 1))}…` : text;
}
