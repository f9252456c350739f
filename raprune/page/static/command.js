/** A command line that can be copied. */

import { element } from "./dom.js";

/** The text as code, with a button that copies it. */
export function command(text) {
  const code = element("code", { tabindex: 0 }, text);
  const said = element("span", { class: "copied", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "copied";
    } catch {
      // Without https only pages of this machine may write to the clipboard; elsewhere the text is selected.
      getSelection().selectAllChildren(code);
      said.textContent = "selected: copy it with Ctrl+C";
    }
    setTimeout(() => said.replaceChildren(), 2500);
  };
  const button = element(
    "button",
    { type: "button", class: "copy", "aria-label": `Copy: ${text}`, click: copy },
    "Copy",
  );
  return element("div", { class: "command" }, code, button, said);
}
