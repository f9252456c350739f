/** The widths of a network: the channels of each group, in this network and in the dense network. */

import { element } from "./dom.js";
import { percent } from "./format.js";

/**
 * A section with one bar per group, from {group: channels} of this and of the dense network; null without groups.
 * `gone` names the blocks that went.
 */
export function widthsSection(widths, dense, order, gone = []) {
  const groups = (order?.length ? order : Object.keys(dense)).filter((group) => dense[group]);
  if (!widths || !groups.length) return null;
  const title = `Widths, ${groups.length} ${groups.length === 1 ? "group" : "groups"} of channels`;
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, "layers"),
    element("td", {}),
    element("th", { scope: "col", class: "number" }, "channels"),
    element("th", { scope: "col", class: "number" }, "kept"),
  );
  // A group that a candidate does not name stays whole, or went with its block.
  const rows = groups.map((group) => bar(group, widths[group] ?? (gone.length ? 0 : dense[group]), dense[group]));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, rows));
  return element(
    "section",
    {},
    element("h4", { id: "widths-title" }, title),
    element("div", { class: "widths", tabindex: 0, role: "region", "aria-labelledby": "widths-title" }, table),
  );
}

function bar(group, kept, whole) {
  const inner = element("span", { class: "kept-bar" });
  inner.style.width = `${(100 * kept) / whole}%`;
  return element(
    "tr",
    {},
    element("th", { scope: "row", title: group }, element("bdi", {}, group)),
    element("td", { class: "track", "aria-hidden": "true" }, element("span", { class: "dense-bar" }, inner)),
    element("td", { class: "number" }, `${kept}`, element("span", { class: "quiet" }, ` / ${whole}`)),
    element("td", { class: "number share" }, percent(kept / whole, 0)),
  );
}
