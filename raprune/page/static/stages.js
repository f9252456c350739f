/** The stages of the run: ended ones with their time, the current one with its bar, and those to come. */

import { element, named, refill } from "./dom.js";
import { duration, known, number } from "./format.js";

export class StageList {
  constructor(view) {
    this.view = view;
    view.on(["stages", "live"], () => this.draw());
  }

  draw() {
    const stages = this.view.get("stages")?.stages ?? [];
    named("stages").hidden = stages.length === 0;
    refill(named("stages"), stages.map((stage) => item(stage, this.view.get("live"))));
  }
}

function item(stage, live) {
  // A killed driver leaves a stage that is still marked as running.
  const state = stage.state === "running" && !live ? "stopped" : stage.state;
  const parts = [element("strong", {}, stage.name)];
  if (state === "running" && known(stage.total)) {
    parts.push(
      element("progress", { max: stage.total, value: stage.done, "aria-label": stage.name }),
      element("span", {}, `${number(stage.done)} of ${number(stage.total)} ${stage.unit}`),
    );
  }
  parts.push(element("span", { class: "quiet" }, timeOf(stage, state)));
  // The element exists without text too, so that the page does not move when details come and go.
  if (state === "running") parts.push(element("span", { class: "quiet detail" }, stage.detail));
  return element("li", { class: state, "aria-current": state === "running" ? "step" : null }, ...parts);
}

/** The time of a stage in words. */
function timeOf(stage, state) {
  if (state === "waiting") return known(stage.expected_s) ? `about ${duration(stage.expected_s)}` : "";
  if (state === "stopped") return `stopped after ${duration(stage.seconds)}`;
  const left = state === "running" && known(stage.left_s) ? `, about ${duration(stage.left_s)} left` : "";
  return `${duration(stage.seconds)}${left}`;
}
