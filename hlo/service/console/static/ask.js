// The view in which questions are asked. Questions and answers live in this page's memory, and nowhere else.

import { Problem, stream } from "./api.js";
import { count, el } from "./dom.js";
import { herald } from "./herald.js";
import { known, titleOf } from "./known.js";
import { spoken } from "./route.js";
import { turn } from "./turn.js";

const MOST_TURNS = 64; // that the server takes
const SAMPLES = [
  "My chest feels tight when I climb the stairs and it goes away when I rest. What could it be?",
  "i'm thirsty all the time and keep getting up at night to pee, my dad had sugar problems too",
  "My mother's hand shakes when it lies still and her steps have become very short.",
  "My face droops on one side and I can't lift my arm since this morning",
];

const by = (id) => document.getElementById(id);
const form = by("composer");
const field = by("question");
let earlier = []; // the turns so far
let running = null; // what aborts the answers that are being generated

/** Make the view work. */
export function start() {
  by("samples").append(
    ...SAMPLES.map((question) => el("li", {}, el("button", { type: "button", onclick: () => ask(question) }, question))),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  field.addEventListener("input", grow);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  form.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  by("stop").addEventListener("click", stop);
  by("new").addEventListener("click", forget);
  by("compare").addEventListener("change", () => (by("rival").closest("label").hidden = !by("compare").checked));
}

/** Offer what is served. What was chosen stays chosen, if it still is. */
export function offer() {
  const names = known.catalog?.specialties.map((one) => one.name) ?? [];
  choices(by("specialty"), ["", ...names, "base"], { "": "The router decides" });
  choices(by("rival"), ["base", ...names]);
  by("served").replaceChildren(
    ...names.map((name) => el("li", {}, el("a", { href: `#specialties/${encodeURIComponent(name)}` }, titleOf(name)))),
  );
}

/** Have one specialty answer from now on. */
export function pin(name) {
  by("specialty").value = name;
}

/** Put the cursor where questions are written. */
export function focus() {
  field.focus();
}

function choices(select, names, titles = {}) {
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, titles[name] ?? titleOf(name))));
  select.value = names.includes(chosen) ? chosen : names[0];
}

function submit() {
  const question = field.value.trim();
  if (!question || running) return;
  field.value = "";
  grow();
  ask(question);
}

async function ask(question) {
  if (running) return;
  running = new AbortController();
  by("welcome").hidden = true;
  by("new").hidden = false;
  by("stop").hidden = false;
  by("ask").setAttribute("aria-disabled", "true");
  by("heard").replaceChildren();
  const first = by("specialty").value || null;
  const answerers = by("compare").checked ? [first, by("rival").value] : [first];
  const { node, panes } = turn(question, answerers);
  by("conversation").append(node);
  node.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
  const turns = earlier.slice(-MOST_TURNS);
  const asked = answerers.map((one) => ({ question, turns, ...sampling(), ...(one ? { specialty: one } : {}) }));
  const again = () => {
    if (running) return;
    node.remove();
    ask(question);
  };
  try {
    const [done] = await Promise.all(panes.map((pane, index) => listen(pane, asked[index], again, panes.length > 1)));
    if (done) earlier.push({ question, answer: panes[0].text() });
  } finally {
    running = null;
    by("ask").removeAttribute("aria-disabled");
    if (document.activeElement === by("stop")) field.focus();
    by("stop").hidden = true;
  }
}

/** Show an answer as it arrives; whether there is something to follow up on. */
async function listen(pane, body, again, among) {
  const { signal } = running;
  const voice = herald(by("heard"), among);
  let ended = false;
  try {
    for await (const [name, data] of stream("/ask", body, signal)) {
      if (name === "problem") throw new Problem(data);
      if (name === "route") {
        pane.route(data);
        voice.name(titleOf(data.specialty));
        voice.say(spoken(data));
      } else if (name === "delta") {
        pane.delta(data);
        voice.hear(data.text);
      } else if (name === "answer") {
        ended = true;
        pane.answer(data);
        voice.end();
      }
    }
    if (!ended) throw new Problem({ title: "Half an answer", detail: "The stream ended early.", remedy: "Ask again." });
    return true;
  } catch (error) {
    if (error.name === "AbortError") {
      pane.stopped();
      voice.say("Stopped.");
      return pane.text() !== "";
    }
    if (!(error instanceof Problem)) throw error;
    pane.problem(error.told, again);
    return false;
  }
}

function stop() {
  running?.abort();
}

/** Begin anew: nothing of the conversation is left. */
function forget() {
  stop();
  earlier = [];
  by("conversation").replaceChildren();
  by("heard").replaceChildren();
  by("welcome").hidden = false;
  by("new").hidden = true;
  field.focus();
}

/** What the fields say of sampling; an empty one leaves the specialty's default. */
function sampling() {
  const fields = ["max_tokens", "temperature", "seed"].map((name) => [name, by(name)]);
  return Object.fromEntries(fields.filter(([, one]) => one.value !== "").map(([name, one]) => [name, one.valueAsNumber]));
}

/** Make the field as high as what is in it, and say when that is too long. */
function grow() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  const most = known.about?.max_question_chars ?? Infinity;
  const over = field.value.length > most;
  field.setAttribute("aria-invalid", String(over));
  by("length").hidden = !over;
  by("length").textContent = over ? `${count(field.value.length)} characters; this server takes ${count(most)}.` : "";
}

function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
