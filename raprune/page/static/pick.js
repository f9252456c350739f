/** "Pick at this budget": the answer of `raprune pick`, requested from the server as the sliders move. */

import { ask } from "./api.js";
import { element, named, refill } from "./dom.js";
import { known, percent, settingsText } from "./format.js";
import { command } from "./command.js";
import { COSTS } from "./trials.js";

export class Picker {
  constructor(view) {
    this.view = view;
    this.sliders = {};
    this.row = null;
    this.refusal = null;
    this.asked = 0;
    view.derive(["run", "rows"], () => this.#build());
    view.derive(["rows", "wanted"], () => this.#pick());
    view.on(["rows", "wanted", "run"], () => this.draw());
    named("pick-select").addEventListener("click", () => {
      const trial = view.get("picked");
      if (trial !== null) view.set({ selected: trial });
    });
    named("pick-floor").addEventListener("input", () => this.#moved());
  }

  #build() {
    const run = this.view.get("run");
    const trials = this.view.get("trials");
    if (!run) return;
    for (const cost of Object.keys(COSTS)) {
      if (this.sliders[cost] || !trials.columns[`${cost}_fraction`]?.some(known)) continue;
      const id = `pick-${cost}`;
      const value = Math.round(1000 * (run.budget[cost] ?? 1)) / 10;
      const slider = element("input", {
        id,
        type: "range",
        min: 1,
        max: 100,
        step: 0.5,
        value,
        input: () => this.#moved(),
      });
      const output = element("output", { for: id });
      named("pick-sliders").append(
        element("div", { class: "slider" }, element("label", { for: id }, COSTS[cost]), slider, output),
      );
      this.sliders[cost] = { slider, output };
    }
    this.#moved();
  }

  #moved() {
    const budget = {};
    for (const [cost, { slider, output }] of Object.entries(this.sliders)) {
      const share = Number(slider.value) / 100;
      budget[cost] = share >= 1 ? null : share;
      output.textContent = budget[cost] === null ? "no limit" : `at most ${Number((100 * share).toFixed(1))} %`;
      slider.setAttribute("aria-valuetext", output.textContent);
    }
    const floor = named("pick-floor").valueAsNumber;
    this.view.set({ wanted: { budget, floor: Number.isFinite(floor) ? floor / 100 : null } });
  }

  /** Requests the pick; of several open requests only the answer to the last one counts. */
  async #pick() {
    const wanted = this.view.get("wanted");
    if (!wanted) return;
    this.asked += 1;
    const number = this.asked;
    const given = Object.entries(wanted.budget).filter(([, share]) => share !== null);
    if (wanted.floor !== null) given.push(["min_accuracy", wanted.floor]);
    let [row, refusal] = [null, null];
    try {
      row = await ask(`pick?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`);
    } catch (error) {
      if (!("status" in error)) throw error;
      refusal = error;
    }
    if (number !== this.asked) return;
    Object.assign(this, { row, refusal });
    this.view.set({ picked: this.view.get("trials").positions.get(row?.trial_id) ?? null });
    this.draw();
  }

  draw() {
    const started = performance.now();
    const wanted = this.view.get("wanted");
    const run = this.view.get("run");
    if (!wanted || !run) return;
    named("pick-select").disabled = this.row === null;
    named("pick-metric").textContent = run.metric;
    const parts = Object.entries(wanted.budget)
      .filter(([, share]) => share !== null)
      .map(([cost, share]) => `--budget-${cost} ${Number(share.toFixed(4))}`);
    if (wanted.floor !== null) parts.push(`--min-accuracy ${Number(wanted.floor.toFixed(6))}`);
    refill(named("pick-command"), command(`raprune pick ${run.store} ${parts.join(" ")}`.trim()));
    refill(named("pick-result"), this.row ? this.#told(this.row) : this.#nothing());
    performance.measure("pick", { start: started });
  }

  #told(row) {
    const interval = known(row.val_interval) ? ` ± ${(100 * row.val_interval).toFixed(2)}` : "";
    const test = known(row.test_accuracy) ? `, test ${percent(row.test_accuracy)}` : "";
    const costs = Object.entries(COSTS)
      .filter(([cost]) => known(row[`${cost}_fraction`]))
      .map(([cost, name]) => `${percent(row[`${cost}_fraction`], 1)} of the ${name}`);
    const settings = settingsText(row.settings);
    return [
      element("strong", {}, `${percent(row.val_accuracy)}${interval}`),
      ` validation ${this.view.get("run").metric}${test}, at ${costs.join(", ")}. `,
      element(
        "span",
        { class: "quiet" },
        `${row.method}${settings ? ` (${settings})` : ""}, candidate ${row.candidate}.`,
      ),
    ];
  }

  /** The server's reason if there is no pick. */
  #nothing() {
    return this.refusal ? [`${this.refusal.message} ${this.refusal.hint}`] : [];
  }
}
