/** One filter of the trials for the chart, the parallel coordinates and the table. */

import { element, named, refill } from "./dom.js";
import { count } from "./format.js";

export class Filter {
  constructor(view) {
    this.view = view;
    this.form = named("filter");
    this.lists = { state: named("filter-state"), stage: named("filter-stage"), method: named("filter-method") };
    this.form.addEventListener("input", () => this.#changed());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("reset", () => {
      view.set({ brushes: null });
      // The fields become empty only after this event.
      setTimeout(() => this.#changed());
    });
    view.derive(["rows", "filter", "brushes", "front"], () => this.apply());
    view.on(["rows"], () => this.#options());
    view.on(["visible", "rows"], () => this.#told());
  }

  /** Shows only the trials of this method, or of all methods with "". */
  method(name) {
    this.lists.method.value = name;
    this.#changed();
  }

  #changed() {
    this.view.set({
      filter: {
        words: named("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean),
        state: this.lists.state.value,
        stage: this.lists.stage.value,
        method: this.lists.method.value,
        front: named("filter-front").checked,
      },
    });
  }

  /** Sets `visible` to 1 for each trial that passes the filter; null if there is no filter. */
  apply() {
    const started = performance.now();
    const { view } = this;
    const trials = view.get("trials");
    const wanted = view.get("filter");
    const brushes = view.get("brushes");
    const active = wanted.words.length || wanted.state || wanted.stage || wanted.method || wanted.front || brushes;
    if (!active) {
      view.set({ visible: null });
      return;
    }
    const front = new Set(view.get("front").flatMap((row) => row.repeats));
    const visible = new Uint8Array(trials.length);
    for (let i = 0; i < trials.length; i += 1) {
      visible[i] = (!wanted.state || trials.columns.state[i] === wanted.state) &&
          (!wanted.stage || trials.columns.stage[i] === wanted.stage) &&
          (!wanted.method || trials.columns.method[i] === wanted.method) &&
          (!wanted.front || front.has(i)) &&
          wanted.words.every((word) => trials.texts[i].includes(word)) &&
          (!brushes || brushes.passes(i))
        ? 1
        : 0;
    }
    view.set({ visible });
    performance.measure("filter", { start: started });
  }

  #options() {
    const trials = this.view.get("trials");
    for (const [name, list] of Object.entries(this.lists)) {
      const values = [...new Set(trials.columns[name] ?? [])].sort();
      const shown = [...list.options].slice(1).map((option) => option.value);
      if (values.join("\n") === shown.join("\n")) continue;
      const chosen = list.value;
      refill(list, list.options[0], values.map((value) => element("option", { value }, label(value))));
      list.value = values.includes(chosen) ? chosen : "";
    }
  }

  #told() {
    const visible = this.view.get("visible");
    const total = this.view.get("trials").length;
    const left = visible === null ? total : visible.reduce((sum, one) => sum + one, 0);
    named("filter-count").textContent = visible === null
      ? `${count(total)} trials`
      : `${count(left)} of ${count(total)} trials`;
    named("filter-clear").disabled = visible === null;
  }
}

function label(value) {
  return { finetune: "fine-tuning", search: "search" }[value] ?? String(value).toLowerCase();
}
