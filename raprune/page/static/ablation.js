/** The comparison of the methods: the best network of each within fractions of the budget, after equal fine-tuning. */

import { element, named, refill } from "./dom.js";
import { count, epochsText, known, percent, settingsText } from "./format.js";
import { COSTS } from "./trials.js";

export class Ablation {
  constructor(view) {
    this.view = view;
    view.on(["ablation", "rows"], () => this.draw());
  }

  draw() {
    const rows = this.view.get("ablation");
    const host = named("ablation-table");
    named("ablation-empty").hidden = Boolean(rows?.length);
    host.hidden = !rows?.length;
    if (!rows?.length) return;
    const alike = new Map();
    for (const row of rows) {
      const key = `${row.finetuning_epochs} ${row.share}`;
      alike.set(key, [...(alike.get(key) ?? []), row]);
    }
    // The networks with the most fine-tuning come first, because people export those.
    const groups = [...alike.values()].sort((a, b) => b[0].finetuning_epochs - a[0].finetuning_epochs);
    const lowest = Math.min(...rows.map((row) => row.val_accuracy));
    const highest = Math.max(...rows.map((row) => row.val_accuracy));
    for (const body of [...host.tBodies]) body.remove();
    host.append(...groups.map((group) => this.#group(group, lowest, highest)));
  }

  #group(group, lowest, highest) {
    const first = group[0];
    const epochs = first.finetuning_epochs;
    const limits = Object.entries(COSTS)
      .filter(([cost]) => known(first[`budget_${cost}`]))
      .map(([cost, name]) => `${percent(first[`budget_${cost}`], 0)} of the ${name}`);
    const title = `${
      epochs ? `${epochsText(epochs)} of fine-tuning` : "Repaired, not fine-tuned"
    }, at most ${limits.join(" and ") || "all"}`;
    const body = element(
      "tbody",
      {},
      element("tr", { class: "group" }, element("th", { colspan: 6, scope: "rowgroup" }, title)),
    );
    group.forEach((row, i) => body.append(this.#row(row, i === 0, lowest, highest)));
    return body;
  }

  #row(row, best, lowest, highest) {
    const interval = known(row.val_interval) ? ` ± ${(100 * row.val_interval).toFixed(2)}` : "";
    const bar = element("span", { class: best ? "bar best" : "bar" });
    bar.style.width = `${highest > lowest ? 8 + 92 * ((row.val_accuracy - lowest) / (highest - lowest)) : 100}%`;
    const position = this.view.get("trials").positions.get(row.trial_id);
    const select = () => this.view.set({ selected: position, revealed: performance.now() });
    const settings = settingsText(row.settings ?? {});
    return element(
      "tr",
      {},
      element("th", { scope: "row", title: settings || null }, row.method),
      element("td", { class: "number" }, `${percent(row.val_accuracy)}${interval}`),
      element("td", { class: "track", "aria-hidden": "true" }, bar),
      element("td", { class: "number" }, percent(row.test_accuracy)),
      element("td", { class: "number" }, percent(row.flops_fraction, 1)),
      element(
        "td",
        {},
        position === undefined ? row.candidate : element(
          "button",
          { type: "button", class: "link", click: select, title: `${count(row.flops)} FLOPs` },
          row.candidate,
        ),
      ),
    );
  }
}
