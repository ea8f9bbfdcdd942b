// The theme before the first paint: the one chosen here, else the system's. Not a module, so that nothing flashes.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("qm-theme"); } catch { /* storage refused: follow the system */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
