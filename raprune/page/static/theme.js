/* Before the first paint, so that nobody sees the other theme flash. Not a module: those wait for the document. */
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("raprune-theme");
  } catch {
    // Storage is off: the system's theme it is.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
