/** Requests to the server. Every path is relative to the address of the page. */

export class Refused extends Error {
  constructor(status, { error, hint }) {
    super(error);
    this.status = status;
    this.hint = hint ?? "";
  }
}

/** The JSON answer of a path. Raises Refused with the server's words, or with status 0 if there was no answer. */
export async function ask(path) {
  let answer;
  try {
    answer = await fetch(`./api/${path}`);
  } catch {
    throw new Refused(0, { error: "The server of the page does not answer.", hint: "The page tries again by itself." });
  }
  if (answer.ok) return answer.json();
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // The answer came from a proxy, not from the page.
  }
  throw new Refused(answer.status, { error: told.error ?? `The server answered ${answer.status}.`, hint: told.hint });
}

/**
 * Calls `heard[event](data)` for each event of the server, and `heard.connected(true | false)` when the connection
 * opens or breaks.
 *
 * The browser reconnects by itself, except after an answer that it takes as final; then this function reconnects.
 */
export function listen(heard) {
  let source = null;
  const open = () => {
    source = new EventSource("./api/events");
    source.addEventListener("open", () => heard.connected(true));
    source.addEventListener("error", () => {
      heard.connected(false);
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 5000);
    });
    for (const name of ["trials", "progress", "run", "away", "stages"]) {
      source.addEventListener(name, (event) => heard[name](JSON.parse(event.data)));
    }
  };
  open();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => {
    if (event.persisted) open();
  });
}
