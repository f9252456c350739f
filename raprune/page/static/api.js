/** What the server is asked. Every path is relative to the page, wherever it is served. */

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
    throw new Refused(0, { error: "The page's server does not answer.", hint: "It is tried again by itself." });
  }
  if (answer.ok) return answer.json();
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // A proxy in between answered, not the page.
  }
  throw new Refused(answer.status, { error: told.error ?? `The server answered ${answer.status}.`, hint: told.hint });
}

/**
 * Calls `heard[event](data)` for what the server pushes, and `heard.connected(true | false)` as the line comes and
 * goes.
 *
 * The browser takes up a lost line by itself, but for an answer that it takes for final: that is done here.
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
