/** The learning curve of a network, epoch by epoch, over all its trainings. */

import { axes } from "./chart.js";
import { element, shape } from "./dom.js";
import { epochsText, known } from "./format.js";
import { linear, ticks } from "./scale.js";

const SERIES = [
  { key: "train_loss", title: "training loss", factor: 1 },
  { key: "val_accuracy", title: "validation accuracy, %", factor: 100 },
  { key: "train_accuracy", title: "training accuracy, %", factor: 100 },
  { key: "lr", title: "learning rate", factor: 1 },
];
const SHOWN = 2;
const WIDTH = 330;
const HEIGHT = 132;

/** A section with the curves of consecutive trainings, from the first to the last; null if none is known. */
export function curveSection(trainings, metric) {
  const { epochs, joints } = joined(trainings.filter((training) => training.length));
  if (!epochs.length) return null;
  const series = SERIES.filter(({ key }) => epochs.some((epoch) => known(epoch[key]))).slice(0, SHOWN)
    .map((one) => ({ ...one, title: one.title.replace("accuracy", metric) }));
  const last = epochs[epochs.length - 1];
  const ends = series.map(({ key, title, factor }) => `${title} ${Number((factor * last[key]).toPrecision(4))}`);
  const label = `Training curve over ${epochsText(last.at)}; at the end: ${ends.join(", ")}`;
  const panels = series.map((one) => panel(epochs, joints, one));
  return element(
    "section",
    {},
    element("h4", {}, "Training"),
    element("div", { class: "curves", role: "img", "aria-label": label }, panels),
  );
}

/** One line over all trainings: epochs are counted through, and `joints` are the ends of the trainings. */
function joined(trainings) {
  const epochs = [];
  const joints = [];
  for (const training of trainings) {
    const before = epochs.length ? epochs[epochs.length - 1].at : 0;
    if (before) joints.push(before);
    training.forEach((epoch, k) => epochs.push({ ...epoch, at: before + (epoch.epoch ?? k + 1) }));
  }
  return { epochs, joints };
}

function panel(epochs, joints, { key, title, factor }) {
  const values = epochs.filter((epoch) => known(epoch[key])).map((epoch) => [epoch.at, factor * epoch[key]]);
  const heights = values.map(([, value]) => value);
  const [low, high] = [Math.min(...heights), Math.max(...heights)];
  const end = values[values.length - 1][0];
  const area = { left: 44, right: WIDTH - 8, top: 22, bottom: HEIGHT - 24 };
  const x = linear([Math.min(1, values[0][0]), end], [area.left, area.right]);
  const y = linear([low, high === low ? low + 1e-9 : high], [area.bottom - 3, area.top + 3]);
  const whole = (value) => Number.isInteger(value) || end <= 3;
  const path = values.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return shape(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "axes" },
    axes(area, {
      x: { scale: x, ticks: ticks(...x.domain, 5).filter(whole), text: (tick) => String(tick) },
      y: { scale: y, ticks: ticks(low, high, 4), text: (tick) => String(Number(tick.toPrecision(4))), title },
    }),
    joints.map((at) => shape("line", { class: "joint", x1: x(at), x2: x(at), y1: area.top, y2: area.bottom })),
    values.length > 1
      ? shape("path", { class: "trend hypervolume", d: path })
      : shape("circle", { class: "dot", cx: x(values[0][0]), cy: y(values[0][1]), r: 3.5 }),
  );
}
