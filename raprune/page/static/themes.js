/** The choice of the theme, which theme.js has applied before the first paint. */

import { named } from "./dom.js";

/** Calls `changed` whenever the colours of the page are others. */
export function themes(changed) {
  const list = named("theme");
  list.value = document.documentElement.dataset.theme;
  list.addEventListener("input", () => {
    try {
      if (list.value) localStorage.setItem("raprune-theme", list.value);
      else localStorage.removeItem("raprune-theme");
    } catch {
      // Storage is off: the choice holds for this visit.
    }
    globalThis.applyTheme(list.value);
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
