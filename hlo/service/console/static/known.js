// What the page knows of the server: how it stands, what it serves, and what of its settings the page needs.

import { get } from "./api.js";

/** `ready` is /readyz, `catalog` is /specialties, `about` is /console/about, each as last heard; null: not yet. `lost` is the problem that the last look met. */
export const known = { about: null, ready: null, catalog: null, lost: null };

const SOON_MS = 2000;
const LATER_MS = 15000;
const listeners = [];
let titles = new Map();

/** Have `listener` called whenever something else is known. */
export function whenKnown(listener) {
  listeners.push(listener);
}

/** A specialty's title; for what is not served any more, its name; for none, the base model. */
export function titleOf(name) {
  return name === null || name === "base" ? "Base model" : (titles.get(name) ?? name);
}

/** Look how the server stands now, and again later, sooner while it is not ready. Only the first time asks for a key. */
export async function watch(quiet = false) {
  await look(quiet);
  setTimeout(watch, known.ready?.ready && !known.lost ? LATER_MS : SOON_MS, true);
}

/** Look how the server stands; read anew what it serves, where that has changed. */
export async function look(quiet = true) {
  const before = signature();
  try {
    known.about ??= await get("/console/about", { quiet }); // first: with a key, /readyz tells more
    known.ready = await get("/readyz", { quiet, also: 503 });
    if (known.ready.ready && (known.catalog === null || signature() !== before)) {
      known.about = await get("/console/about", { quiet });
      known.catalog = await get("/specialties", { quiet });
      titles = new Map(known.catalog.specialties.map((one) => [one.name, one.title]));
    }
    known.lost = null;
  } catch (error) {
    if (!error.told) throw error;
    known.lost = error.told;
  }
  for (const listener of listeners) listener();
}

/** What changes when another edition is served, or the server is another one. */
function signature() {
  const { ready } = known;
  return JSON.stringify([ready?.ready, ready?.engine, ready?.specialties, ready?.refused, known.lost !== null]);
}
