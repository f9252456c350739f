/** The runs as a table that is sorted and filtered; its boxes choose the runs of the chart. */

import { runMark } from "./fronts.js";
import { element, named, refill } from "./dom.js";
import { ago, count, known, percent } from "./format.js";
import { COSTS } from "./trials.js";

const COLUMNS = [
  { key: "name", title: "run", value: (run) => run.name.toLowerCase() },
  { key: "state", title: "state", value: (run) => run.state, wide: true },
  { key: "best", title: "best", value: (run) => run.best?.val_accuracy, number: true },
  { key: "searched", title: "trials", value: (run) => run.searched, number: true, wide: true },
  { key: "finetuned", title: "fine-tuned", value: (run) => run.finetuned, number: true, wide: true },
  { key: "began", title: "began", value: (run) => run.started_at ?? run.created_at, number: true, wide: true },
];
const STATES = {
  idle: "Not finished, and no process works on it: raprune resume resumes it.",
  unreadable: "Its folder holds a run that cannot be read.",
};
const TICK_MS = 30000;

export class RunTable {
  constructor(view) {
    this.view = view;
    this.table = named("runs-table");
    this.sorting = { key: "began", descending: true };
    this.words = [];
    this.#head();
    view.on(["runs", "chosen", "slots"], () => this.draw());
    named("runs-filter").addEventListener("input", (event) => {
      this.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.draw();
    });
    named("runs-all").addEventListener("click", () => {
      const listed = this.#listed().filter((run) => run.error === null).map((run) => run.id);
      this.view.set({ chosen: [...new Set([...(this.view.get("chosen") ?? []), ...listed])] });
    });
    named("runs-none").addEventListener("click", () => this.view.set({ chosen: [] }));
    // The times since the beginnings of the runs grow without news from the server.
    setInterval(() => this.draw(), TICK_MS);
  }

  draw() {
    if (!this.view.get("runs")) return;
    const rows = this.#listed();
    const focused = document.activeElement?.closest?.("#runs-table tbody") ? document.activeElement.id : "";
    refill(this.table.tBodies[0], rows.map((run) => this.#row(run)));
    if (focused) named(focused)?.focus({ preventScroll: true });
    named("runs-empty").hidden = rows.length > 0;
    named("runs-empty").textContent = this.view.get("runs").length
      ? "No run passes the filter."
      : "The folder holds no run any more.";
  }

  #listed() {
    const { key, descending } = this.sorting;
    const { value } = COLUMNS.find((column) => column.key === key);
    const sign = descending ? -1 : 1;
    return (this.view.get("runs") ?? [])
      .filter((run) => {
        const text = [run.name, run.state, run.network, run.dataset, run.error].join("\n").toLowerCase();
        return this.words.every((word) => text.includes(word));
      })
      .map((run) => [value(run), run])
      .sort(([x, a], [y, b]) => {
        // Unknown values are last in both directions.
        if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : a.name.localeCompare(b.name);
        return x === y ? a.name.localeCompare(b.name) : x < y ? -sign : sign;
      })
      .map(([, run]) => run);
  }

  #head() {
    const cells = COLUMNS.map((column) => {
      const sort = () => {
        const again = this.sorting.key === column.key;
        this.sorting = { key: column.key, descending: again ? !this.sorting.descending : Boolean(column.number) };
        this.draw();
        this.#arrows();
      };
      const arrow = element("span", { class: "arrow", "aria-hidden": "true" });
      const button = element("button", { type: "button", click: sort }, column.title, arrow);
      return element("th", { scope: "col", class: classOf(column), "data-key": column.key }, button);
    });
    const chart = element("th", { scope: "col", class: "box" }, element("span", { class: "unseen" }, "in the chart"));
    refill(this.table.tHead, element("tr", {}, chart, cells));
    this.#arrows();
  }

  #arrows() {
    for (const cell of this.table.tHead.rows[0].cells) {
      if (!cell.dataset.key) continue;
      const mine = cell.dataset.key === this.sorting.key;
      cell.setAttribute("aria-sort", mine ? (this.sorting.descending ? "descending" : "ascending") : "none");
    }
  }

  #row(run) {
    const slot = this.view.get("slots").get(run.id);
    const box = element("input", {
      id: `choose-${run.id}`,
      type: "checkbox",
      "aria-label": `Show the front of ${run.name} in the chart`,
      checked: slot !== undefined,
      disabled: run.error !== null,
      change: (event) => this.#choose(run.id, event.target.checked),
    });
    const state = element("span", { class: `state ${run.state}`, title: STATES[run.state] ?? null }, run.state);
    const cells = [
      element("td", { class: "box" }, element("label", {}, box, slot === undefined ? null : runMark(slot))),
      element("th", { scope: "row" }, this.#name(run)),
      element("td", { class: "wide" }, state),
      element("td", { class: "number" }, run.error === null ? best(run) : null),
    ];
    const rest = run.error === null
      ? [`${count(run.searched)} of ${count(run.trials)}`, count(run.finetuned), began(run)]
      : [null, null, null];
    rest.forEach((text, i) => {
      const title = i === 2 ? moment(run) : null;
      cells.push(element("td", { class: "number wide", title }, text));
    });
    const point = (to) => () => this.view.set({ pointed: to });
    return element("tr", { pointerenter: point(run.id), pointerleave: point(null) }, cells);
  }

  #name(run) {
    if (run.error !== null) {
      // An unreadable run has no page of its own.
      return [run.name, element("span", { class: "about reason" }, `${run.error} ${run.hint}`.trim())];
    }
    const what = [run.network, run.dataset].filter(Boolean).join(" on ");
    const short = `${run.state}, ${count(run.searched)} of ${count(run.trials)} trials, began ${began(run)}`;
    return [
      element("a", { id: `open-${run.id}`, href: `./run/${run.id}/` }, run.name),
      element("span", { class: "about" }, what ? `${what}: ${budget(run)}` : budget(run)),
      element("span", { class: "about narrow-only" }, short),
    ];
  }

  #choose(id, wanted) {
    const others = (this.view.get("chosen") ?? []).filter((other) => other !== id);
    this.view.set({ chosen: wanted ? [...others, id] : others });
  }
}

function classOf(column) {
  return `${column.number ? "number" : ""} ${column.wide ? "wide" : ""}`.trim() || null;
}

function best(run) {
  if (!run.best) return element("span", { class: "quiet" }, "none yet");
  const cost = known(run.budget.latency) && !known(run.budget.flops) ? "latency" : "flops";
  const at = run.best[`${cost}_fraction`];
  return [
    element("strong", { title: `validation ${run.metric}` }, percent(run.best.val_accuracy)),
    element("span", { class: "about" }, [run.metric, known(at) ? ` at ${percent(at, 1)} of the ${COSTS[cost]}` : ""]),
  ];
}

function budget(run) {
  const limits = Object.entries(COSTS)
    .filter(([cost]) => known(run.budget[cost]))
    .map(([cost, name]) => `${Number((100 * run.budget[cost]).toPrecision(3))} % of the ${name}`);
  if (known(run.budget.latency_ms)) limits.push(`${Number(run.budget.latency_ms.toPrecision(3))} ms`);
  if (known(run.budget.memory_bytes)) limits.push(`${Number((run.budget.memory_bytes / 2 ** 20).toPrecision(3))} MiB`);
  return limits.length ? `at most ${limits.join(" and ")}` : "no budget";
}

function began(run) {
  const at = run.started_at ?? run.created_at;
  if (!known(at)) return "–";
  return ago(Date.now() / 1000 - at);
}

function moment(run) {
  const at = run.started_at ?? run.created_at;
  return known(at) ? new Date(1000 * at).toLocaleString() : null;
}
