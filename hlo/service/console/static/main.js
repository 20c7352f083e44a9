// Puts the page together: which view is shown, how the server stands, the theme, and the key.

import { askForKeyWith, key } from "./api.js";
import * as ask from "./ask.js";
import { known, look, watch, whenKnown } from "./known.js";
import * as server from "./server.js";
import * as specialties from "./specialties.js";

const by = (id) => document.getElementById(id);
const VIEWS = { ask: "Ask", specialties: "Specialties", server: "Server" };
let view = "";

function place() {
  const [name, which] = location.hash.slice(1).split("/");
  return [name in VIEWS ? name : "ask", which ? decodeURIComponent(which) : null];
}

/** Show the view that the address names; `moved`: somebody went there, and the focus goes along. */
function show(moved) {
  const [name] = place();
  const same = name === view;
  view = name;
  for (const one of Object.keys(VIEWS)) by(`view-${one}`).hidden = one !== name;
  for (const link of document.querySelectorAll(".bar nav a")) {
    const here = link.getAttribute("href") === `#${name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name]} · HLO`;
  draw();
  if (!moved) return;
  if (!same) scrollTo({ top: 0 });
  focus();
}

/** Put the focus where the view begins. */
function focus() {
  if (view === "ask") ask.focus();
  else (by("specialty-title") ?? by(`title-${view}`)).focus({ preventScroll: true });
}

function draw() {
  const [name, which] = place();
  if (name === "specialties") specialties.draw(which, askOne);
  if (name === "server") server.draw();
}

function askOne(name) {
  ask.pin(name);
  location.hash = "#ask";
}

/** Say everywhere how the server stands. */
function tell() {
  const { ready, lost, catalog } = known;
  const closed = lost?.status === 401;
  const state = lost ? "lost" : ready.ready ? "ready" : "waiting";
  const text = closed ? "Key wanted" : lost ? "No connection" : ready.ready ? (ready.engine?.model ?? "Ready") : "Not ready";
  by("state").className = `state ${state}`;
  by("state-text").textContent = text;
  by("state").setAttribute("aria-label", `Server: ${state === "ready" ? "ready, " : ""}${text}`);
  const remedy = closed ? "Give it one with the button Key." : (lost?.remedy ?? "");
  const waiting = lost || ready.ready ? "" : `The server is not ready: ${ready.stage}. This page will notice when it is.`;
  const banner = lost ? `${lost.detail} ${remedy}` : waiting;
  if (by("banner").textContent !== banner) by("banner").textContent = banner; // said once, not at each look
  by("banner").hidden = banner === "";
  const refused = catalog?.refused.length ?? 0;
  by("refused-badge").hidden = refused === 0;
  by("refused-badge").textContent = refused ? `${refused} refused` : "";
  by("key").hidden = key.get() === null && !closed;
  ask.offer();
}

let drawn = "";

whenKnown(() => {
  const now = JSON.stringify(known);
  if (now === drawn) return; // nothing new: leave alone what somebody is reading
  drawn = now;
  tell();
  draw();
});

/** Ask for the key; whether there is a new one. `told` is what was said to the one before. */
function askForKey(told) {
  const dialog = by("key-dialog");
  by("key-why").hidden = !told;
  by("key-why").textContent = told ? `${told.detail} ${told.remedy ?? ""}` : "";
  by("key-forget").hidden = key.get() === null;
  by("key-field").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((settle) => {
    dialog.addEventListener("close", () => {
      const given = by("key-field").value.trim();
      by("key-field").value = "";
      const used = dialog.returnValue === "use" && given !== "";
      if (used) key.set(given);
      if (dialog.returnValue === "forget") key.forget();
      by("key").hidden = key.get() === null;
      settle(used);
    }, { once: true });
  });
}

function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("hlo-theme", theme);
  } catch {
    // storage is off: it holds until the page is left
  }
  tellTheme();
}

function tellTheme() {
  by("theme").setAttribute("aria-pressed", String(document.documentElement.dataset.theme === "dark"));
}

askForKeyWith(askForKey);
by("key").addEventListener("click", async () => {
  await askForKey(null);
  known.about = null; // it may tell more now, or less
  look();
});
by("key-cancel").addEventListener("click", () => by("key-dialog").close());
by("theme").addEventListener("click", toggleTheme);
new MutationObserver(tellTheme).observe(document.documentElement, { attributeFilter: ["data-theme"] });
by("skip").addEventListener("click", (event) => {
  event.preventDefault(); // its address names no view
  focus();
});
addEventListener("hashchange", () => show(true));
tellTheme();
ask.start();
show(false);
if (view === "ask") ask.focus();
watch();
