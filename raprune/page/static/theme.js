/* Before the first paint, so that nobody sees the other theme flash. Not a module: those wait for the document. */

/** Shows the page in this theme, "dark" or "light"; whatever else is chosen, in the system's. */
function applyTheme(chosen) {
  const shown = document.documentElement.dataset;
  shown.chosen = chosen === "dark" || chosen === "light" ? chosen : "";
  shown.theme = shown.chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

try {
  applyTheme(localStorage.getItem("raprune-theme"));
} catch {
  // Storage is off: the system's theme it is.
  applyTheme("");
}
