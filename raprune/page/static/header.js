/** The head of the page: the run, its progress, and a notice if the shown data may be old. */

import { element, named, refill } from "./dom.js";
import { count, duration, known, percent } from "./format.js";
import { COSTS } from "./trials.js";

const STATES = { searching: "searching", finetuning: "fine-tuning", testing: "testing", finished: "finished" };

export class Header {
  constructor(view) {
    this.view = view;
    view.on(["run", "progress", "stages"], () => this.draw());
    view.on(["connected", "complete", "away", "live", "failure"], () => this.#line());
  }

  draw() {
    const run = this.view.get("run");
    const now = this.view.get("progress");
    if (!run || !now) return;
    document.title = `${run.name} · raprune`;
    named("run-name").textContent = run.name;
    named("run-asked").textContent = asked(run);
    named("all-runs").hidden = !run.listed;
    this.#warn(run.warnings ?? []);
    const best = now.best;
    const states = Object.entries(now.states).map(([state, number]) => `${count(number)} ${state.toLowerCase()}`);
    const figures = [
      ["Trials", `${count(now.searched)} of ${count(now.trials)}`, states.join(", ")],
      [
        "Fine-tuned",
        known(now.finetunings) ? `${count(now.finetuned)} of ${count(now.finetunings)}` : count(now.finetuned),
        "finished fine-tunings",
      ],
      ["On the front", count(now.front), "within the budget"],
      ["Hypervolume", known(now.hypervolume) ? now.hypervolume.toFixed(4) : "–", "of the budget's area"],
      [
        "Best within budget",
        best ? percent(best.val_accuracy) : "–",
        best ? `${run.metric}, at ${percent(best.flops_fraction, 1)} of the FLOPs` : "none yet",
      ],
      now.gpu_hours > 0
        ? ["GPU-hours", now.gpu_hours.toFixed(now.gpu_hours < 10 ? 2 : 1), `${duration(now.elapsed_s)} elapsed`]
        : ["Elapsed", duration(now.elapsed_s), "no GPU used"],
      timeLeft(now, run, this.view.get("stages")),
    ];
    refill(
      named("figures"),
      figures.map(([name, value, note]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value), element("dd", { class: "note" }, note))
      ),
    );
    this.#said(now, run);
    this.#line();
  }

  /** Warnings about the dense network, as the search printed them. */
  #warn(warnings) {
    named("warnings").hidden = warnings.length === 0;
    const items = warnings.map((text) => element("li", {}, element("strong", {}, "Warning: "), text));
    refill(named("warnings"), items);
  }

  /** Tells screen readers the progress, at most once in twenty seconds, and at the end. */
  #said(now, run) {
    const ended = run.state === "finished";
    if (!ended && this.saidAt && performance.now() - this.saidAt < 20000) return;
    const text = ended
      ? `Run finished with ${now.front} on the front.`
      : `${now.searched} of ${now.trials} trials, ${now.front} on the front${
        now.best ? `, best ${percent(now.best.val_accuracy)}` : ""
      }.`;
    if (named("progress-said").textContent !== text) named("progress-said").textContent = text;
    this.saidAt = performance.now();
  }

  /** Draws the state of the run, and the notice if something is wrong. */
  #line() {
    const run = this.view.get("run");
    const badge = named("run-state");
    const failure = this.view.get("failure");
    const away = this.view.get("away");
    const connected = this.view.get("connected");
    const notice = named("notice");
    const state = run ? (STATES[run.state] ?? String(run.state ?? "unknown")) : "loading";
    let [kind, text] = run?.state === "finished" ? ["done", state] : [this.view.get("live") ? "live" : "idle", state];
    if (kind === "idle" && run) text = `${state}, no process works on it`;
    if (run && !this.view.get("complete")) [kind, text] = ["idle", "reading the store"];
    let told = run?.stopped ? [String(run.stopped), ""] : null;
    if (failure) [kind, text, told] = ["lost", "error", [failure.message, failure.hint]];
    else if (connected === false) {
      [kind, text] = ["lost", "connection lost"];
      told = [
        "The server of the page does not answer; the data shown may be old.",
        "The page tries again by itself. Check that `raprune serve`, or the cluster, still runs.",
      ];
    } else if (away) {
      [kind, text] = ["lost", "store unreachable"];
      told = [away.error, away.hint ?? ""];
    }
    badge.className = `badge ${kind}`;
    badge.textContent = text;
    notice.hidden = told === null;
    notice.className = kind === "lost" ? "notice bad" : "notice";
    if (told) refill(notice, element("strong", {}, told[0]), told[1] ? ` ${told[1]}` : null);
  }
}

/** The time left of the whole run if its driver forecast every stage; never the time left of one stage. */
function timeLeft(now, run, stages) {
  if (now.finished || run.state === "finished") return ["Time left", "none", "the run has ended"];
  const current = stages?.stages.find((stage) => stage.state === "running")?.name;
  if (!known(stages?.left_s)) return ["Time left", "–", current ?? "not known"];
  return ["Time left", duration(stages.left_s), `about, of the whole run; now: ${current ?? "between stages"}`];
}

/** "digits-net on digits: at most 30 % of the FLOPs". */
function asked(run) {
  const spec = run.spec ?? {};
  const limits = Object.entries(COSTS)
    .filter(([cost]) => known(run.budget[cost]))
    .map(([cost, name]) => `${percent(run.budget[cost], 0)} of the ${name}`);
  const floor = known(run.floor) ? `, at least ${percent(run.floor)} ${run.metric}` : "";
  const what = [spec.model?.name, spec.data?.name].filter(Boolean).join(" on ");
  return `${what}${limits.length ? `: at most ${limits.join(" and ")}` : ""}${floor}`;
}
