// Requests to this server: its answers, its streams, and its problems (RFC 9457).

const STORED = "hlo-key"; // in sessionStorage: gone with the tab
let wanted = null; // the question for a key that is open now, shared by all requests that were refused
let asker = null;

/** A problem as the server told it; or one of ours, when nobody answered. */
export class Problem extends Error {
  constructor(told) {
    super(told.detail);
    this.told = told;
  }
}

export const key = {
  get: () => sessionStorage.getItem(STORED),
  set: (value) => sessionStorage.setItem(STORED, value),
  forget: () => sessionStorage.removeItem(STORED),
};

/** Have `ask` called when a request needs a key: it returns whether there is a new one. */
export function askForKeyWith(ask) {
  asker = ask;
}

/**
 * The response to a request, if it is a success or of the status `also`. Where a key is needed, asks for it and tries
 * again, unless `quiet`. Throws `Problem`, or AbortError.
 */
export async function request(path, { body, signal, also, quiet = false } = {}) {
  for (;;) {
    const used = key.get();
    const response = await send(path, body, signal, used);
    if (response.ok || response.status === also) return response;
    const told = await problemOf(response);
    if (response.status !== 401 || quiet) throw new Problem(told);
    if (key.get() !== used) continue; // another request has asked meanwhile
    wanted ??= asker(used === null ? null : told).finally(() => (wanted = null));
    if (!(await wanted)) throw new Problem(told);
  }
}

/** What a GET gives, decoded. */
export async function get(path, how) {
  return (await request(path, how)).json();
}

/** The server-sent events of a POST, as [name, data], as they arrive. */
export async function* stream(path, body, signal) {
  const response = await request(path, { body: { ...body, stream: true }, signal });
  yield* events(response.body);
}

/** The events in a stream of bytes (WHATWG HTML, "Server-sent events"): [name, decoded data]. */
export async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(lost);
      if (done) return;
      rest = (rest + value).replaceAll("\r\n", "\n");
      for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
        const event = decode(rest.slice(0, end));
        rest = rest.slice(end + 2);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it is over, or nobody listens any more: the server stops generating
  }
}

function decode(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}

async function send(path, body, signal, bearer) {
  const headers = bearer ? { authorization: `Bearer ${bearer}` } : {};
  const how = { headers, signal, cache: "no-store", credentials: "same-origin", referrerPolicy: "no-referrer" };
  try {
    if (body === undefined) return await fetch(path, how);
    headers["content-type"] = "application/json";
    return await fetch(path, { ...how, method: "POST", body: JSON.stringify(body) });
  } catch (error) {
    return lost(error);
  }
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new Problem({
    title: "No answer from the server",
    detail: "The connection could not be made, or was lost.",
    remedy: "See whether the server runs, then ask again.",
  });
}

async function problemOf(response) {
  const told = await response.json().catch(() => null);
  if (typeof told?.detail === "string") return told;
  return {
    title: `The server answered ${response.status}`,
    status: response.status,
    detail: "What it sent is no problem document: it may come from a proxy in between.",
    remedy: "Look into the log of the server, and of what stands before it.",
  };
}
