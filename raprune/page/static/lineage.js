/** The origin of a trial and the trials that continue it: parents, rungs, repeats, numbers of cuts. */

import { glyph } from "./chart.js";
import { element } from "./dom.js";
import { epochsText, known, percent } from "./format.js";

/** A section with the steps of the server's `history`; `open(id)` returns a function that shows a trial, or null. */
export function lineageSection(history, open) {
  if (!history?.length) return null;
  const steps = history.map((one) => step(one, one.relation === "self" ? null : open(one.trial_id)));
  return element("section", {}, element("h4", {}, "History"), element("ol", { class: "history" }, steps));
}

function step(one, show) {
  const text = [
    element("span", {}, told(one)),
    element("span", { class: "number" }, known(one.val_accuracy) ? percent(one.val_accuracy) : one.state.toLowerCase()),
    element("span", { class: "quiet" }, one.epochs ? epochsText(one.epochs) : ""),
  ];
  return element(
    "li",
    { "aria-current": one.relation === "self" ? "true" : null },
    glyph(kind(one)),
    show === null
      ? element("span", { class: "step" }, text)
      : element("button", { type: "button", class: "step", click: show, title: one.trial_id }, text),
  );
}

function kind({ stage, state }) {
  if (state === "FAILED") return "failed";
  if (stage === "finetune") return "tuned";
  return state === "STOPPED" ? "below" : "searched";
}

function told({ stage, repeat, cuts, step, rung }) {
  if (stage === "finetune") {
    return ["fine-tuned", cuts > 1 ? ` in ${cuts} cuts` : "", repeat ? `, seed ${repeat}` : ""].join("");
  }
  if (known(step)) return `step ${step} on the way`;
  return rung ? `rung ${rung}` : "cut and repaired";
}
