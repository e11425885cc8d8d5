"use strict";
/* Before the first paint: the colour scheme that was chosen here, else the system's. */
(() => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("dinowds-scheme"); } catch { /* a file without storage */ }
  const apply = () => { root.dataset.scheme = chosen || (system.matches ? "dark" : "light"); };
  system.addEventListener("change", () => { apply(); root.dispatchEvent(new Event("scheme")); });
  root.addEventListener("choose-scheme", () => {
    chosen = root.dataset.scheme === "dark" ? "light" : "dark";
    try { localStorage.setItem("dinowds-scheme", chosen); } catch { /* then for this time only */ }
    apply();
    root.dispatchEvent(new Event("scheme"));
  });
  apply();
})();
