// The view of how the server stands: the engine, the room it has, how it routes, and where to look further.

import { count, copyable, el, facts, percent, prose, size } from "./dom.js";
import { known } from "./known.js";

const place = document.getElementById("server");
const AMBIGUOUS = { first: "to the likelier specialty", base: "to the base model", ask: "HLO asks which was meant" };
const OUTSIDE = { base: "to the base model", refuse: "refused" };

/** Draw the view. */
export function draw() {
  const { about, ready, lost } = known;
  if (ready === null) {
    place.replaceChildren(el("p", { class: "note" }, lost ? lost.detail : "Loading"));
    return;
  }
  const { engine } = ready;
  place.replaceChildren(
    el(
      "div",
      { class: "cards" },
      group("State", [
        ["Stage", lost ? "no connection" : ready.stage],
        ["Version", about && `HLO ${about.version}`],
        ["Specialties", ready.ready ? count(ready.specialties.length) : null],
        ["Refused", ready.ready ? count(ready.refused.length) : null],
      ]),
      engine && group("Model", [
        ["Base model", engine.model],
        ["Quantisation", quantisation(engine)],
        ["Weights", engine.weight_bytes === null ? null : size(engine.weight_bytes)],
        ["Linear layers", linear(engine)],
        ["Activations", engine.dtype],
      ]),
      engine && group("Engine", [
        ["Engine", `${engine.engine} ${engine.version}`],
        ["Device", engine.device],
        ["Eager", engine.eager ? "yes" : "no, compiled"],
        ["Longest prompt and answer", `${count(engine.max_model_len)} tokens`],
      ]),
      engine && group("Room for adapters", [
        ["Adapters at most", count(engine.max_adapters)],
        ["Highest rank", count(engine.max_lora_rank)],
        ["Layers", engine.kinds.join(", ")],
      ], el("p", { class: "because" }, prose(engine.reason))),
      ready.thresholds && routing(ready, about),
      group("Watching", [
        ["Traces", about && (about.traced ? "exported" : "off: OTEL_EXPORTER_OTLP_ENDPOINT is not set")],
        ["Traces are seen at", about?.trace_url],
        ["Metrics", el("a", { href: "/metrics" }, "/metrics")],
        ["Interface", el("a", { href: "/schema/openapi.json" }, "/schema/openapi.json")],
      ]),
    ),
  );
}

function group(title, rows, ...more) {
  const id = `group-${title.toLowerCase().replaceAll(" ", "-")}`;
  return el("section", { class: "panel", "aria-labelledby": id }, el("h2", { id }, title), facts(rows), more);
}

function quantisation(engine) {
  const asked = known.about?.quantization;
  return asked && asked !== engine.quantization ? `${engine.quantization} (asked for: ${asked})` : engine.quantization;
}

function linear(engine) {
  if (engine.linear_dtype === null) return null;
  return engine.linear_bits === null ? engine.linear_dtype : `${engine.linear_dtype}, ${Number(engine.linear_bits.toFixed(2))} bit each`;
}

function routing(ready, about) {
  const { min_in_scope: scope, min_probability: probability } = ready.thresholds;
  return group(
    "Routing",
    [
      ["Encoder", ready.encoder],
      ["Fingerprint", copyable(ready.encoder_fingerprint, ready.encoder_fingerprint.slice(0, 12), "fingerprint")],
      ["Thresholds from", basis(ready.thresholds_from)],
      ["Ambiguous questions", about && AMBIGUOUS[about.ambiguous]],
      ["Out-of-scope questions", about && OUTSIDE[about.out_of_scope]],
    ],
    scale("That any specialty fits", scope, ["out of scope", "in scope"]),
    scale("That the best specialty fits", probability, ["ambiguous", "routed"]),
  );
}

function basis(from) {
  if (from.refused) return `${from.kind}; the calibration is not used: ${from.refused}`;
  if (from.kind === "settings") return "settings";
  return `calibration of ${from.made}: at most ${percent(from.tolerated_error)} wrong routes, with ${percent(from.confidence)} confidence`;
}

/** A threshold on the scale from nothing to certainty. */
function scale(what, at, [below, above]) {
  const line = el("div", { class: "threshold", "aria-hidden": "true" }, el("span", { class: "below" }), el("span", { class: "above" }));
  line.style.setProperty("--at", String(at));
  return el(
    "div",
    { class: "scale" },
    el("p", {}, `${what}: `, el("strong", {}, percent(at))),
    line,
    el("p", { class: "ends" }, el("span", {}, `below: ${below}`), el("span", {}, `from there: ${above}`)),
  );
}
