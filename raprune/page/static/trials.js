/**
 * What a run's trials come to, by the rules of `raprune/results/front.py`: candidates, their front, the best under a budget.
 *
 * Trials are held by columns, as the server sends them; a trial is its position, from 0, in the order of the records.
 */

export const COSTS = { flops: "FLOPs", params: "parameters", latency: "latency" };

/** 97.5 % quantiles of Student's t, as in `raprune.results.front.STUDENT`. */
const STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];

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
 * One row for each candidate of a complete trial, repaired and fine-tuned ones apart, by ascending FLOPs: the most
 * accurate of several search trials, the mean of several seeds. A row is {trial, candidate, accuracy, interval,
 * repeats, flops, ...}.
 */
export function candidates(trials) {
  const named = new Map();
  for (let i = 0; i < trials.length; i += 1) {
    if (trials.get(i, "state") !== "COMPLETE" || trials.get(i, "val_accuracy") === null) continue;
    const candidate = trials.get(i, "candidate");
    if (candidate === null) continue;
    if (named.has(candidate)) named.get(candidate).push(i);
    else named.set(candidate, [i]);
  }
  const rows = [...named.values()].map((alike) => rowOf(trials, alike));
  // Of equally good ones the first stays on a front: the one that was trained the least.
  return rows.sort((a, b) =>
    a.flops - b.flops || b.accuracy - a.accuracy || a.epochs - b.epochs || compared(a.candidate, b.candidate)
  );
}

/** The rows within the budget that no other beats in both accuracy and `cost`, by ascending cost. */
export function front(rows, budget, cost) {
  const admitted = within(rows, budget);
  const points = admitted.map((row) => [1 - row.accuracy, row[`${cost}_fraction`] ?? 1, row.density]);
  const order = points.map((_, i) => i);
  order.sort((a, b) => points[a][0] - points[b][0] || points[a][1] - points[b][1] || points[a][2] - points[b][2]);
  const chosen = [];
  for (const i of order) {
    if (!chosen.some((j) => points[j].every((value, k) => value <= points[i][k]))) chosen.push(i);
  }
  return chosen.map((i) => admitted[i]).sort((a, b) => (a[`${cost}_fraction`] ?? 1) - (b[`${cost}_fraction`] ?? 1));
}

/** The rows that the budget, {flops, params, latency} of fractions or null, admits. */
export function within(rows, budget) {
  return rows.filter((row) =>
    Object.keys(COSTS).every((cost) => {
      const limit = budget[cost] ?? null;
      const share = row[`${cost}_fraction`];
      return limit === null || (share !== null && share <= limit);
    })
  );
}

/** What `raprune pick` gives: the most accurate row, or with `floor` the cheapest that has it; null for none. */
export function pick(rows, budget, floor = null) {
  let picked = null;
  const better = floor === null
    ? (row) => row.accuracy > picked.accuracy || (row.accuracy === picked.accuracy && row.flops < picked.flops)
    : (row) => row.flops < picked.flops || (row.flops === picked.flops && row.accuracy > picked.accuracy);
  for (const row of within(rows, budget)) {
    if (floor !== null && row.accuracy < floor) continue;
    if (picked === null || better(row)) picked = row;
  }
  return picked;
}

/** The mean accuracy on the test split of the networks behind a row, by `run.test`; null where one was not measured. */
export function testAccuracy(trials, row, test) {
  const measured = row.repeats.map((i) => test?.candidates?.[trials.get(i, "network")] ?? null);
  return measured.includes(null) ? null : measured.reduce((sum, value) => sum + value, 0) / measured.length;
}

/** Below 0 if trial `i` stands for its candidate rather than trial `j`. */
function standing(trials, i, j) {
  const by = (name) => trials.get(i, name) - trials.get(j, name);
  return -by("val_accuracy") || by("epochs") || compared(trials.get(i, "trial_id"), trials.get(j, "trial_id"));
}

function compared(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

function rowOf(trials, alike) {
  if (trials.get(alike[0], "stage") !== "finetune") {
    return row(trials, alike.reduce((best, i) => (standing(trials, i, best) < 0 ? i : best)));
  }
  const repeats = new Map();
  for (const i of alike) repeats.set(trials.get(i, "repeat") ?? 0, i);
  const order = [...repeats.keys()].sort((a, b) => a - b);
  const first = row(trials, repeats.get(order[0]));
  if (order.length === 1) return first;
  const behind = order.map((repeat) => repeats.get(repeat));
  const accuracies = behind.map((i) => trials.get(i, "val_accuracy"));
  const mean = accuracies.reduce((sum, value) => sum + value, 0) / accuracies.length;
  const variance = accuracies.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (accuracies.length - 1);
  const quantile = STUDENT[Math.min(accuracies.length - 1, STUDENT.length) - 1];
  const interval = quantile * Math.sqrt(variance / accuracies.length);
  return { ...first, accuracy: mean, interval, repeats: behind };
}

function row(trials, i) {
  const zeros = trials.get(i, "zeros") ?? 0;
  const params = trials.get(i, "params");
  return {
    trial: i,
    candidate: trials.get(i, "network"),
    epochs: trials.get(i, "epochs"),
    accuracy: trials.get(i, "val_accuracy"),
    interval: null,
    repeats: [i],
    flops: trials.get(i, "flops"),
    flops_fraction: trials.cost(i, "flops"),
    params_fraction: trials.cost(i, "params"),
    latency_fraction: trials.cost(i, "latency"),
    // Weights that were pruned one by one save no FLOPs, and count as a third objective.
    density: zeros > 0.01 * params ? 1 - zeros / params : 1,
  };
}

function parsed(text) {
  try {
    return JSON.parse(text ?? "{}") ?? {};
  } catch {
    return {};
  }
}
