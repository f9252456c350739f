/**
 * The trials of a run and the rows of its candidates, as the server sends them. Which rows count, are on a front or are
 * picked is decided by the server (`raprune/results`).
 *
 * Trials are held by columns, as the server sends them; a trial is its position, from 0, in the order of the records.
 */

export const COSTS = { flops: "FLOPs", params: "parameters", latency: "latency", memory: "memory" };

/** Titles of axes, where they say more than the name. */
export const COST_TITLES = { latency: "predicted latency", memory: "peak activation memory" };

export class Trials {
  constructor() {
    this.columns = {};
    this.length = 0;
    this.positions = new Map();
    this.continued = new Set();
    this.settings = [];
    this.texts = [];
  }

  /** Adds the server's next records. */
  append(columns) {
    const added = (columns.trial_id ?? columns.id ?? []).length;
    for (const [name, values] of Object.entries(columns)) {
      const column = (this.columns[name] ??= []);
      // A column that the first records did not have.
      while (column.length < this.length) column.push(null);
      for (const value of values) column.push(value);
    }
    for (let i = this.length; i < this.length + added; i += 1) {
      this.positions.set(this.columns.trial_id[i], i);
      if (this.columns.parent[i]) this.continued.add(this.columns.parent[i]);
      this.settings.push(parsed(this.columns.settings[i]));
      const words = ["trial_id", "network", "method", "allocation", "settings", "state", "stage", "error"];
      this.texts.push(words.map((name) => this.columns[name][i] ?? "").join("\n").toLowerCase());
    }
    this.length += added;
  }

  /** One value of one trial; null where it is not known. */
  get(i, name) {
    return this.columns[name]?.[i] ?? null;
  }

  cost(i, cost) {
    return this.get(i, `${cost}_fraction`);
  }

  /** How far the trial's network was taken: "tuned", "searched", or "below" the last rung, where nothing counts. */
  kind(i) {
    if (this.get(i, "stage") === "finetune") return "tuned";
    return this.get(i, "state") === "STOPPED" ? "below" : "searched";
  }
}

/**
 * The candidates, as the server's columns tell them: {trial, candidate, accuracy, interval, test, repeats, onFront,
 * starred}. `trial` and `repeats` are positions, `onFront` the costs on whose front a candidate is. Rows of trials that
 * have not come yet are left out until they have.
 */
export function rowsOf(trials, told) {
  const rows = [];
  told.trial.forEach((trial, place) => {
    const repeats = told.repeats[place];
    if (Math.max(...repeats) >= trials.length) return;
    rows.push({
      trial,
      repeats,
      candidate: trials.get(trial, "network"),
      accuracy: told.val_accuracy[place],
      interval: told.val_interval[place],
      test: told.test_accuracy[place],
      onFront: told.on_front[place],
      starred: told.starred[place],
    });
  });
  return rows;
}

function parsed(text) {
  try {
    return JSON.parse(text ?? "{}") ?? {};
  } catch {
    return {};
  }
}
