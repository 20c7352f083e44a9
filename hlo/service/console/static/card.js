// An adapter's card, which a stranger wrote in Markdown: a small part of it as elements, and everything else as text.
// No links, no pictures, no HTML: what a card points to is shown, and never fetched.

import { el, facts } from "./dom.js";

// How a block begins, and what takes its lines; what begins like none of these is a paragraph.
const BLOCKS = [
  [/^\s{0,3}```/, fenced],
  [/^#{1,6}\s/, heading],
  [/^\s*\|.*\|\s*$/, table],
  [/^\s*(?:[-*+]|\d+[.)])\s/, list],
  [/^\s*>/, quote],
  [/^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/, rule],
];
const INLINE =
  /`([^`]+)`|\*\*(.+?)\*\*|__(.+?)__|\*([^*\s][^*]*)\*|!\[([^\]]*)\]\([^)\s]*\)|\[([^\]]+)\]\(([^)\s]+)\)|<(https?:[^>\s]+)>/g;

/** The card as an element; its headings are below the level `above`. */
export function card(markdown, above = 2) {
  const lines = markdown.replaceAll("\r\n", "\n").split("\n");
  const outline = { above, level: above };
  const blocks = [front(lines)];
  while (lines.length) {
    if (lines[0].trim()) blocks.push(taker(lines[0])(lines, outline));
    else lines.shift();
  }
  return el("div", { class: "card" }, blocks);
}

function taker(line) {
  return BLOCKS.find(([begins]) => begins.test(line))?.[1] ?? paragraph;
}

/** The lines at the top for as long as they are of one kind. */
function taken(lines, belongs) {
  const end = lines.findIndex((line, number) => number > 0 && !belongs(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

/** The metadata that model hubs want at a card's top, as it stands there. */
function front(lines) {
  const end = lines[0]?.trim() === "---" ? lines.indexOf("---", 1) : -1;
  if (end < 0) return null;
  const rows = new Map();
  let key = "";
  for (const line of lines.splice(0, end + 1).slice(1, -1)) {
    const [, name, value] = /^(\w[\w-]*):\s*(.*)$/.exec(line) ?? [];
    if (name) rows.set((key = name), value);
    else if (key) rows.set(key, [rows.get(key), line.replace(/^\s*-\s*/, "").trim()].filter(Boolean).join(", "));
  }
  return facts([...rows].map(([name, value]) => [name.replaceAll("_", " "), value]), { class: "facts front" });
}

/** A heading; at most one level below the one before it, whatever the card says. */
function heading(lines, outline) {
  const [, marks, title] = /^(#+)\s+(.*?)\s*#*$/.exec(lines.shift().padEnd(8));
  outline.level = Math.min(outline.above + marks.length, outline.level + 1, 6);
  return el(`h${outline.level}`, {}, inline(title));
}

function paragraph(lines) {
  return el("p", {}, inline(taken(lines, (line) => line.trim() && taker(line) === paragraph).join(" ")));
}

function fenced(lines) {
  lines.shift();
  const end = lines.findIndex((line) => /^\s{0,3}```\s*$/.test(line));
  const code = lines.splice(0, end < 0 ? lines.length : end);
  lines.shift();
  return el("pre", { tabindex: 0, role: "region", "aria-label": "Code" }, el("code", {}, code.join("\n")));
}

function list(lines) {
  const ordered = /^\s*\d/.test(lines[0]);
  const items = [];
  for (const line of taken(lines, (one) => one.trim() && (taker(one) === list || /^\s{2,}/.test(one)))) {
    const item = /^\s*(?:[-*+]|\d+[.)])\s+(.*)$/.exec(line);
    if (item || items.length === 0) items.push(item ? item[1] : line);
    else items.push(`${items.pop()} ${line.trim()}`);
  }
  return el(ordered ? "ol" : "ul", {}, items.map((item) => el("li", {}, inline(item))));
}

function quote(lines) {
  const text = taken(lines, (line) => taker(line) === quote).map((line) => line.replace(/^\s*>\s?/, ""));
  return el("blockquote", {}, inline(text.join(" ")));
}

function rule(lines) {
  lines.shift();
  return el("hr");
}

function table(lines) {
  const cells = (line) => line.trim().slice(1, -1).split("|").map((cell) => cell.trim());
  const [top, ...rows] = taken(lines, (line) => taker(line) === table).map(cells);
  const body = rows.filter((row) => !row.every((cell) => /^:?-+:?$/.test(cell)));
  const numeric = top.map((_, column) => body.length > 0 && body.every((row) => /^[*\s]*[-+]?[\d.,]+[\s%*]*$/.test(row[column] ?? "")));
  const kind = (column) => (numeric[column] ? { class: "number" } : {});
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, top.map((cell, column) => el("th", { scope: "col", ...kind(column) }, inline(cell))))),
      el("tbody", {}, body.map((row) => el("tr", {}, row.map((cell, column) => el("td", kind(column), inline(cell)))))),
    ),
  );
}

/** Code, strong and emphasised text; of a link, its text and its address; of a picture, what it would have shown. */
function inline(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    const [all, code, strong, strong2, em, picture, label, address, bare] = found;
    parts.push(text.slice(from, found.index));
    from = found.index + all.length;
    if (code !== undefined) parts.push(el("code", {}, code));
    else if (strong ?? strong2) parts.push(el("strong", {}, strong ?? strong2));
    else if (em) parts.push(el("em", {}, em));
    else if (picture !== undefined) parts.push(el("span", { class: "address" }, `[picture: ${picture || "untitled"}]`));
    else if (bare) parts.push(el("span", { class: "address" }, bare));
    else parts.push(`${label} `, el("span", { class: "address" }, `(${address})`));
  }
  return [...parts, text.slice(from)];
}
