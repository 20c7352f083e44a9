// The view of what is served, with each adapter's card, and of what is not, with the reason.

import { Problem, request } from "./api.js";
import { card } from "./card.js";
import { copyable, count, counted, el, facts, hash, icon, prose, size } from "./dom.js";
import { known } from "./known.js";
import { problem } from "./turn.js";

const place = document.getElementById("specialties");
const FILTERED_FROM = 9; // as many as fit a screen need no filter
let filter = "";
let shown = null; // the specialty whose card stands there

/** Draw the view; `name` is the specialty that is looked at, if any; `onAsk` is called with one that is to be asked. */
export function draw(name, onAsk) {
  const { catalog, ready } = known;
  if (catalog === null) {
    place.replaceChildren(el("p", { class: "note" }, ready?.ready === false ? `Not ready: ${ready.stage}.` : "Loading"));
    return;
  }
  const one = catalog.specialties.find((specialty) => specialty.name === name);
  place.replaceChildren(
    el(
      "div",
      { class: one ? "browse chosen" : "browse" },
      index(catalog, one),
      one ? detail(one, onAsk) : overview(catalog),
    ),
  );
}

function index(catalog, chosen) {
  const rows = catalog.specialties.map((one) => ({ one, node: row(one, one === chosen) }));
  const list = el("ul", { class: "index" }, rows.map(({ node }) => node));
  const nothing = el("p", { class: "note", role: "status" });
  const apply = () => {
    const wanted = filter.trim().toLowerCase();
    const left = rows.filter(({ one, node }) => {
      node.hidden = !`${one.name} ${one.title} ${one.description} ${one.plugin} ${one.distribution}`.toLowerCase().includes(wanted);
      return !node.hidden;
    });
    nothing.textContent = left.length ? "" : "No specialty is called so.";
  };
  const search = el("input", { type: "search", id: "filter", value: filter, autocomplete: "off", placeholder: "Filter", "aria-label": "Filter specialties" });
  search.addEventListener("input", () => {
    filter = search.value;
    apply();
  });
  apply();
  return el(
    "nav",
    { class: "list", "aria-label": "Specialties" },
    el("p", { class: "heading" }, el("a", { href: "#specialties", "aria-current": chosen ? null : "page" }, "All"), el("span", { class: "note" }, counted(catalog.specialties.length, "adapter"))),
    catalog.specialties.length >= FILTERED_FROM && search,
    list,
    nothing,
  );
}

function row(one, chosen) {
  return el(
    "li",
    {},
    el("a", { href: `#specialties/${encodeURIComponent(one.name)}`, "aria-current": chosen ? "page" : null }, one.title),
  );
}

/** What is wrong and left out first: that is what somebody came for, if anything is. */
function overview(catalog) {
  return el("div", { class: "detail" }, refused(catalog.refused), off(catalog.off), served(catalog.specialties));
}

function refused(refusals) {
  if (refusals.length === 0) return null;
  return el(
    "section",
    { "aria-labelledby": "refused" },
    el("h2", { id: "refused" }, "Refused"),
    el("ul", { class: "refusals" }, refusals.map((one) =>
      el(
        "li",
        { class: "problem" },
        icon("warn"),
        el(
          "div",
          {},
          el("strong", {}, one.specialty ?? one.plugin),
          el("p", {}, prose(one.reason)),
          el("p", { class: "remedy" }, prose(one.remedy)),
          el("p", { class: "by" }, `plugin ${one.plugin} · ${one.kind}`),
        ),
      ),
    )),
  );
}

function off(names) {
  if (names.length === 0) return null;
  return el(
    "section",
    { "aria-labelledby": "off" },
    el("h2", { id: "off" }, "Left out"),
    el("p", {}, "Installed, and switched off by HLO_PLUGINS: ", names.map((name, number) => [number ? ", " : "", el("code", {}, name)]).flat(), "."),
  );
}

function served(specialties) {
  return el(
    "section",
    { "aria-labelledby": "served" },
    el("h2", { id: "served" }, "Served"),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of what is served" },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, ["Specialty", "Package", "Adapter"].map((one) => el("th", { scope: "col" }, one)), ["Rank", "Size", "Examples"].map((one) => el("th", { scope: "col", class: "number" }, one)))),
        el("tbody", {}, specialties.map((one) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, el("a", { href: `#specialties/${encodeURIComponent(one.name)}` }, one.title)),
            el("td", {}, `${one.distribution} ${one.version}`),
            el("td", {}, hash(one.adapter.sha256)),
            el("td", { class: "number" }, count(one.rank)),
            el("td", { class: "number" }, size(one.adapter_bytes)),
            el("td", { class: "number" }, count(one.examples)),
          ),
        )),
      ),
    ),
  );
}

function detail(one, onAsk) {
  const holder = el("section", { class: "holder", "aria-label": "Card of the adapter", "aria-busy": "true" }, el("p", { class: "note" }, "Loading the card"));
  fill(holder, one);
  return el(
    "article",
    { class: "detail", "aria-labelledby": "specialty-title" },
    el("a", { class: "back", href: "#specialties" }, icon("back"), "All specialties"),
    el(
      "div",
      { class: "title" },
      el("h2", { id: "specialty-title", tabindex: -1 }, one.title),
      el("button", { type: "button", class: "primary", onclick: () => onAsk(one.name) }, "Ask this one"),
    ),
    one.description && el("p", { class: "lead" }, one.description),
    facts([
      ["Name", el("code", {}, one.name)],
      ["Adapter", hash(one.adapter.sha256)],
      ["Rank", count(one.rank)],
      ["Size", size(one.adapter_bytes)],
      ["Routing examples", count(one.examples)],
      ["Package", `${one.distribution} ${one.version}`],
      ["Plugin", one.plugin],
      ["Installed from", one.origin],
      ["Weights from", copyable(one.adapter_source, one.adapter_source, "where the weights came from")],
    ]),
    holder,
  );
}

async function fill(holder, one) {
  shown = one.name;
  let content;
  try {
    const response = await request(`/specialties/${encodeURIComponent(one.name)}/card`);
    content = card(await response.text());
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    content = error.told.status === 404 ? el("p", { class: "note" }, error.told.detail) : problem(error.told);
  }
  if (shown === one.name) holder.replaceChildren(content);
  holder.setAttribute("aria-busy", "false");
}
