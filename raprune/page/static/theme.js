/* Runs before the first paint, so that the other theme does not flash. Not a module: modules wait for the document. */

/** Shows the page in this theme, "dark" or "light"; whatever else is chosen, in the system's. */
function applyTheme(chosen) {
  const always = { dark: "all", light: "not all" };
  document.getElementById("dark").media = always[chosen] ?? "(prefers-color-scheme: dark)";
  document.documentElement.dataset.theme = chosen in always ? chosen : "";
}

try {
  applyTheme(localStorage.getItem("raprune-theme") ?? "");
} catch {
  // Storage is off: the page uses the system's theme.
  applyTheme("");
}
