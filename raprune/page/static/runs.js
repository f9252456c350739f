/** The page of a list of runs: asks for the list every few seconds, and for the fronts of the chosen runs. */

import { ask } from "./api.js";
import { element, named, refill } from "./dom.js";
import { count } from "./format.js";
import { FrontsChart } from "./fronts.js";
import { RunTable } from "./run_table.js";
import { themes } from "./themes.js";
import { COSTS } from "./trials.js";
import { choice, View } from "./view.js";

const EVERY_MS = 3000;
const HIDDEN_MS = 20000;
const CHOSEN_AT_FIRST = 4;

const asked = new URLSearchParams(location.hash.slice(1));
const view = new View({
  name: "",
  runs: null,
  away: null,
  failure: null,
  chosen: asked.has("runs") ? asked.get("runs").split(",").filter(Boolean) : null,
  slots: new Map(),
  fronts: new Map(),
  cost: Object.hasOwn(COSTS, asked.get("cost")) ? asked.get("cost") : "flops",
  unit: asked.get("unit") === "absolute" ? "absolute" : "fraction",
  scale: "error",
  pointed: null,
  theme: "",
});

new RunTable(view);
new FrontsChart(view);

let loadedAs = "";
const versions = new Map();

async function refresh() {
  try {
    const { name, runs, away } = await ask("runs");
    const told = JSON.stringify(runs);
    if (told !== loadedAs) {
      loadedAs = told;
      view.set({ name, runs, chosen: view.get("chosen") ?? firstChoice(runs) });
    }
    view.set({ away, failure: null });
    await loadFronts();
  } catch (error) {
    if (!("status" in error)) throw error;
    view.set({ failure: error });
  }
}

/** The newest run that has a network, and the newest of those that may be compared with it. */
function firstChoice(runs) {
  const ready = runs.filter((run) => run.best);
  const alike = ready.filter((run) => run.dataset === ready[0].dataset);
  return alike.slice(0, CHOSEN_AT_FIRST).map((run) => run.id);
}

/** Asks for the fronts of chosen runs that are not known, or that have changed since. */
async function loadFronts() {
  const runs = new Map((view.get("runs") ?? []).map((run) => [run.id, run]));
  const due = (view.get("chosen") ?? []).filter((id) => {
    const version = JSON.stringify(runs.get(id) ?? null);
    return runs.has(id) && versions.get(id) !== version;
  });
  const answers = await Promise.all(due.map((id) => ask(`fronts/${id}`)));
  if (!answers.length) return;
  const fronts = new Map(view.get("fronts"));
  for (const answer of answers) {
    fronts.set(answer.id, answer.fronts);
    versions.set(answer.id, JSON.stringify(runs.get(answer.id)));
  }
  view.set({ fronts });
}

/** Each chosen run has a slot, which gives its colour and its mark, for as long as it is chosen. */
function giveSlots() {
  const before = view.get("slots");
  const chosen = view.get("chosen") ?? [];
  const slots = new Map(chosen.filter((id) => before.has(id)).map((id) => [id, before.get(id)]));
  for (const id of chosen) {
    if (slots.has(id)) continue;
    const taken = new Set(slots.values());
    let free = 0;
    while (taken.has(free)) free += 1;
    slots.set(id, free);
  }
  view.set({ slots });
}

function toAddress() {
  const chosen = view.get("chosen");
  if (chosen === null) return;
  const parts = new URLSearchParams({ runs: chosen.join(","), cost: view.get("cost"), unit: view.get("unit") });
  history.replaceState(null, "", `#${parts}`);
}

function head() {
  const runs = view.get("runs");
  const name = view.get("name");
  const failure = view.get("failure") ?? view.get("away");
  document.title = name ? `Runs in ${name} · raprune` : "raprune";
  named("folder").textContent = name ? `Runs in ${name}` : "Runs";
  if (runs) {
    const states = new Map();
    for (const run of runs) states.set(run.state, (states.get(run.state) ?? 0) + 1);
    const parts = [...states].map(([state, number]) => `${count(number)} ${state}`);
    const number = `${count(runs.length)} ${runs.length === 1 ? "run" : "runs"}`;
    const text = parts.length ? `${number}: ${parts.join(", ")}` : number;
    if (named("folder-said").textContent !== text) named("folder-said").textContent = text;
  }
  named("notice").hidden = !failure;
  if (failure) refill(named("notice"), element("strong", {}, failure.message ?? failure.error), ` ${failure.hint}`);
}

for (const name of ["cost", "unit", "scale"]) choice(view, name);
themes(() => view.touch("theme"));
view.derive(["chosen"], () => {
  giveSlots();
  loadFronts().catch((error) => view.set({ failure: error }));
});
view.on(["name", "runs", "away", "failure"], head);
view.on(["chosen", "cost", "unit"], toAddress);
// A choice that the address holds is drawn like any other.
view.touch("chosen", "cost", "unit");

async function again() {
  await refresh();
  setTimeout(again, document.hidden ? HIDDEN_MS : EVERY_MS);
}

await again();
requestAnimationFrame(() => {
  document.documentElement.dataset.drawn = "";
});
