/** The fronts of the chosen runs in one chart: a line and a mark of its own for each run. */

import { Area, axes, staircase, Tip } from "./chart.js";
import { element, named, refill, shape } from "./dom.js";
import { epochsText, known, number, percent, short } from "./format.js";
import { byError, errorTicks, linear, ticks } from "./scale.js";
import { COST_TITLES, COSTS } from "./trials.js";

const REACH = 26;
/* Pixels from the pointer within which a network is meant. */
const COLOURS = 8;
const UNITS = {
  flops: "FLOPs of one image",
  params: "parameters",
  latency: "predicted latency, ms",
  memory: "peak activation bytes of one image",
};
const FIELDS = { flops: "flops", params: "params", latency: "latency_ms", memory: "memory_bytes" };

/** Outlines of the marks around [x, y]; the next run has the next one, as well as the next colour. */
const MARKS = [
  (x, y, r) => `M${x - r} ${y}A${r} ${r} 0 1 1 ${x + r} ${y}A${r} ${r} 0 1 1 ${x - r} ${y}Z`,
  (x, y, r) => `M${x} ${y - 1.35 * r}L${x + 1.35 * r} ${y}L${x} ${y + 1.35 * r}L${x - 1.35 * r} ${y}Z`,
  (x, y, r) => `M${x - 1.2 * r} ${y - r}H${x + 1.2 * r}L${x} ${y + 1.2 * r}Z`,
  (x, y, r) => `M${x - r} ${y - r}H${x + r}V${y + r}H${x - r}Z`,
  (x, y, r) => `M${x - 1.2 * r} ${y + r}H${x + 1.2 * r}L${x} ${y - 1.2 * r}Z`,
];

/** The mark of a run as a small picture. */
export function runMark(slot) {
  const mark = shape("path", { d: markOf(slot)(7, 7, 4.2) });
  return shape("svg", { class: `glyph ${colourOf(slot)}`, viewBox: "0 0 14 14", "aria-hidden": "true" }, mark);
}

export class FrontsChart {
  constructor(view) {
    this.view = view;
    this.host = named("fronts-chart");
    this.said = named("fronts-said");
    this.points = [];
    this.hovered = null;
    this.area = new Area(this.host, {
      height: (width) => Math.round(Math.min(480, Math.max(300, width * 0.4))),
      margin: { left: 54, right: 18, top: 30, bottom: 48 },
      redraw: () => this.draw(),
    });
    this.tip = new Tip(this.host);
    this.#listen();
    view.on(["runs", "slots", "fronts", "cost", "unit", "scale"], () => this.draw());
    view.on(["pointed"], () => this.#emphasise());
  }

  draw() {
    if (!this.view.get("runs")) return;
    this.#offer();
    this.shown = this.#shown();
    this.points = this.shown.flatMap((run) => run.points);
    this.#scales();
    this.#paint();
    this.#legend();
    this.#note();
    const still = this.hovered && this.points.find((point) => same(point, this.hovered));
    this.#hover(still ?? null, true);
  }

  /** The chosen runs, in the order of their slots, each with its points by ascending cost. */
  #shown() {
    const slots = this.view.get("slots");
    const cost = this.view.get("cost");
    const field = this.view.get("unit") === "absolute" ? FIELDS[cost] : `${cost}_fraction`;
    return this.view.get("runs")
      .filter((run) => slots.has(run.id) && run.error === null)
      .map((run) => {
        const networks = this.view.get("fronts").get(run.id)?.[cost] ?? [];
        const shown = { ...run, slot: slots.get(run.id) };
        shown.points = networks
          .filter((network) => known(network[field]) && known(network.val_accuracy))
          .map((network) => ({ run: shown, network, x: network[field], y: network.val_accuracy }))
          .sort((a, b) => a.x - b.x);
        return shown;
      })
      .sort((a, b) => a.slot - b.slot);
  }

  /** Offers latency and memory where any chosen run knows them. */
  #offer() {
    const fronts = [...this.view.get("slots").keys()].map((id) => this.view.get("fronts").get(id));
    for (const cost of ["latency", "memory"]) {
      const present = this.view.get("cost") === cost || fronts.some((front) => front?.[cost]?.length);
      named(`cost-${cost}`).disabled = !present;
      named(`cost-${cost}`).parentElement.hidden = !present;
    }
  }

  #scales() {
    const accuracies = this.points.map((point) => point.y);
    const drawn = this.shown.filter((run) => run.points.length);
    accuracies.push(...drawn.map((run) => run.dense_accuracy).filter(known));
    const images = this.shown.map((run) => run.val_images).filter(known);
    const least = 0.5 / (images.length ? Math.max(...images) : 10000);
    let low = accuracies.length ? Math.max(0, Math.min(...accuracies)) : 0;
    let high = accuracies.length ? Math.max(...accuracies) : 1;
    // A single level needs some room around it.
    if (high - low < 1e-4) [low, high] = [Math.max(0, low - 0.05), Math.min(1, high + 0.02)];
    const limits = drawn.map((run) => this.#limit(run)).filter(known);
    const costs = [...this.points.map((point) => point.x), ...limits];
    const farthest = costs.length ? Math.max(...costs) : 1;
    this.x = linear([0, 1.06 * farthest], [this.area.left, this.area.right]);
    const spread = [this.area.bottom - 10, this.area.top + 8];
    const isError = this.view.get("scale") === "error";
    this.y = isError
      ? byError([low, Math.min(high, 1 - least)], spread, least)
      : linear([low, high], spread);
    const bottom = this.y.back(this.area.bottom);
    const top = this.y.back(this.area.top);
    this.yTicks = isError
      ? errorTicks(bottom, Math.min(top, 1 - least), this.y)
      : ticks(Math.max(0, bottom), Math.min(1, top), 7);
  }

  /** The name of the metric of all drawn runs. */
  #metric() {
    const drawn = this.shown.filter((run) => run.points.length);
    if (differ(drawn, (run) => run.metric)) return "metric of each run";
    return (drawn[0] ?? this.shown[0])?.metric ?? "metric";
  }

  /** The run's budget on the axis; null where it has none in this unit. */
  #limit(run) {
    return this.view.get("unit") === "fraction" ? run.budget[this.view.get("cost")] : null;
  }

  #paint() {
    const { area, x, y } = this;
    const absolute = this.view.get("unit") === "absolute";
    const cost = this.view.get("cost");
    const isError = this.view.get("scale") === "error";
    const nodes = [
      axes(area, {
        x: {
          scale: x,
          ticks: ticks(0, x.domain[1], area.width < 500 ? 4 : 8).filter((tick) => x(tick) <= area.right + 1),
          text: (tick) => (absolute ? short(tick) : `${Number((100 * tick).toPrecision(6))}`),
          title: absolute
            ? UNITS[cost]
            : `${COST_TITLES[cost] ?? COSTS[cost]}, % of the run's own dense network`,
        },
        y: {
          scale: y,
          ticks: this.yTicks,
          text: (tick) => `${Number((100 * tick).toPrecision(7))}`,
          title: `validation ${this.#metric()}, %${isError ? " (logarithm of the error)" : ""}`,
        },
      }),
    ];
    for (const run of this.shown) nodes.push(this.#front(run));
    if (!this.points.length) {
      const place = { x: (area.left + area.right) / 2, y: (area.top + area.bottom) / 2, "text-anchor": "middle" };
      const text = this.shown.length ? "The chosen runs have no network yet." : "Choose runs by their boxes below.";
      nodes.push(shape("text", { class: "empty", ...place }, text));
    }
    this.ring = shape("circle", { class: "ring hovered", r: 10 });
    this.ring.style.display = "none";
    refill(area.svg, nodes, this.ring);
    this.#emphasise();
  }

  #front(run) {
    const { area } = this;
    const group = shape("g", { class: `front-of-run ${colourOf(run.slot)}`, "data-run": run.id });
    if (!run.points.length) return group;
    const places = run.points.map((point) => [this.x(point.x), this.y(point.y)]);
    if (known(run.dense_accuracy)) {
      const at = this.y(run.dense_accuracy);
      group.append(shape("line", { class: "dense-of-run", x1: area.left, x2: area.right, y1: at, y2: at }));
    }
    const farthest = run.points[run.points.length - 1].x;
    const end = this.x(Math.max(farthest, this.#limit(run) ?? 0));
    group.append(shape("path", { class: "line-of-run", d: staircase(places, end) }));
    run.points.forEach((point, i) => {
      [point.px, point.py] = places[i];
      group.append(shape("path", { class: "mark-of-run", d: markOf(run.slot)(point.px, point.py, 4.6) }));
    });
    return group;
  }

  /** Fades all runs but the one under the pointer. */
  #emphasise() {
    const pointed = this.hovered?.run.id ?? this.view.get("pointed");
    const groups = [...this.area.svg.querySelectorAll(".front-of-run")];
    const any = groups.some((group) => group.dataset.run === pointed);
    for (const group of groups) group.classList.toggle("faded", any && group.dataset.run !== pointed);
  }

  #legend() {
    const entries = this.shown.map((run) => {
      const point = (to) => () => this.view.set({ pointed: to });
      const link = element(
        "a",
        { href: `./run/${run.id}/`, focus: point(run.id), blur: point(null) },
        run.name,
      );
      const none = run.points.length ? null : element("span", {}, "no network yet");
      return element("li", { pointerenter: point(run.id), pointerleave: point(null) }, runMark(run.slot), link, none);
    });
    refill(named("fronts-legend"), entries);
  }

  /** Warns of comparisons that mean nothing. */
  #note() {
    const drawn = this.shown.filter((run) => run.points.length);
    const notes = [];
    if (differ(drawn, (run) => run.metric)) {
      notes.push("These runs have different metrics, which do not compare.");
    } else if (differ(drawn, (run) => run.data_fingerprint ?? run.dataset)) {
      notes.push("These runs are on different data: their figures do not compare.");
    }
    if (this.view.get("unit") === "fraction" && differ(drawn, (run) => run.architecture ?? run.network)) {
      notes.push("Their dense networks differ: compare their costs in absolute units.");
    }
    named("fronts-note").hidden = notes.length === 0;
    if (named("fronts-note").textContent !== notes.join(" ")) named("fronts-note").textContent = notes.join(" ");
  }

  #listen() {
    const { host } = this;
    host.addEventListener("pointermove", (event) => this.#hover(this.#nearest(event)));
    host.addEventListener("pointerleave", () => this.#hover(null));
    host.addEventListener("blur", () => this.#hover(null));
    host.addEventListener("click", (event) => this.#open(this.#nearest(event)));
    host.addEventListener("keydown", (event) => this.#key(event));
  }

  #nearest(event) {
    const box = this.host.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return nearestOf(this.points, { px: x, py: y }, REACH);
  }

  #hover(point, always = false) {
    if (!always && point === this.hovered) return;
    this.hovered = point;
    if (this.ring) {
      this.ring.style.display = point ? "" : "none";
      if (point) {
        this.ring.setAttribute("cx", point.px);
        this.ring.setAttribute("cy", point.py);
      }
    }
    this.tip.show(point ? this.#lines(point) : null, point?.px, point?.py);
    this.host.classList.toggle("on-point", point !== null);
    this.#emphasise();
  }

  #lines({ run, network }) {
    const interval = known(network.val_interval) ? ` ± ${(100 * network.val_interval).toFixed(2)}` : "";
    const lines = [[run.name], [`validation ${run.metric}`, `${percent(network.val_accuracy)}${interval}`]];
    if (known(run.dense_accuracy)) lines.push(["dense", percent(run.dense_accuracy)]);
    lines.push(["FLOPs", `${percent(network.flops_fraction, 1)} (${short(network.flops)})`]);
    lines.push(["parameters", `${percent(network.params_fraction, 1)} (${short(network.params)})`]);
    if (known(network.latency_fraction)) {
      const time = known(network.latency_ms) ? ` (${number(network.latency_ms)} ms)` : "";
      lines.push(["latency", `${percent(network.latency_fraction, 1)}${time}`]);
    }
    if (known(network.memory_fraction)) {
      lines.push(["memory", `${percent(network.memory_fraction, 1)} (${short(network.memory_bytes)} bytes)`]);
    }
    lines.push(["method", network.method]);
    lines.push(["taken to", network.epochs ? epochsText(network.epochs) : "repaired"]);
    lines.push(["network", network.candidate]);
    return lines;
  }

  #open(point) {
    if (point) location.assign(`./run/${point.run.id}/#trial=${encodeURIComponent(point.network.trial_id)}`);
  }

  #key(event) {
    const { key } = event;
    if (key === "Enter" || key === " ") {
      if (!this.hovered) return;
      event.preventDefault();
      this.#open(this.hovered);
      return;
    }
    if (!["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End", "Escape"].includes(key)) return;
    event.preventDefault();
    if (key === "Escape") {
      this.#hover(null);
      return;
    }
    const runs = this.shown.filter((run) => run.points.length);
    if (!runs.length) return;
    const point = this.#step(key, runs);
    this.#hover(point);
    const lines = this.#lines(point).map(([term, text]) => (text === undefined ? term : `${term} ${text}`));
    this.said.textContent = lines.join(", ");
  }

  #step(key, runs) {
    const from = this.hovered;
    const along = from ? from.run.points : runs[0].points;
    const last = along.length - 1;
    if (key === "Home" || !from) return along[0];
    if (key === "End") return along[last];
    if (key === "ArrowRight") return along[Math.min(last, along.indexOf(from) + 1)];
    if (key === "ArrowLeft") return along[Math.max(0, along.indexOf(from) - 1)];
    const place = runs.indexOf(from.run) + (key === "ArrowDown" ? 1 : -1);
    return nearestOf(runs[(place + runs.length) % runs.length].points, from, Infinity);
  }
}

function nearestOf(points, { px, py }, reach) {
  let found = null;
  let least = reach;
  for (const point of points) {
    const distance = Math.hypot(point.px - px, point.py - py);
    if (distance < least) [found, least] = [point, distance];
  }
  return found;
}

function same(a, b) {
  return a.run.id === b.run.id && a.network.trial_id === b.network.trial_id;
}

function differ(runs, key) {
  return new Set(runs.map(key)).size > 1;
}

function colourOf(slot) {
  return `run-${slot % COLOURS}`;
}

function markOf(slot) {
  return MARKS[slot % MARKS.length];
}
