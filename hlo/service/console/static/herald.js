// Reads an answer to those who listen, a sentence at a time: a screen reader can not keep up with single tokens.

import { el } from "./dom.js";

const SENTENCE = /^.*?[.!?:;](?=\s)/s;

/** A voice that speaks into a live region. `whole`: it keeps quiet until its end, since another one is speaking too. */
export function herald(region, whole) {
  let name = "";
  let rest = "";
  const say = (text) => text.trim() && region.append(el("p", {}, text.trim()));
  return {
    say,
    name: (said) => (name = said),
    hear(text) {
      rest += text;
      for (let found = SENTENCE.exec(rest); found && !whole; found = SENTENCE.exec(rest)) {
        say(found[0]);
        rest = rest.slice(found[0].length);
      }
    },
    end() {
      say(whole ? `${name}: ${rest}` : rest);
      rest = "";
    },
  };
}
