/** "Pick at this budget": what `raprune pick` gives, from what is known, as the sliders move. */

import { element, named, refill } from "./dom.js";
import { known, percent, settingsText } from "./format.js";
import { command } from "./command.js";
import { COSTS, pick, testAccuracy, within } from "./trials.js";

export class Picker {
  constructor(view) {
    this.view = view;
    this.sliders = {};
    view.derive(["run", "rows"], () => this.#build());
    view.derive(["rows", "wanted"], () => this.#pick());
    view.on(["rows", "wanted", "run"], () => this.draw());
    named("pick-select").addEventListener("click", () => {
      if (this.row) view.set({ selected: this.row.trial });
    });
    named("pick-floor").addEventListener("input", () => this.#moved());
  }

  #build() {
    const run = this.view.get("run");
    const rows = this.view.get("rows");
    if (!run) return;
    for (const cost of Object.keys(COSTS)) {
      if (this.sliders[cost] || !rows.some((row) => known(row[`${cost}_fraction`]))) continue;
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

  #pick() {
    const wanted = this.view.get("wanted");
    if (!wanted) return;
    this.row = pick(this.view.get("rows"), wanted.budget, wanted.floor);
    this.view.set({ picked: this.row ? this.row.trial : null });
  }

  draw() {
    const started = performance.now();
    const wanted = this.view.get("wanted");
    const run = this.view.get("run");
    if (!wanted || !run) return;
    const rows = this.view.get("rows");
    named("pick-select").disabled = this.row === null;
    const parts = Object.entries(wanted.budget)
      .filter(([, share]) => share !== null)
      .map(([cost, share]) => `--budget-${cost} ${Number(share.toFixed(4))}`);
    if (wanted.floor !== null) parts.push(`--min-accuracy ${Number(wanted.floor.toFixed(6))}`);
    refill(named("pick-command"), command(`raprune pick ${run.store} ${parts.join(" ")}`.trim()));
    refill(named("pick-result"), this.row ? this.#told(this.row) : this.#nothing(rows, wanted));
    performance.measure("pick", { start: started });
  }

  #told(row) {
    const trials = this.view.get("trials");
    const get = (name) => trials.get(row.trial, name);
    const interval = known(row.interval) ? ` ± ${(100 * row.interval).toFixed(2)}` : "";
    const tested = testAccuracy(trials, row, this.view.get("run").test);
    const test = known(tested) ? `, test ${percent(tested)}` : "";
    const costs = Object.entries(COSTS)
      .filter(([cost]) => known(row[`${cost}_fraction`]))
      .map(([cost, name]) => `${percent(row[`${cost}_fraction`], 1)} of the ${name}`);
    const settings = settingsText(trials.settings[row.trial]);
    return [
      element("strong", {}, `${percent(row.accuracy)}${interval}`),
      ` validation${test}, at ${costs.join(", ")}. `,
      element(
        "span",
        { class: "quiet" },
        `${get("method")}${settings ? ` (${settings})` : ""}, candidate ${row.candidate}.`,
      ),
    ];
  }

  #nothing(rows, { budget, floor }) {
    if (!rows.length) return ["The run has no complete trial yet."];
    const admitted = within(rows, budget);
    if (!admitted.length) {
      const least = rows.reduce((a, b) => (b.flops_fraction < a.flops_fraction ? b : a));
      return [
        `No candidate is so small: the smallest has ${percent(least.flops_fraction, 1)} of the FLOPs and ` +
        `${percent(least.params_fraction, 1)} of the parameters. Raise the budget, or search with a smaller one.`,
      ];
    }
    const best = admitted.reduce((a, b) => (b.accuracy > a.accuracy ? b : a));
    return [`No candidate within this budget reaches ${percent(floor)}: the best has ${percent(best.accuracy)}.`];
  }
}
