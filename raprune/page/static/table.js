/** All trials as a table with sorting, filter and keys. Only the rows in sight are in the document. */

import { element, named, refill } from "./dom.js";
import { count, duration, known, percent, settingsText } from "./format.js";
import { whenSeen } from "./view.js";

const ROW = 30;
/* Pixels; page.css has the same. */
const SPARE = 8;

const COLUMNS = [
  { key: "position", title: "#", text: (_, i) => count(i + 1), number: true },
  { key: "trial_id", title: "trial" },
  { key: "state", title: "state" },
  { key: "method", title: "method" },
  { key: "val_accuracy", title: "validation", text: (value) => percent(value), number: true },
  { key: "test_accuracy", title: "test", text: (value) => percent(value), number: true },
  { key: "flops_fraction", title: "FLOPs", text: (value) => percent(value, 1), number: true },
  { key: "params_fraction", title: "parameters", text: (value) => percent(value, 1), number: true },
  { key: "latency_fraction", title: "latency", text: (value) => percent(value, 1), number: true },
  {
    key: "epochs",
    title: "epochs",
    text: (value) => (value ? String(Number(value.toPrecision(3))) : "0"),
    number: true,
  },
  { key: "seconds", title: "time", text: (value) => duration(value), number: true },
  { key: "allocation", title: "widths by" },
  { key: "settings", title: "settings", wide: true },
];
const RARE = ["test_accuracy", "latency_fraction"];
const OF_NETWORK = ["val_accuracy", "test_accuracy", "flops_fraction", "params_fraction", "latency_fraction", "epochs"];
/* Columns in whose place a failed trial shows its error. */

export class TrialTable {
  constructor(view) {
    this.view = view;
    this.host = named("trials-scroll");
    this.table = named("trials-table");
    this.sorting = { key: "position", descending: true };
    this.order = [];
    this.active = 0;
    this.shown = [];
    const draw = whenSeen(this.host, () => this.draw());
    view.on(["rows", "visible"], draw);
    view.on(["selected"], () => this.#window(true));
    this.host.addEventListener("scroll", () => this.#window());
    new ResizeObserver(() => this.#window()).observe(this.host);
    this.table.addEventListener("keydown", (event) => this.#key(event));
    this.table.tBodies[0].addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-trial]");
      if (!row) return;
      this.active = Number(row.getAttribute("aria-rowindex")) - 2;
      view.set({ selected: Number(row.dataset.trial), revealed: performance.now() });
    });
  }

  draw() {
    const started = performance.now();
    const trials = this.view.get("trials");
    const visible = this.view.get("visible");
    const columns = COLUMNS.filter(({ key }) => !RARE.includes(key) || trials.columns[key]?.some(known));
    if (columns.length !== this.shown.length) {
      this.shown = columns;
      this.#head();
    }
    const kept = this.order[this.active];
    this.order = [];
    for (let i = 0; i < trials.length; i += 1) if (visible === null || visible[i]) this.order.push(i);
    this.#sort();
    this.active = Math.max(0, this.order.indexOf(kept));
    this.table.setAttribute("aria-rowcount", String(this.order.length + 1));
    this.table.setAttribute("aria-colcount", String(columns.length));
    this.#window(true);
    named("trials-empty").hidden = this.order.length > 0;
    named("trials-empty").textContent = trials.length ? "No trial passes the filter." : "No trial has ended yet.";
    performance.measure("table", { start: started });
  }

  #head() {
    const cells = this.shown.map((column) => {
      const sort = () => {
        const again = this.sorting.key === column.key;
        this.sorting = { key: column.key, descending: again ? !this.sorting.descending : Boolean(column.number) };
        this.draw();
        this.#arrows();
      };
      const button = element(
        "button",
        { type: "button", click: sort },
        column.title,
        element("span", { class: "arrow", "aria-hidden": "true" }),
      );
      return element("th", { scope: "col", class: column.number ? "number" : null, "data-key": column.key }, button);
    });
    refill(this.table.tHead, element("tr", { "aria-rowindex": 1 }, cells));
    this.#arrows();
  }

  #arrows() {
    for (const cell of this.table.tHead.rows[0].cells) {
      const mine = cell.dataset.key === this.sorting.key;
      cell.setAttribute("aria-sort", mine ? (this.sorting.descending ? "descending" : "ascending") : "none");
    }
  }

  #sort() {
    const { key, descending } = this.sorting;
    const sign = descending ? -1 : 1;
    if (key === "position") {
      if (descending) this.order.reverse();
      return;
    }
    const column = this.view.get("trials").columns[key] ?? [];
    this.order.sort((a, b) => {
      const [x, y] = [column[a], column[b]];
      // Unknown values are last in both directions.
      if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : a - b;
      return x === y ? a - b : x < y ? -sign : sign;
    });
  }

  /** Puts the rows in sight into the document. */
  #window(always = false) {
    const from = Math.max(0, Math.floor(this.host.scrollTop / ROW) - SPARE);
    const to = Math.min(this.order.length, Math.ceil((this.host.scrollTop + this.host.clientHeight) / ROW) + SPARE);
    if (!always && from === this.from && to === this.to) return;
    [this.from, this.to] = [from, to];
    const body = this.table.tBodies[0];
    const focused = body.contains(document.activeElement);
    const rows = [];
    // One row takes the focus, even if the active row is out of sight.
    const stop = this.active >= from && this.active < to ? this.active : from;
    for (let at = from; at < to; at += 1) rows.push(this.#row(at, at === stop));
    refill(body, this.#gap(from), rows, this.#gap(this.order.length - to));
    if (focused) body.querySelector('tr[tabindex="0"]')?.focus({ preventScroll: true });
  }

  #gap(rows) {
    if (rows === 0) return null;
    const cell = element("td", { colspan: this.shown.length });
    cell.style.height = `${rows * ROW}px`;
    return element("tr", { class: "gap", "aria-hidden": "true" }, cell);
  }

  #row(at, stop) {
    const i = this.order[at];
    const trials = this.view.get("trials");
    const selected = this.view.get("selected") === i;
    const error = trials.get(i, "error");
    const cells = this.shown.flatMap((column) => {
      if (known(error) && OF_NETWORK.includes(column.key)) {
        if (column.key !== OF_NETWORK[0]) return [];
        const span = this.shown.filter(({ key }) => OF_NETWORK.includes(key)).length;
        return element("td", { class: "error", colspan: span, title: error }, error.split("\n")[0]);
      }
      const text = this.#text(column, i);
      const long = column.wide && text.length > 30;
      const mark = column.key === "state"
        ? element("span", { class: `state ${text.toLowerCase()}` }, text.toLowerCase())
        : text;
      const name = `${column.number ? "number" : ""} ${column.wide ? "wide" : ""}`.trim();
      return element("td", { class: name || null, title: long ? text : null }, mark);
    });
    return element("tr", {
      "aria-rowindex": at + 2,
      "aria-selected": String(selected),
      "data-trial": i,
      tabindex: stop ? 0 : -1,
      class: trials.get(i, "state") === "FAILED" ? "failed" : null,
    }, cells);
  }

  #text(column, i) {
    const trials = this.view.get("trials");
    if (column.key === "settings") return settingsText(trials.settings[i]);
    const value = trials.get(i, column.key);
    if (column.text) return column.text(value, i);
    return known(value) ? String(value) : "";
  }

  #key(event) {
    const row = event.target.closest("tr[data-trial]");
    if (!row) return;
    const page = Math.max(1, Math.floor(this.host.clientHeight / ROW) - 2);
    const at = Number(row.getAttribute("aria-rowindex")) - 2;
    const last = this.order.length - 1;
    const to =
      { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: last }[event.key];
    if (to !== undefined) this.#focus(Math.min(last, Math.max(0, to)));
    else if (event.key === "Enter" || event.key === " ") {
      this.view.set({ selected: Number(row.dataset.trial), revealed: performance.now() });
    } else return;
    event.preventDefault();
  }

  #focus(at) {
    this.active = at;
    const top = at * ROW;
    const head = this.table.tHead.offsetHeight;
    if (top < this.host.scrollTop) this.host.scrollTop = top;
    else if (top + ROW + head > this.host.scrollTop + this.host.clientHeight) {
      this.host.scrollTop = top + ROW + head - this.host.clientHeight;
    }
    this.#window(true);
    this.table.tBodies[0].querySelector('tr[tabindex="0"]')?.focus({ preventScroll: true });
  }
}
