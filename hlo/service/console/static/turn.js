// One question of the conversation, with one answer beside the evidence for its route, or two side by side.

import { copyable, counted, duration, el, hash, icon, prose } from "./dom.js";
import { known, titleOf } from "./known.js";
import { answering, evidence } from "./route.js";

const REASONS = { length: "cut off at the most tokens", abort: "aborted" };

/** A turn: its element, and a pane for each of `answerers` (null: whoever the router chooses). */
export function turn(question, answerers) {
  const two = answerers.length > 1;
  const above = two && answerers[0] === null ? side() : null; // two answers, and one route above them both
  const panes = answerers.map((one, number) => pane(one, two ? (number === 0 ? above : null) : side(), two));
  const node = el(
    "article",
    { class: two ? "turn two" : "turn", "aria-label": "Question and answer" },
    el("h2", { class: "asked" }, question),
    above,
    el("div", { class: "panes" }, panes.map((one) => one.node)),
  );
  return { node, panes };
}

function side() {
  return el("div", { class: "side" }, el("p", { class: "waiting" }, "Routing"));
}

/** Where an answer is shown as it arrives, with its route in `beside`; `two`: another answer stands next to it. */
function pane(answerer, beside, two) {
  const who = el("h3", { class: "answerer" }, answerer ? titleOf(answerer) : "The router decides");
  const notices = el("div", { class: "notices" });
  const written = document.createTextNode("");
  const text = el("p", { class: "text", "aria-busy": "true" }, written);
  const below = el("div", { class: "below" });
  const body = el("div", { class: "answer" }, two && who, notices, text, below);
  const node = el("div", { class: "pane running", role: "group", "aria-label": answerer ? titleOf(answerer) : "Answer" }, !two && beside, body);

  const finish = () => {
    text.setAttribute("aria-busy", "false");
    node.classList.remove("running");
    beside?.querySelector(".waiting")?.remove();
  };
  return {
    node,
    text: () => written.data,
    route(route) {
      beside?.replaceChildren(evidence(route));
      who.textContent = answering(route);
    },
    delta(delta) {
      if (delta.notices) notices.replaceChildren(...delta.notices.map(notice));
      else written.appendData(written.length ? delta.text : delta.text.trimStart());
    },
    answer(answer) {
      finish();
      if (!written.length) text.append(el("em", { class: "nothing" }, "The model ended without a word."));
      below.replaceChildren(provenance(answer));
    },
    stopped() {
      finish();
      below.replaceChildren(el("p", { class: "note" }, "Stopped."));
    },
    problem(told, again) {
      finish();
      below.replaceChildren(problem(told, again));
    },
  };
}

/** What a plugin put ahead of an answer. */
function notice(one) {
  return el(
    "aside",
    { class: "notice", role: "note", "aria-label": "Notice" },
    icon("warn"),
    el("div", {}, el("p", { class: "says" }, one.text), el("p", { class: "by" }, `Notice of the plugin ${one.plugin}`)),
  );
}

/** A problem, with what to do about it. */
export function problem(told, again) {
  return el(
    "div",
    { class: "problem", role: "alert" },
    icon("warn"),
    el(
      "div",
      {},
      el("strong", {}, told.title ?? "Problem"),
      el("p", {}, prose(told.detail)),
      told.remedy && el("p", { class: "remedy" }, prose(told.remedy)),
      el("p", { class: "by" }, [told.status, told.type?.replace("urn:hlo:problem:", ""), told.field].filter(Boolean).join(" · ")),
      again && el("button", { type: "button", class: "quiet", onclick: again }, "Ask again"),
    ),
  );
}

/** Who answered, with what, at what cost, and where its trace is. */
function provenance(answer) {
  const { usage, timings } = answer;
  const first = timings.first_token_ms === null ? "" : `, first after ${duration(timings.first_token_ms)}`;
  const adapter = answer.adapter ? [`${answer.adapter.name} `, hash(answer.adapter.sha256)] : "none";
  return el(
    "ul",
    { class: "provenance", "aria-label": "Where this answer comes from" },
    el("li", {}, el("span", { class: "term" }, "Adapter "), adapter),
    el("li", {}, answer.model),
    el("li", {}, `${counted(usage.completion_tokens, "token")} in ${duration(timings.total_ms)}${first}`),
    REASONS[answer.finish_reason] && el("li", { class: "cut" }, REASONS[answer.finish_reason]),
    el("li", {}, el("span", { class: "term" }, "Trace "), trace(answer.trace_id)),
  );
}

function trace(id) {
  const found = copyable(id, id.slice(0, 8), "trace id");
  const { traced, trace_url: where } = known.about ?? {};
  if (!traced || !/^https?:/.test(where)) return found;
  const href = where.replaceAll("{trace_id}", encodeURIComponent(id));
  return [el("a", { href, target: "_blank", rel: "noopener noreferrer", class: "trace" }, "open", icon("open")), " ", found];
}
