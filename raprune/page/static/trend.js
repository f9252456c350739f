/** The progress of the search: hypervolume and best network within the budget, over time or GPU-hours. */

import { Area, axes, Tip } from "./chart.js";
import { named, refill, shape } from "./dom.js";
import { duration, known, number, percent } from "./format.js";
import { linear, ticks } from "./scale.js";
import { whenSeen } from "./view.js";

const PANELS = [
  {
    name: "hypervolume",
    title: () => "hypervolume",
    text: (value) => number(value),
    said: (value) => value.toFixed(4),
  },
  {
    name: "best",
    title: (metric) => `best within budget, % validation ${metric}`,
    text: (value) => number(100 * value),
    said: (value) => percent(value),
  },
];

export class Trend {
  constructor(view) {
    this.view = view;
    this.host = named("trend-chart");
    this.said = named("trend-said");
    this.position = null;
    const draw = whenSeen(this.host, () => this.draw());
    this.area = new Area(this.host, {
      height: 380,
      margin: { left: 54, right: 14, top: 26, bottom: 44 },
      redraw: () => this.draw(),
    });
    this.tip = new Tip(this.host);
    view.on(["history", "over", "theme"], draw);
    this.host.addEventListener("pointermove", (event) => this.#point(this.#under(event)));
    this.host.addEventListener("pointerleave", () => this.#point(null));
    this.host.addEventListener("blur", () => this.#point(null));
    this.host.addEventListener("keydown", (event) => this.#key(event));
  }

  draw() {
    const history = this.view.get("history");
    const { area } = this;
    if (!history || !history.total) {
      refill(
        area.svg,
        shape(
          "text",
          { class: "empty", x: area.width / 2, y: area.height / 2, "text-anchor": "middle" },
          "No trial has ended yet.",
        ),
      );
      return;
    }
    const over = this.view.get("over");
    const [values, title, text] = abscissa(history, over);
    this.values = values;
    this.x = linear([0, Math.max(values[values.length - 1], 1e-9)], [area.left, area.right]);
    const middle = (area.top + area.bottom) / 2;
    const halves = [[middle - 22, area.top], [area.bottom, middle + 22]];
    const nodes = [];
    const metric = this.view.get("run")?.metric ?? "metric";
    this.panels = PANELS.map((panel, i) => {
      const [bottom, top] = halves[i];
      const series = history[panel.name];
      const found = series.filter(known);
      const [low, high] = found.length ? [Math.min(...found), Math.max(...found)] : [0, 1];
      const margin = (high - low || 0.01) * 0.08;
      const y = linear([Math.max(0, low - margin), Math.min(1, high + margin)], [bottom, top]);
      const part = { left: area.left, right: area.right, top, bottom };
      const last = i === PANELS.length - 1;
      nodes.push(
        axes(part, {
          x: {
            scale: this.x,
            ticks: ticks(0, this.x.domain[1], area.width < 500 ? 3 : 6),
            text: last ? text : () => "",
            title: last ? title : "",
          },
          y: { scale: y, ticks: ticks(...y.domain, 4), text: panel.text, title: panel.title(metric) },
        }),
        shape("path", { class: `trend ${panel.name}`, d: steps(values, series, this.x, y) }),
      );
      const reached = series[series.length - 1];
      if (known(reached)) {
        nodes.push(
          shape("circle", {
            class: `dot ${panel.name}`,
            cx: this.x(values[values.length - 1]),
            cy: y(reached),
            r: 3.5,
          }),
        );
      }
      return { ...panel, series, y };
    });
    this.cross = shape("g", { class: "cross" });
    refill(area.svg, nodes, this.cross);
    this.position = null;
  }

  #under(event) {
    if (!this.x) return null;
    const at = this.x.back(event.clientX - this.host.getBoundingClientRect().left);
    let [low, high] = [0, this.values.length - 1];
    while (low < high) {
      const half = Math.ceil((low + high) / 2);
      if (this.values[half] <= at) low = half;
      else high = half - 1;
    }
    return low;
  }

  #point(position) {
    if (!this.cross || position === this.position) return;
    this.position = position;
    if (position === null) {
      refill(this.cross);
      this.tip.show(null);
      return;
    }
    const x = this.x(this.values[position]);
    const marks = [shape("line", { x1: x, x2: x, y1: this.area.top, y2: this.area.bottom })];
    for (const panel of this.panels) {
      const value = panel.series[position];
      if (known(value)) marks.push(shape("circle", { class: panel.name, cx: x, cy: panel.y(value), r: 4 }));
    }
    refill(this.cross, marks);
    this.tip.show(this.#lines(position), x, this.area.height / 2);
  }

  #lines(position) {
    const history = this.view.get("history");
    const lines = [[`after ${position + 1} of ${history.total} trials`], ["time", duration(history.t_s[position])]];
    if (history.gpu_hours[position]) lines.push(["GPU-hours", number(history.gpu_hours[position])]);
    for (const panel of this.panels) {
      lines.push([panel.name, known(panel.series[position]) ? panel.said(panel.series[position]) : "–"]);
    }
    return lines;
  }

  /** The arrow keys move from one change to the next. */
  #key(event) {
    if (!this.panels) return;
    const changed = this.values.map((_, i) => i).filter((i) =>
      i === 0 || this.panels.some(({ series }) => series[i] !== series[i - 1])
    );
    const last = this.values.length - 1;
    if (changed[changed.length - 1] !== last) changed.push(last);
    const here = this.position ?? -1;
    const place = {
      ArrowRight: () => changed.find((i) => i > here) ?? last,
      ArrowLeft: () => [...changed].reverse().find((i) => i < here) ?? 0,
      Home: () => 0,
      End: () => last,
      Escape: () => null,
    }[event.key];
    if (!place) return;
    event.preventDefault();
    this.#point(place());
    if (this.position !== null) {
      this.said.textContent = this.#lines(this.position).map((line) => line.join(" ")).join(", ");
    }
  }
}

/** The horizontal axis: [values, title of the axis, text of a tick]. */
function abscissa(history, over) {
  if (over === "gpu_hours") return [rising(history.gpu_hours), "GPU-hours", number];
  if (over === "hours") return [rising(history.hours), "worker-hours", number];
  const seconds = rising(history.t_s);
  const end = seconds[seconds.length - 1];
  const [unit, name] = end > 3 * 86400
    ? [86400, "days"]
    : end > 2 * 3600
    ? [3600, "hours"]
    : end > 180
    ? [60, "minutes"]
    : [1, "seconds"];
  return [seconds.map((value) => value / unit), `${name} since the search began`, number];
}

/** Trials end in another order than they are recorded, so a record counts at the latest end so far. */
function rising(values) {
  let highest = 0;
  return values.map((value) => (highest = Math.max(highest, value ?? 0)));
}

/** A line of steps, without records that change nothing. */
function steps(values, series, x, y) {
  let path = "";
  let before = null;
  series.forEach((value, i) => {
    if (!known(value) || value === before) return;
    path += path
      ? `H${x(values[i]).toFixed(1)}V${y(value).toFixed(1)}`
      : `M${x(values[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    before = value;
  });
  return path ? `${path}H${x(values[values.length - 1]).toFixed(1)}` : "";
}
