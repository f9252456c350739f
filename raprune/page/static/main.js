/** The page of a run: requests data from the server, listens to its events, passes the data to charts and lists. */

import { ask, listen } from "./api.js";
import { Ablation } from "./ablation.js";
import { Detail } from "./detail.js";
import { named } from "./dom.js";
import { Filter } from "./filter.js";
import { known } from "./format.js";
import { FrontChart } from "./front.js";
import { Header } from "./header.js";
import { Parallel } from "./parallel.js";
import { Picker } from "./pick.js";
import { StageList } from "./stages.js";
import { themes } from "./themes.js";
import { TrialTable } from "./table.js";
import { Trend } from "./trend.js";
import { COSTS, rowsOf, Trials } from "./trials.js";
import { choice, View } from "./view.js";

const SLOW_MS = 3000;
/* History and ablation are requested at most this often, not with every trial. */

const view = new View({
  run: null,
  progress: null,
  live: false,
  connected: null,
  complete: true,
  away: null,
  stages: null,
  failure: null,
  trials: new Trials(),
  rows: [],
  front: [],
  methods: [],
  filter: { words: [], state: "", stage: "", method: "", front: false },
  brushes: null,
  visible: null,
  cost: "flops",
  scale: "error",
  colouring: "stage",
  over: "t_s",
  theme: "",
  selected: null,
  picked: null,
  wanted: null,
  history: null,
  ablation: null,
  revealed: 0,
  unasked: null,
});

new Header(view);
new StageList(view);
new Filter(view);
new FrontChart(view);
new Picker(view);
new Detail(view);
new Trend(view);
new Parallel(view);
new Ablation(view);
new TrialTable(view);

let loading = null;
let again = false;
let measured = null;

/** Requests new trials; one request at a time, and one more if trials came meanwhile. */
function catchUp() {
  if (loading) {
    again = true;
    return loading;
  }
  loading = (async () => {
    do {
      again = false;
      await nextTrials();
    } while (again);
  })()
    .catch(failed)
    .finally(() => {
      loading = null;
    });
  return loading;
}

async function nextTrials() {
  const tests = JSON.stringify(view.get("run")?.test ?? null);
  // Test accuracies are all that ever changes in what was recorded: at the end of a run.
  const trials = measured === null || tests === measured ? view.get("trials") : new Trials();
  measured = tests;
  for (;;) {
    const answer = await ask(`trials?after=${trials.length}`);
    if (known(answer.generation) && view.get("run") && answer.generation !== view.get("run").generation) {
      startAnew();
      return;
    }
    const before = trials.length;
    trials.append(answer.columns);
    if (trials.length > before || before === 0 || trials !== view.get("trials")) await recount(trials);
    view.set({ complete: answer.complete ?? true });
    if (trials.length >= answer.total || trials.length === before) break;
  }
  view.set({ failure: null });
}

/** Requests the candidates of all recorded trials, as the server counts them. */
async function recount(trials) {
  const rows = rowsOf(trials, await ask("rows"));
  const methods = [...new Set(trials.columns.method ?? [])].sort();
  view.set({ trials, rows, methods, front: onFront(rows) });
  fromAddress();
}

function onFront(rows) {
  const cost = view.get("cost");
  return rows.filter((row) => row.onFront.includes(cost));
}

/** Starts again with another run that is now stored in the folder. */
function startAnew() {
  measured = null;
  view.set({
    trials: new Trials(),
    selected: null,
    unasked: null,
    picked: null,
    history: null,
    ablation: null,
    rows: [],
    front: [],
    visible: null,
  });
  named("filter").reset();
  loadRun().then(catchUp);
}

async function loadRun() {
  try {
    const run = await ask("run");
    const first = view.get("run") === null;
    // The cost that `raprune front` compares accuracy with.
    if (first) view.set({ cost: run.cost ?? "flops" });
    // The first event repeats the data of the request.
    const apart = { progress: null, stages: null };
    const same = JSON.stringify({ ...run, ...apart }) === JSON.stringify({ ...view.get("run"), ...apart });
    const { progress, live, stages } = run;
    view.set({ progress, live, stages, away: run.away ?? null, failure: null });
    if (!same) view.set({ run });
    if (first) offer(run);
    document.documentElement.dataset.state = run.state ?? "";
  } catch (error) {
    failed(error);
  }
}

function failed(error) {
  if (!("status" in error)) throw error;
  view.set({ failure: error });
  setTimeout(() => (view.get("run") ? catchUp() : loadRun().then(catchUp)), 5000);
}

let slowTimer = null;
let slowAt = -Infinity;

function slowly() {
  if (slowTimer !== null) return;
  slowTimer = setTimeout(async () => {
    slowTimer = null;
    slowAt = performance.now();
    try {
      const [history, ablation] = await Promise.all([ask("history"), ask("ablation")]);
      view.set({ history, ablation: ablation.rows ?? ablation });
      offer(view.get("run"));
    } catch (error) {
      if (!("status" in error)) throw error;
      slowly();
    }
  }, Math.max(0, slowAt + SLOW_MS - performance.now()));
}

/** Enables the switches whose data this run has. */
function offer(run) {
  if (!run) return;
  const trials = view.get("trials");
  for (const cost of Object.keys(COSTS)) {
    const present = known(run.budget[cost]) || trials.columns[`${cost}_fraction`]?.some(known);
    const button = named(`cost-${cost}`);
    button.disabled = !present;
    button.parentElement.hidden = !present && (cost === "latency" || cost === "memory");
  }
  const history = view.get("history");
  const gpus = Boolean(history?.gpu_hours?.some((value) => value > 0));
  named("over-gpu_hours").disabled = !gpus;
  named("over-gpu_hours").parentElement.title = gpus ? "" : "No GPU was used so far.";
  named("over-hours").parentElement.hidden = gpus;
}

/** `#trial=ID` in the address selects this trial; without it the starred network is selected at first. */
function fromAddress() {
  if (view.get("selected") !== null) return;
  const positions = view.get("trials").positions;
  const asked = new URLSearchParams(location.hash.slice(1)).get("trial");
  const position = positions.get(asked) ?? view.get("rows").find((row) => row.starred)?.trial;
  if (position !== undefined) view.set({ selected: position, unasked: position });
}

function toAddress() {
  const selected = view.get("selected");
  if (selected === view.get("unasked")) return;
  const id = selected === null ? null : view.get("trials").get(selected, "trial_id");
  history.replaceState(
    null,
    "",
    id === null ? location.pathname + location.search : `#trial=${encodeURIComponent(id)}`,
  );
}

for (const name of ["cost", "scale", "colouring", "over"]) choice(view, name);
themes(() => view.touch("theme"));
view.derive(["cost"], () => view.set({ front: onFront(view.get("rows")) }));
view.on(["selected"], toAddress);
view.on(["revealed"], () => {
  // If the details are not beside the table, they would change out of sight.
  if (matchMedia("(max-width: 1179px)").matches) {
    named("detail").scrollIntoView();
    named("detail").focus({ preventScroll: true });
  }
});
addEventListener("hashchange", () => {
  view.set({ selected: null, unasked: null });
  fromAddress();
});

await loadRun();
await catchUp();
requestAnimationFrame(() => {
  performance.mark("drawn");
  document.documentElement.dataset.drawn = "";
});
listen({
  connected: (connected) => {
    // Requests the events that were missed while the connection was broken.
    if (connected && view.get("connected") === false) loadRun().then(catchUp);
    view.set({ connected });
  },
  trials: ({ total, generation, complete }) => {
    view.set({ complete: complete ?? true });
    if (known(generation) && view.get("run") && generation !== view.get("run").generation) startAnew();
    else if (total > view.get("trials").length) catchUp().then(slowly);
  },
  progress: (progress) => view.set({ progress, live: progress.live ?? view.get("live") }),
  run: () => loadRun().then(catchUp),
  away: (away) => view.set({ away: away.error ? away : null }),
  stages: (stages) => view.set({ stages }),
});
slowly();
