// Runs before the page is drawn, so that it never flashes in the other theme. Only the choice of a theme is kept.
"use strict";
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("hlo-theme");
    } catch {
      return null; // storage is off: the system's theme, then
    }
  };
  const show = () => {
    document.documentElement.dataset.theme = chosen() ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", show);
  show();
})();
