/** The front: the task's metric against a cost. Points on a canvas; axes, front, budget and selection above it. */

import { Area, axes, glyph, palette, staircase, Tip, trace } from "./chart.js";
import { element, named, refill, shape } from "./dom.js";
import { count, duration, epochsText, known, percent, settingsText } from "./format.js";
import { byError, errorTicks, linear, ticks } from "./scale.js";
import { COST_TITLES, COSTS } from "./trials.js";

const REACH = 26;
/* Pixels from the pointer within which a point is meant. */
const KINDS = ["below", "searched", "tuned"];

export class FrontChart {
  constructor(view) {
    this.view = view;
    this.host = named("front-chart");
    this.said = named("front-said");
    this.points = [];
    this.hovered = null;
    this.zoom = null;
    this.area = new Area(this.host, {
      height: (width) => Math.round(Math.min(470, Math.max(300, width * 0.52))),
      margin: { left: 54, right: 18, top: 30, bottom: 48 },
      redraw: () => this.draw(),
    });
    this.tip = new Tip(this.host);
    this.#legend();
    this.#listen();
    const looks = ["rows", "front", "cost", "theme", "colouring", "run"];
    view.on(["cost"], () => {
      // The zoom belongs to another axis.
      this.zoom = null;
    });
    view.on(looks, () => {
      this.stale = true;
    });
    view.on([...looks, "scale", "visible"], () => this.draw());
    view.on(looks, () => this.#legend());
    view.on(["selected", "picked"], () => this.#overlay());
    this.stale = true;
  }

  /** Draws the chart; a filter changes only the opacity of the points. */
  draw() {
    const started = performance.now();
    if (!this.view.get("run")) return;
    if (this.stale) {
      this.colours = palette();
      this.points = this.#points();
      this.stale = false;
    }
    this.#scales();
    this.#paint();
    this.#overlay();
    performance.measure("front", { start: started });
  }

  /** One point for each candidate, and one for each network that ended below the last rung. */
  #points() {
    const trials = this.view.get("trials");
    const cost = this.view.get("cost");
    const front = new Set(this.view.get("front").map((row) => row.trial));
    const counted = new Set();
    const points = [];
    const add = (i, accuracy, interval, onFront) => {
      const x = trials.cost(i, cost);
      if (!known(x) || !known(accuracy)) return;
      points.push({ trial: i, x, y: accuracy, interval, kind: trials.kind(i), onFront });
    };
    for (const row of this.view.get("rows")) {
      counted.add(row.candidate);
      add(row.trial, row.accuracy, row.interval, front.has(row.trial));
    }
    for (let i = 0; i < trials.length; i += 1) {
      if (trials.kind(i) !== "below" || counted.has(trials.get(i, "candidate"))) continue;
      if (trials.continued.has(trials.get(i, "trial_id"))) continue;
      add(i, trials.get(i, "val_accuracy"), null, false);
    }
    return points;
  }

  #scales() {
    const run = this.view.get("run");
    const limit = run.budget[this.view.get("cost")];
    const dense = run.dense.val_accuracy;
    const accuracies = this.points.map((point) => point.y);
    for (const point of this.points) {
      if (known(point.interval)) accuracies.push(point.y - point.interval, Math.min(1, point.y + point.interval));
    }
    for (const level of [dense, run.floor]) if (known(level)) accuracies.push(level);
    const costs = this.points.map((point) => point.x);
    const least = 0.5 / (run.dense.val_images || 10000);
    let low = accuracies.length ? Math.max(0, Math.min(...accuracies)) : 0;
    let high = accuracies.length ? Math.max(...accuracies) : 1;
    // A single level needs some room around it.
    if (high - low < 1e-4) [low, high] = [Math.max(0, low - 0.05), Math.min(1, high + 0.02)];
    const farthest = costs.length || known(limit) ? Math.max(0.01, limit ?? 0, ...costs) : 1;
    const home = { x: [0, 1.06 * farthest], y: [low, high] };
    const domain = this.zoom ?? home;
    const spread = [this.area.bottom - (this.zoom ? 0 : 10), this.area.top + (this.zoom ? 0 : 8)];
    this.home = home;
    this.x = linear(domain.x, [this.area.left, this.area.right]);
    this.y = this.view.get("scale") === "error"
      ? byError([domain.y[0], Math.min(domain.y[1], 1 - least)], spread, least)
      : linear(domain.y, spread);
    this.least = least;
    const bottom = this.y.back(this.area.bottom);
    const top = this.y.back(this.area.top);
    this.yTicks = this.view.get("scale") === "error"
      ? errorTicks(bottom, Math.min(top, 1 - least), this.y)
      : ticks(Math.max(0, bottom), Math.min(1, top), 7);
    named("front-zoom-out").hidden = this.zoom === null;
  }

  #paint() {
    const context = this.area.marks();
    const visible = this.view.get("visible");
    context.save();
    context.beginPath();
    context.rect(
      this.area.left,
      this.area.top - 8,
      this.area.right - this.area.left + 8,
      this.area.bottom - this.area.top + 8,
    );
    context.clip();
    for (const point of this.points) {
      point.px = this.x(point.x);
      point.py = this.y(point.y);
      point.shown = visible === null || visible[point.trial] === 1;
    }
    for (const [shown, onFront] of [[false, false], [true, false], [false, true], [true, true]]) {
      const part = this.points.filter((point) => point.shown === shown && point.onFront === onFront);
      for (const [colour, kind, points] of this.#looks(part)) {
        context.globalAlpha = shown ? (onFront ? 1 : 0.5) : 0.08;
        this.#intervals(context, points, colour);
        this.#stamp(context, points, kind, colour, onFront);
      }
    }
    context.restore();
  }

  /** One mark drawn once and copied to each place: thousands of outlines would take longer than a frame. */
  #stamp(context, points, kind, colour, onFront) {
    const size = onFront ? 5.5 : 3.6;
    const half = Math.ceil(size * 1.3 + 2);
    const { ratio } = this.area;
    const stamp = new OffscreenCanvas(2 * half * ratio, 2 * half * ratio);
    const mark = stamp.getContext("2d");
    mark.scale(ratio, ratio);
    mark.fillStyle = colour;
    mark.strokeStyle = onFront ? this.colours.surface : colour;
    mark.lineWidth = 1.2;
    const path = new Path2D();
    trace(path, kind, half, half, size);
    if (kind !== "below") mark.fill(path);
    if (kind === "below" || onFront) mark.stroke(path);
    for (const point of points) context.drawImage(stamp, point.px - half, point.py - half, 2 * half, 2 * half);
  }

  #intervals(context, points, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 1.4;
    context.beginPath();
    for (const point of points) {
      if (!known(point.interval)) continue;
      const top = this.y(Math.min(1, point.y + point.interval));
      const bottom = this.y(point.y - point.interval);
      context.moveTo(point.px, top);
      context.lineTo(point.px, bottom);
      for (const end of [top, bottom]) {
        context.moveTo(point.px - 4, end);
        context.lineTo(point.px + 4, end);
      }
    }
    context.stroke();
  }

  /** The points by colour and kind, as [colour, kind, points]. */
  #looks(points) {
    const groups = new Map();
    const byMethod = this.view.get("colouring") === "method";
    const methods = this.view.get("methods");
    const trials = this.view.get("trials");
    for (const point of points) {
      const method = byMethod ? methods.indexOf(trials.get(point.trial, "method")) : -1;
      const key = `${KINDS.indexOf(point.kind)} ${method}`;
      if (!groups.has(key)) {
        const colour = byMethod
          ? this.colours.methods[method % this.colours.methods.length]
          : this.colours.kinds[point.kind];
        groups.set(key, [colour, point.kind, []]);
      }
      groups.get(key)[2].push(point);
    }
    return [...groups.entries()].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })).map(([, look]) =>
      look
    );
  }

  #overlay() {
    if (!this.x) return;
    const { area, x, y } = this;
    const run = this.view.get("run");
    const cost = this.view.get("cost");
    const error = this.view.get("scale") === "error";
    const nodes = [
      axes(area, {
        x: {
          scale: x,
          ticks: ticks(Math.max(0, x.domain[0]), x.domain[1], area.width < 500 ? 4 : 8).filter((t) =>
            x(t) <= area.right + 1
          ),
          text: (tick) => `${Number((100 * tick).toPrecision(6))}`,
          title: `${COST_TITLES[cost] ?? COSTS[cost]}, % of the dense network`,
        },
        y: {
          scale: y,
          ticks: this.yTicks,
          text: (tick) => `${Number((100 * tick).toPrecision(7))}`,
          title: `validation ${run.metric}, %${error ? " (logarithm of the error)" : ""}`,
        },
      }),
    ];
    nodes.push(...this.#limits(run, cost), ...this.#line());
    if (!this.points.length) {
      const place = { x: (area.left + area.right) / 2, y: (area.top + area.bottom) / 2, "text-anchor": "middle" };
      nodes.push(shape("text", { class: "empty", ...place }, "No network yet: each appears as its trial ends."));
    }
    for (
      const [trial, name] of [[this.view.get("picked"), "picked"], [this.view.get("selected"), "selected"], [
        this.hovered,
        "hovered",
      ]]
    ) {
      const place = trial === null ? null : this.#place(trial);
      if (place) {
        nodes.push(
          shape("circle", { class: `ring ${name}`, cx: place[0], cy: place[1], r: name === "picked" ? 12 : 9 }),
        );
      }
    }
    refill(area.svg, nodes);
  }

  /** Budget, accuracy floor and dense network. */
  #limits(run, cost) {
    const { area, x, y } = this;
    const nodes = [];
    const limit = run.budget[cost];
    if (known(limit) && x(limit) >= area.left && x(limit) <= area.right) {
      const at = x(limit);
      nodes.push(
        shape("rect", { class: "beyond", x: at, y: area.top, width: area.right - at, height: area.bottom - area.top }),
        shape("line", { class: "budget", x1: at, x2: at, y1: area.top, y2: area.bottom }),
        shape(
          "text",
          { class: "note", x: at - 5, y: area.bottom - 7, "text-anchor": "end" },
          `budget ${percent(limit, 0)}`,
        ),
      );
    }
    if (known(run.floor) && y(run.floor) <= area.bottom && y(run.floor) >= area.top) {
      const at = y(run.floor);
      nodes.push(
        shape("rect", {
          class: "beyond",
          x: area.left,
          y: at,
          width: area.right - area.left,
          height: area.bottom - at,
        }),
        shape("line", { class: "floor", x1: area.left, x2: area.right, y1: at, y2: at }),
        shape("text", { class: "note", x: area.left + 6, y: at + 14 }, `${run.metric} floor ${percent(run.floor)}`),
      );
    }
    const dense = run.dense.val_accuracy;
    if (known(dense) && y(dense) <= area.bottom && y(dense) >= area.top - 8) {
      const at = y(dense);
      const inside = x(1) <= area.right;
      const centre = inside ? x(1) : area.right - 7;
      nodes.push(
        shape("line", { class: "dense", x1: area.left, x2: area.right, y1: at, y2: at }),
        shape("path", { class: "dense-mark", d: star(centre, at, 8) }),
        shape(
          "text",
          { class: "note", x: area.left + 6, y: at - 6 },
          area.width < 520
            ? `dense ${percent(dense)}`
            : `dense network ${percent(dense)}${inside ? "" : ` at 100 % of the ${COSTS[cost]} →`}`,
        ),
      );
    }
    return nodes;
  }

  /** The front as steps: the best accuracy at each cost. */
  #line() {
    const points = this.points.filter((point) => point.onFront).sort((a, b) => a.x - b.x);
    if (!points.length) return [];
    const limit = this.view.get("run").budget[this.view.get("cost")] ?? points[points.length - 1].x;
    const places = points.map((point) => [
      clamp(this.x(point.x), this.area.left, this.area.right),
      clamp(this.y(point.y), this.area.top, this.area.bottom),
    ]);
    const end = clamp(this.x(Math.max(limit, points[points.length - 1].x)), this.area.left, this.area.right);
    return [shape("path", { class: "front-line", d: staircase(places, end) })];
  }

  #place(trial) {
    const point = this.points.find((one) => one.trial === trial);
    const trials = this.view.get("trials");
    const at = point
      ? [point.x, point.y]
      : [trials.cost(trial, this.view.get("cost")), trials.get(trial, "val_accuracy")];
    if (!known(at[0]) || !known(at[1])) return null;
    const place = [this.x(at[0]), this.y(at[1])];
    const inside = place[0] >= this.area.left - 1 && place[0] <= this.area.right + 1;
    return inside && place[1] <= this.area.bottom + 1 && place[1] >= this.area.top - 9 ? place : null;
  }

  #listen() {
    const { host } = this;
    let press = null;
    host.addEventListener("pointermove", (event) => {
      const at = this.#at(event);
      if (press && Math.hypot(at[0] - press[0], at[1] - press[1]) > 6) {
        this.#rubber(press, at);
        return;
      }
      const started = performance.now();
      this.#hover(this.#nearest(at), at);
      performance.measure("hover", { start: started });
    });
    host.addEventListener("pointerleave", () => this.#hover(null));
    host.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      press = this.#at(event);
      host.setPointerCapture(event.pointerId);
    });
    host.addEventListener("pointerup", (event) => {
      const at = this.#at(event);
      const from = press;
      press = null;
      if (!from) return;
      if (Math.hypot(at[0] - from[0], at[1] - from[1]) > 6) this.#zoomTo(from, at);
      else {
        const point = this.#nearest(at);
        if (point) this.view.set({ selected: point.trial });
      }
    });
    host.addEventListener("pointercancel", () => {
      press = null;
      this.#overlay();
    });
    host.addEventListener("dblclick", () => this.#zoomOut());
    host.addEventListener("keydown", (event) => this.#key(event));
    host.addEventListener("blur", () => this.#hover(null));
    named("front-zoom-out").addEventListener("click", () => {
      this.#zoomOut();
      host.focus();
    });
  }

  #at(event) {
    const box = this.host.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #nearest([x, y]) {
    let found = null;
    let least = REACH * REACH;
    for (const point of this.points) {
      if (!point.shown) continue;
      // People look for points on the front, so these win over others nearby.
      const distance = ((point.px - x) ** 2 + (point.py - y) ** 2) * (point.onFront ? 0.5 : 1);
      if (distance < least) {
        least = distance;
        found = point;
      }
    }
    return found;
  }

  #hover(point, at) {
    const trial = point ? point.trial : null;
    if (trial !== this.hovered) {
      this.hovered = trial;
      this.#overlay();
      this.tip.show(point ? this.recipe(point.trial) : null, point ? point.px : 0, point ? point.py : 0);
    } else if (trial === null && at) this.tip.show(null);
  }

  /** A summary of a trial as lines of a tip. */
  recipe(trial) {
    const trials = this.view.get("trials");
    const row = this.view.get("rows").find((one) => one.trial === trial);
    const get = (name) => trials.get(trial, name);
    const interval = row && known(row.interval) ? ` ± ${(100 * row.interval).toFixed(2)}` : "";
    const settings = settingsText(trials.settings[trial]);
    const lines = [
      [`${get("method")} · ${get("trial_id")}`],
      [`validation ${this.view.get("run").metric}`, `${percent(row ? row.accuracy : get("val_accuracy"))}${interval}`],
    ];
    const test = row ? row.test : get("test_accuracy");
    if (known(test)) lines.push(["test", percent(test)]);
    lines.push(["FLOPs", `${percent(get("flops_fraction"), 1)} (${count(get("flops"))})`]);
    lines.push(["parameters", `${percent(get("params_fraction"), 1)} (${count(get("params"))})`]);
    if (known(get("latency_fraction"))) lines.push(["latency", percent(get("latency_fraction"), 1)]);
    if (known(get("memory_fraction"))) lines.push(["memory", percent(get("memory_fraction"), 1)]);
    lines.push(["widths by", get("allocation") ?? "–"]);
    if (settings) lines.push(["settings", settings]);
    lines.push(["taken to", this.#taken(trial)]);
    lines.push(["worker time", duration(get("seconds"))]);
    return lines;
  }

  #taken(trial) {
    const trials = this.view.get("trials");
    const epochs = trials.get(trial, "epochs");
    const behind = epochs ? `, ${epochsText(epochs)}` : "";
    const rung = trials.get(trial, "rung");
    const kind = { tuned: "fine-tuned", searched: rung ? `rung ${rung}` : "repaired", below: `below the last rung` };
    return kind[trials.kind(trial)] + behind;
  }

  #key(event) {
    const along = this.points.filter((point) => point.onFront && point.shown).sort((a, b) => a.x - b.x);
    const others = this.points.filter((point) => point.shown).sort((a, b) => a.y - b.y || a.x - b.x);
    const step =
      { ArrowRight: [along, 1], ArrowLeft: [along, -1], ArrowUp: [others, 1], ArrowDown: [others, -1] }[event.key];
    const focus = this.hovered ?? this.view.get("selected");
    let point = null;
    if (step) {
      const [list, by] = step;
      const here = list.findIndex((one) => one.trial === focus);
      const position = this.points.find((one) => one.trial === focus);
      if (here >= 0) point = list[clamp(here + by, 0, list.length - 1)];
      else if (position) point = nearestOf(list, position);
      else point = by > 0 ? list[0] : list[list.length - 1];
    } else if (event.key === "Home") point = along[0];
    else if (event.key === "End") point = along[along.length - 1];
    else if (event.key === "Enter" || event.key === " ") {
      if (this.hovered === null) return;
      this.view.set({ selected: this.hovered });
      this.said.textContent = "Selected; the details follow the chart.";
      event.preventDefault();
      return;
    } else if (event.key === "+" || event.key === "=") this.#zoomBy(0.6);
    else if (event.key === "-") this.#zoomBy(1 / 0.6);
    else if (event.key === "0") this.#zoomOut();
    else if (event.key === "Escape") this.#hover(null);
    else return;
    event.preventDefault();
    if (!point) return;
    this.#hover(point);
    const lines = this.recipe(point.trial);
    this.said.textContent = lines.map(([term, text]) => (text === undefined ? term : `${term} ${text}`)).join(", ");
  }

  #rubber(from, to) {
    this.#hover(null);
    this.#overlay();
    const [x, y] = [Math.min(from[0], to[0]), Math.min(from[1], to[1])];
    const size = { width: Math.abs(from[0] - to[0]), height: Math.abs(from[1] - to[1]) };
    this.area.svg.append(shape("rect", { class: "rubber", x, y, ...size }));
  }

  #zoomTo(from, to) {
    const { area } = this;
    const across = [from[0], to[0]].map((value) => clamp(value, area.left, area.right)).sort((a, b) => a - b);
    const down = [from[1], to[1]].map((value) => clamp(value, area.top, area.bottom)).sort((a, b) => b - a);
    if (across[1] - across[0] > 5 && down[0] - down[1] > 5) {
      this.zoom = {
        x: across.map((value) => this.x.back(value)),
        y: down.map((value) => clamp(this.y.back(value), 0, 1)),
      };
    }
    this.draw();
  }

  #zoomBy(factor) {
    const { area } = this;
    const place = this.hovered === null ? null : this.#place(this.hovered);
    const [cx, cy] = place ?? [(area.left + area.right) / 2, (area.top + area.bottom) / 2];
    const wide = ((area.right - area.left) / 2) * factor;
    const tall = ((area.bottom - area.top) / 2) * factor;
    const x = [Math.max(0, this.x.back(cx - wide)), Math.min(1.06, this.x.back(cx + wide))];
    const y = [clamp(this.y.back(cy + tall), 0, 1), clamp(this.y.back(cy - tall), 0, 1)];
    const whole = x[1] - x[0] >= this.home.x[1] && y[0] <= this.home.y[0];
    this.zoom = whole ? null : { x, y };
    this.draw();
  }

  #zoomOut() {
    this.zoom = null;
    this.draw();
  }

  #legend() {
    const rungs = this.view.get("run")?.spec?.search?.rungs ?? [];
    const byMethod = this.view.get("colouring") === "method";
    const tint = byMethod ? "plain" : "";
    const items = [["tuned", "fine-tuned"], ["searched", rungs.length > 1 ? "last rung" : "repaired"]];
    if (this.points.some((point) => point.kind === "below")) items.push(["below", "below the last rung"]);
    const entries = items.map(([kind, text]) => element("li", {}, glyph(kind, tint), text));
    if (byMethod) {
      this.view.get("methods").forEach((method, i) => {
        entries.push(element("li", {}, element("span", { class: `swatch method-${i % 8}` }), method));
      });
    }
    entries.push(element("li", { class: "faded" }, glyph("searched", tint), "faded: not on the front"));
    refill(named("front-legend"), entries);
  }
}

function nearestOf(list, { px, py }) {
  let found = null;
  for (const point of list) {
    if (found === null || Math.hypot(point.px - px, point.py - py) < Math.hypot(found.px - px, found.py - py)) {
      found = point;
    }
  }
  return found;
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

function star(x, y, size) {
  let path = "";
  for (let i = 0; i < 10; i += 1) {
    const reach = i % 2 ? size * 0.42 : size;
    const angle = (Math.PI * i) / 5 - Math.PI / 2;
    path += `${i ? "L" : "M"}${(x + reach * Math.cos(angle)).toFixed(1)} ${(y + reach * Math.sin(angle)).toFixed(1)}`;
  }
  return `${path}Z`;
}
