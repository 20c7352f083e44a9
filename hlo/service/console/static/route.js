// Which specialist was chosen, and how close the others came.

import { el, percent } from "./dom.js";
import { known, titleOf } from "./known.js";

const SHOWN = 4; // specialties with a bar at once; the others wait behind a button
const WORDS = { routed: "Routed", ambiguous: "Ambiguous", out_of_scope: "Out of scope", pinned: "Pinned" };
const ANSWERS = { first: "The likelier one answers.", base: "The base model answers.", ask: "HLO asks which was meant." };

/** The evidence for one route. */
export function evidence(route) {
  const kind = route.pinned_by ? "pinned" : route.status;
  return el(
    "div",
    { class: `evidence ${kind}`, role: "group", "aria-label": "Route" },
    el(
      "div",
      { class: "verdict" },
      el("span", { class: "chip" }, WORDS[kind] ?? kind),
      el("strong", { class: "who" }, answering(route)),
      el("p", { class: "why" }, why(route, kind)),
    ),
    route.scores.length > 0 && bars(route),
  );
}

/** Who answers, as far as the route tells: an ambiguous one goes where the operator wants it. */
export function answering(route) {
  if (route.status !== "ambiguous" || known.about?.ambiguous === "first") return titleOf(route.specialty);
  return known.about?.ambiguous === "ask" ? "HLO asks back" : titleOf(null);
}

/** One sentence on a route, for those who listen. */
export function spoken(route) {
  if (route.pinned_by) return `Pinned: ${titleOf(route.specialty)}.`;
  if (route.status === "out_of_scope") return `Out of scope: ${titleOf(null)}.`;
  const [best] = route.scores;
  return `${WORDS[route.status]}: ${answering(route)}${best ? `; ${titleOf(best.specialty)} ${percent(best.probability)}` : ""}.`;
}

function why(route, kind) {
  if (kind === "pinned") {
    const by = route.pinned_by === "request" ? "Asked for by name" : `Asked for by the plugin ${route.pinned_by}`;
    return `${by}; nothing was scored.`;
  }
  if (kind === "out_of_scope") {
    return `No specialty is likely to fit: ${percent(route.out_of_scope)} that none does.`;
  }
  if (kind === "ambiguous") {
    const between = route.candidates.map(titleOf).join(", ");
    return `Between ${between}. ${ANSWERS[known.about?.ambiguous] ?? ""}`;
  }
  const second = route.scores[1];
  const ahead = route.margin.toFixed(3);
  return second ? `Ahead of ${titleOf(second.specialty)} by ${ahead} in similarity.` : `Similarity ${ahead}.`;
}

function bars(route) {
  const limits = known.ready?.thresholds;
  const rows = route.scores.map((one) =>
    bar(titleOf(one.specialty), one.probability, {
      chosen: one.specialty === route.specialty,
      near: route.candidates.includes(one.specialty),
      cosine: one.score,
    }),
  );
  // The tick is where the decision changes: the best specialty must come up to it, and "none" must stay below its own.
  rows[0].querySelector(".track").append(tick(limits?.min_probability, "below it, the route is ambiguous"));
  const none = bar("None of them", route.out_of_scope, { none: true, chosen: route.status === "out_of_scope" });
  none.querySelector(".track").append(tick(limits && 1 - limits.min_in_scope, "above it, the question is out of scope"));
  const later = rows.slice(SHOWN);
  const list = el(
    "ol",
    { class: "bars", "aria-label": "Probability that it fits, and similarity" },
    rows.slice(0, SHOWN),
    none,
    later,
  );
  if (later.length === 0) return list;
  for (const row of later) row.hidden = true;
  const more = el("button", { type: "button", class: "more", "aria-expanded": "false" }, `${later.length} more`);
  more.addEventListener("click", () => {
    const open = more.getAttribute("aria-expanded") === "false";
    for (const row of later) row.hidden = !open;
    more.setAttribute("aria-expanded", String(open));
    more.textContent = open ? "Fewer" : `${later.length} more`;
  });
  return el("div", { class: "scores" }, list, more);
}

function bar(name, probability, { chosen = false, near = false, none = false, cosine } = {}) {
  const fill = el("span", { class: "fill" });
  fill.style.setProperty("--share", String(probability));
  return el(
    "li",
    { class: ["row", chosen && "chosen", near && "near", none && "none"].filter(Boolean).join(" ") },
    el("span", { class: "name" }, name, chosen && el("span", { class: "hidden" }, " (chosen)")),
    el("span", { class: "track", "aria-hidden": "true" }, fill),
    el("span", { class: "share" }, percent(probability)),
    el("span", { class: "cosine", title: "Similarity to its examples (cosine)" }, cosine === undefined ? "" : cosine.toFixed(3)),
  );
}

function tick(at, says) {
  if (at === undefined || at === null) return "";
  const mark = el("span", { class: "tick", title: `${percent(at)}: ${says}` });
  mark.style.setProperty("--at", String(at));
  return mark;
}
