// Elements made by hand. Text becomes text nodes: nothing that comes from a server is ever read as HTML.

/** An element. Attributes that are null or false are left out; `onclick` and the like are listened to. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the page's symbols; it says nothing to those who can not see it. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A list of terms and what they are; a row whose value is null or empty is left out. */
export function facts(rows, attributes = {}) {
  const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "facts", ...attributes }, shown.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

/** A sentence of the server's, in which what stands between backticks is code. */
export function prose(text) {
  return text.split(/`([^`]+)`/).map((part, number) => (number % 2 ? el("code", {}, part) : part));
}

/** A hash, shortened for the eye and whole for the hand. */
export function hash(sha256) {
  return sha256 ? copyable(sha256, sha256.slice(0, 12), "hash") : null;
}

/** A text with a button that copies it. */
export function copyable(whole, shown, what) {
  const text = el("code", { title: whole }, shown);
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy ${what}`, title: `Copy ${what}` }, icon("copy"));
  const said = el("span", { class: "hidden", role: "status" });
  button.addEventListener("click", async () => {
    const done = await copy(whole);
    button.classList.toggle("done", done);
    said.textContent = done ? "Copied" : "Could not be copied";
    setTimeout(() => {
      button.classList.remove("done");
      said.textContent = "";
    }, 1600);
  });
  return el("span", { class: "copyable" }, text, button, said);
}

async function copy(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  // Without TLS, elsewhere than on this machine, browsers have the old way only.
  const field = el("textarea", { class: "hidden", readonly: true });
  const before = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

const whole = new Intl.NumberFormat("en");

/** A number for people: 12,345. */
export const count = (number) => whole.format(number);

/** `1 token`, `2 tokens`. */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A probability in per cent; what is neither none nor all does not look so. */
export function percent(probability) {
  if (probability > 0 && probability < 0.01) return "<\u00a01\u00a0%";
  if (probability < 1 && probability > 0.99) return ">\u00a099\u00a0%";
  return `${Math.round(probability * 100)}\u00a0%`;
}

/** Milliseconds for people. */
export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Bytes for people. */
export function size(bytes) {
  for (const [unit, one] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= one) return `${(bytes / one).toFixed(bytes >= 100 * one ? 0 : 1)} ${unit}`;
  }
  return `${bytes} B`;
}
