/** One trial: its recipe, widths, origin, learning curve, downloads and commands. */

import { ask } from "./api.js";
import { glyph } from "./chart.js";
import { command } from "./command.js";
import { curveSection } from "./curve.js";
import { element, named, refill } from "./dom.js";
import { count, duration, epochsText, known, percent, settingsText } from "./format.js";
import { lineageSection } from "./lineage.js";
import { widthsSection } from "./widths.js";

const NOTHING = "Nothing is selected. Click a point or a row; by keyboard: arrow keys, then Enter.";

export class Detail {
  constructor(view) {
    this.view = view;
    this.host = named("detail-body");
    this.told = null;
    view.on(["selected"], () => this.#load());
    // Another network may have been stored, or a test accuracy measured.
    view.on(["run"], () => this.told && this.#load());
    this.#load();
    named("detail-back").addEventListener("click", () => {
      named("trials-scroll").querySelector('tr[tabindex="0"]')?.focus();
      named("trials").scrollIntoView();
    });
  }

  async #load() {
    const i = this.view.get("selected");
    if (i === null) {
      this.told = null;
      refill(this.host, element("p", { class: "quiet" }, NOTHING));
      return;
    }
    const id = this.view.get("trials").get(i, "trial_id");
    if (this.told?.trial.trial_id !== id) this.#show(i, element("p", { class: "quiet" }, "Loading…"));
    try {
      const told = await ask(`trials/${encodeURIComponent(id)}`);
      // Another trial may have been selected meanwhile.
      if (this.view.get("selected") !== i) return;
      this.told = told;
      this.#show(i, this.#sections(told), told);
    } catch (error) {
      if (!("status" in error)) throw error;
      const notice = element("p", { class: "notice bad" }, `${error.message} ${error.hint}`);
      if (this.view.get("selected") === i) this.#show(i, notice);
    }
  }

  /** The known values of the trial, and `rest` below them. */
  #show(i, rest, told = null) {
    const trials = this.view.get("trials");
    const [state, error] = [trials.get(i, "state").toLowerCase(), trials.get(i, "error")];
    const name = [
      glyph(state === "failed" ? state : trials.kind(i)),
      trials.get(i, "trial_id"),
      element("span", { class: `state ${state}` }, state),
    ];
    const facts = this.#facts(i, told).filter(([, text]) => known(text) && text !== "");
    refill(
      this.host,
      element("h3", { class: "trial-name" }, name),
      element(
        "dl",
        { class: "facts" },
        facts.map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text))),
      ),
      known(error)
        ? element(
          "section",
          {},
          element("h4", {}, "Error"),
          element("pre", { class: "error", tabindex: 0 }, error),
        )
        : null,
      rest,
    );
  }

  #sections(told) {
    const run = this.view.get("run");
    const positions = this.view.get("trials").positions;
    const open = (id) => (positions.has(id) ? () => this.view.set({ selected: positions.get(id) }) : null);
    return [
      widthsSection(told.trial.widths, run.dense.widths ?? {}, run.groups, told.trial.identity ?? []),
      lineageSection(told.history, open),
      curveSection([...Object.values(told.curves ?? {}), told.curve ?? []], run.metric),
      takeAlong(told),
    ];
  }

  /** [term, text] of each value; the text is null if the value is not known. */
  #facts(i, told) {
    const trials = this.view.get("trials");
    const run = this.view.get("run");
    const get = (name) => trials.get(i, name);
    // The row has the means of the repeats; it belongs to this trial if the trial represents them.
    const row = told?.row?.trial_id === get("trial_id") ? told.row : null;
    const accuracy = row?.val_accuracy ?? get("val_accuracy");
    const zeros = get("zeros") > 0.01 * get("params") ? `, ${count(get("zeros"))} of them zero` : "";
    const gpus = get("gpu_seconds") ? `, ${duration(get("gpu_seconds"))} of GPUs` : "";
    return [
      ["Method", get("method")],
      ["Settings", settingsText(told?.trial?.candidate_settings ?? trials.settings[i]) || "the method's own"],
      ["Widths by", get("allocation")],
      ["Blocks that went", told?.trial?.identity?.join(", ")],
      ["Network", get("network")],
      [
        `Validation ${run.metric}`,
        withInterval(accuracy, row?.val_interval, against(run.dense.val_accuracy, accuracy)),
      ],
      [`Test ${run.metric}`, withInterval(row?.test_accuracy ?? get("test_accuracy"), row?.test_interval)],
      ...Object.entries(told?.row?.test_further ?? {}).map(([name, value]) => [`Test ${name}`, percent(value)]),
      ["After cut", ofNetwork(get("accuracy_after_cut"), 2)],
      ["After repair", ofNetwork(get("accuracy_after_repair"), 2)],
      ["FLOPs", ofNetwork(get("flops_fraction"), 1, `: ${count(get("flops"))}`)],
      ["Parameters", ofNetwork(get("params_fraction"), 1, `: ${count(get("params"))}${zeros}`)],
      ["Latency", ofNetwork(get("latency_fraction"), 1, `: ${milliseconds(get("latency_ms"))} predicted`)],
      ["Memory", ofNetwork(get("memory_fraction"), 1, `: ${count(get("memory_bytes"))} bytes at the peak, an image`)],
      ["Measured", measuredText(run.measured, told?.row?.candidate)],
      ["Trained", get("epochs") ? `${epochsText(get("epochs"))} since the dense network` : null],
      ["Took", `${duration(get("seconds"))}${gpus}`],
    ];
  }
}

/** Links to the stored files of the network, and the commands that export it. */
function takeAlong({ download, trial, export: line }) {
  const files = [
    [download?.recipe, "recipe.json"],
    [download?.weights, `weights.safetensors (${bytes(download?.bytes)})`],
    [download?.zip, "both, as .zip"],
  ].filter(([path]) => path);
  const links = files.map(([path, text]) => {
    // Links lead below the page only, whatever the server sends.
    const href = `./${String(path).replace(/^[./]+/, "")}`;
    return element("li", {}, element("a", { href, download: "" }, text));
  });
  const none = trial.candidate
    ? "The weights are not stored: the command makes them again from the dense network."
    : "The trial has no network to export.";
  return element(
    "section",
    {},
    element("h4", {}, "Download and export"),
    links.length ? element("ul", { class: "downloads" }, links) : element("p", { class: "quiet" }, none),
    line && trial.candidate
      ? [command(line), command('small = raprune.load(MyNet(), "FOLDER")'), command(`${line} --format onnx`)]
      : null,
  );
}

function ofNetwork(fraction, digits, more = "") {
  return known(fraction) ? `${percent(fraction, digits)}${more}` : null;
}

function withInterval(accuracy, interval, more = "") {
  const spread = known(interval) ? ` ± ${(100 * interval).toFixed(2)}` : "";
  return known(accuracy) ? `${percent(accuracy)}${spread}${more}` : null;
}

function against(dense, accuracy) {
  if (!known(dense) || !known(accuracy)) return "";
  const points = 100 * (accuracy - dense);
  return `, ${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(2)} points against dense`;
}

/** "1.20x as fast as dense at batch 1 (0.812 ms), 2.3x at batch 64 (31.0 ms): float32 on AMD EPYC, 2 threads". */
function measuredText(measured, candidate) {
  const timings = (measured?.conditions ?? []).filter((timing) => known(timing.candidates[candidate]));
  if (timings.length === 0) return null;
  const parts = timings.map((timing, place) => {
    const time = timing.candidates[candidate];
    const speedup = timing.dense_ms / time;
    const what = `${speedup.toFixed(speedup < 2 ? 2 : 1)}x${place === 0 ? " as fast as dense" : ""}`;
    return `${what} at batch ${timing.batch_size} (${milliseconds(time)})`;
  });
  const { device, threads, precision } = timings[0];
  const plural = threads === 1 ? "" : "s";
  const where = known(threads) ? `${device}, ${threads} thread${plural}` : device;
  return `${parts.join(", ")}: ${precision} on ${where}`;
}

function milliseconds(time) {
  return known(time) ? `${time.toPrecision(3)} ms` : "";
}

function bytes(size) {
  if (!known(size)) return "size not known";
  return size < 1e6 ? `${Math.max(1, Math.round(size / 1e3))} kB` : `${(size / 1e6).toPrecision(3)} MB`;
}
