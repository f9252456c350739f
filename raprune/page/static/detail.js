/** One trial: its recipe, its widths against the dense network, where it comes from, how it trained, how to take it along. */

import { ask } from "./api.js";
import { axes, glyph } from "./chart.js";
import { command } from "./command.js";
import { element, named, refill, shape } from "./dom.js";
import { count, duration, known, percent, settingsText } from "./format.js";
import { linear, ticks } from "./scale.js";

export class Detail {
  constructor(view) {
    this.view = view;
    this.host = named("detail-body");
    this.told = null;
    view.on(["selected"], () => this.#load());
    // Another network may have been stored, or a test figure measured.
    view.on(["run"], () => this.told && this.#load());
    this.#load();
    named("detail-back").addEventListener("click", () => {
      named("trials-scroll").querySelector('tr[tabindex="0"]')?.focus();
      named("trials").scrollIntoView();
    });
  }

  async #load() {
    const i = this.view.get("selected");
    if (i === null) {
      this.told = null;
      refill(this.host, element("p", { class: "quiet" }, "Nothing is selected. Click a point or a row; by keyboard: arrow keys, then Enter."));
      return;
    }
    const id = this.view.get("trials").get(i, "trial_id");
    if (this.told?.trial.trial_id !== id) this.#frame(i);
    try {
      const told = await ask(`trials/${encodeURIComponent(id)}`);
      // Meanwhile another one may have been selected.
      if (this.view.get("selected") !== i) return;
      this.told = told;
      this.#frame(i, told);
    } catch (error) {
      if (this.view.get("selected") === i) this.#frame(i, null, error);
    }
  }

  /** All that is known at once from the table of trials; the rest when the server has told it. */
  #frame(i, told = null, error = null) {
    const trials = this.view.get("trials");
    const get = (name) => trials.get(i, name);
    const failed = known(get("error"));
    refill(
      this.host,
      element("h3", { class: "trial-name" }, glyph(trials.kind(i)), get("trial_id"), element("span", { class: `state ${get("state").toLowerCase()}` }, get("state").toLowerCase())),
      this.#facts(i, told),
      failed ? element("section", {}, element("h4", {}, "Error"), element("pre", { class: "error", tabindex: 0 }, get("error"))) : null,
      error ? element("p", { class: "notice bad" }, `${error.message} ${error.hint ?? ""}`) : null,
      told ? [this.#widths(told), this.#history(told), this.#curve(told), this.#take(told)] : error ? null : element("p", { class: "quiet" }, "Loading…"),
    );
  }

  #facts(i, told) {
    const trials = this.view.get("trials");
    const get = (name) => trials.get(i, name);
    const run = this.view.get("run");
    const row = told?.row && told.row.trial_id === get("trial_id") ? told.row : null;
    const dense = run.dense.val_accuracy;
    const accuracy = row?.val_accuracy ?? get("val_accuracy");
    const drop = known(dense) && known(accuracy) ? `, ${signed(100 * (accuracy - dense))} against dense` : "";
    const spread = known(row?.val_interval) ? ` ± ${(100 * row.val_interval).toFixed(2)}` : "";
    const test = row?.test_accuracy ?? get("test_accuracy");
    const measured = run.measured?.candidates?.[get("candidate")];
    const facts = [
      ["Method", get("method")],
      ["Settings", settingsText(told?.trial?.candidate_settings ?? trials.settings[i]) || "the method's own"],
      ["Widths by", get("allocation")],
      ["Candidate", get("candidate")],
      ["Validation", known(accuracy) ? `${percent(accuracy)}${spread}${drop}` : null],
      ["Test", known(test) ? `${percent(test)}${known(row?.test_interval) ? ` ± ${(100 * row.test_interval).toFixed(2)}` : ""}` : null],
      ["After cut", known(get("accuracy_after_cut")) ? percent(get("accuracy_after_cut")) : null],
      ["After repair", known(get("accuracy_after_repair")) ? percent(get("accuracy_after_repair")) : null],
      ["FLOPs", known(get("flops")) ? `${percent(get("flops_fraction"), 1)}: ${count(get("flops"))}` : null],
      ["Parameters", known(get("params")) ? `${percent(get("params_fraction"), 1)}: ${count(get("params"))}${get("zeros") > 0.01 * get("params") ? `, ${count(get("zeros"))} of them zero` : ""}` : null],
      ["Latency", known(get("latency_fraction")) ? `${percent(get("latency_fraction"), 1)}: ${get("latency_ms").toPrecision(3)} ms predicted` : null],
      ["Measured", known(measured) ? `${percent(measured / run.measured.dense_ms, 1)} of the dense network's time: ${measured.toPrecision(3)} ms (batch of ${run.measured.batch_size}, ${run.measured.device})` : null],
      ["Trained", get("epochs") ? `${Number(get("epochs").toPrecision(4))} epochs since the dense network` : null],
      ["Took", `${duration(get("seconds"))}${get("gpu_seconds") ? `, ${duration(get("gpu_seconds"))} of GPUs` : ""}`],
    ].filter(([, text]) => known(text) && text !== "");
    return element("dl", { class: "facts" }, facts.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text))));
  }

  /** Every group of channels, as the dense network has it and as this one does. */
  #widths(told) {
    const widths = told.trial.widths;
    if (!widths) return null;
    const run = this.view.get("run");
    const dense = run.dense.widths;
    const groups = (run.groups?.length ? run.groups : Object.keys(dense)).filter((group) => dense[group]);
    const rows = groups.map((group) => {
      const kept = widths[group] ?? dense[group];
      const outer = element("span", { class: "dense-bar" });
      const inner = element("span", { class: "kept-bar" });
      inner.style.width = `${(100 * kept) / dense[group]}%`;
      outer.append(inner);
      return element(
        "tr",
        {},
        element("th", { scope: "row", title: group }, element("bdi", {}, group)),
        element("td", { class: "track", "aria-hidden": "true" }, outer),
        element("td", { class: "number" }, `${kept}`, element("span", { class: "quiet" }, ` / ${dense[group]}`)),
        element("td", { class: "number share" }, percent(kept / dense[group], 0)),
      );
    });
    const head = element("tr", {}, ["layers", "", "channels", "kept"].map((text, k) => (text ? element("th", { scope: "col", class: k > 1 ? "number" : null }, text) : element("td", {}))));
    return element(
      "section",
      {},
      element("h4", { id: "widths-title" }, `Widths, ${groups.length} ${groups.length === 1 ? "group" : "groups"} of channels`),
      element("div", { class: "widths", tabindex: 0, role: "region", "aria-labelledby": "widths-title" }, element("table", {}, element("thead", {}, head), element("tbody", {}, rows))),
    );
  }

  #history(told) {
    if (!told.history?.length) return null;
    const positions = this.view.get("trials").positions;
    const items = told.history.map((one) => {
      const position = positions.get(one.trial_id);
      const self = one.relation === "self";
      const what = one.stage === "finetune" ? `fine-tuned${one.repeat ? `, seed ${one.repeat}` : ""}` : known(one.step) ? `step ${one.step} on the way` : one.rung ? `rung ${one.rung}` : "cut and repaired";
      const result = known(one.val_accuracy) ? percent(one.val_accuracy) : (one.state ?? "").toLowerCase();
      const text = [element("span", { class: "what" }, what), element("span", { class: "number" }, result), element("span", { class: "quiet" }, one.epochs ? `${Number(one.epochs.toPrecision(3))} epochs` : "")];
      const open = () => this.view.set({ selected: position });
      const kind = one.stage === "finetune" ? "tuned" : one.state === "STOPPED" ? "below" : "searched";
      return element(
        "li",
        { class: one.relation, "aria-current": self ? "true" : null },
        glyph(kind),
        self || position === undefined ? element("span", { class: "step" }, text) : element("button", { type: "button", class: "step", click: open, title: one.trial_id }, text),
      );
    });
    return element("section", {}, element("h4", {}, "History"), element("ol", { class: "history" }, items));
  }

  #curve(told) {
    const own = told.curve ?? [];
    const earlier = Object.entries(told.curves ?? {}).filter(([id]) => id !== told.trial.trial_id);
    const parts = [...earlier.map(([, curve]) => curve), own].filter((curve) => curve.length);
    if (!parts.length) return null;
    // One line from the first training to the last: epochs go on counting.
    const points = [];
    const joints = [];
    for (const part of parts) {
      const offset = points.length ? points[points.length - 1].at : 0;
      if (offset) joints.push(offset);
      part.forEach((epoch, k) => points.push({ ...epoch, at: offset + (epoch.epoch ?? k + 1) }));
    }
    const panels = [["train_loss", "training loss"], ["val_accuracy", "validation accuracy, %"], ["train_accuracy", "training accuracy, %"], ["lr", "learning rate"]].filter(([key]) => points.some((point) => known(point[key])));
    const chosen = panels.slice(0, 2);
    const last = points[points.length - 1];
    const summary = chosen.map(([key, title]) => `${title} ${Number((last[key] * (title.includes("%") ? 100 : 1)).toPrecision(4))}`).join(", ");
    return element("section", {}, element("h4", {}, "Training"), element("div", { class: "curves", role: "img", "aria-label": `Training curve over ${last.at} epochs; at the end: ${summary}` }, chosen.map(([key, title]) => panel(points, joints, key, title))));
  }

  #take(told) {
    const { download, trial } = told;
    const links = download
      ? element(
          "ul",
          { class: "downloads" },
          [["recipe", "recipe.json"], ["weights", `weights.safetensors (${bytes(download.bytes)})`], ["zip", "both, as .zip"]]
            .filter(([key]) => download[key])
            .map(([key, text]) => element("li", {}, element("a", { href: relative(download[key]), download: "" }, text))),
        )
      : element("p", { class: "quiet" }, trial.candidate ? "This network was not stored; the command below makes it again from its recipe." : "There is no network to take along.");
    const lines = told.export ? [command(told.export), command('small = raprune.load(MyNet(), "FOLDER")')] : [];
    return element("section", {}, element("h4", {}, "Take it along"), links, lines);
  }
}

function panel(points, joints, key, title) {
  const factor = title.includes("%") ? 100 : 1;
  const values = points.filter((point) => known(point[key])).map((point) => [point.at, factor * point[key]]);
  const [width, height] = [330, 132];
  const area = { left: 44, right: width - 8, top: 22, bottom: height - 24 };
  const [low, high] = [Math.min(...values.map(([, value]) => value)), Math.max(...values.map(([, value]) => value))];
  const x = linear([Math.min(1, values[0][0]), values[values.length - 1][0]], [area.left, area.right]);
  const y = linear([low, high === low ? low + 1e-9 : high], [area.bottom - 3, area.top + 3]);
  const path = values.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const whole = (value) => Number.isInteger(value) || values[values.length - 1][0] <= 3;
  return shape(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "axes" },
    axes(area, {
      x: { scale: x, ticks: ticks(...x.domain, 5).filter(whole), text: (tick) => String(tick), title: "" },
      y: { scale: y, ticks: ticks(low, high, 4), text: (tick) => String(Number(tick.toPrecision(4))), title },
    }),
    joints.map((at) => shape("line", { class: "joint", x1: x(at), x2: x(at), y1: area.top, y2: area.bottom })),
    values.length > 1 ? shape("path", { class: "trend hypervolume", d: path }) : shape("circle", { class: "dot", cx: x(values[0][0]), cy: y(values[0][1]), r: 3.5 }),
  );
}

/** Only addresses below the page: whatever the server says, a link leads nowhere else. */
function relative(path) {
  return `./${String(path).replace(/^[./]+/, "")}`;
}

function bytes(size) {
  if (!known(size)) return "";
  return size < 1e6 ? `${Math.max(1, Math.round(size / 1e3))} kB` : `${(size / 1e6).toPrecision(3)} MB`;
}

function signed(points) {
  return `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(2)} points`;
}
