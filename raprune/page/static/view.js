/** The state of the page, and the functions that draw its parts when they change. */

export class View {
  #values;
  #derivers = [];
  #drawers = [];
  #dirty = new Set();
  #waiting = false;

  constructor(values) {
    this.#values = { ...values };
  }

  get(name) {
    return this.#values[name];
  }

  /** Changes values; each function that draws from them is called once, before the next frame. */
  set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (Object.is(this.#values[name], value)) continue;
      this.#values[name] = value;
      this.#dirty.add(name);
    }
    this.#schedule();
  }

  /** Marks values as changed although they are the same objects. */
  touch(...names) {
    for (const name of names) this.#dirty.add(name);
    this.#schedule();
  }

  /** Calls `derive` when one of these values changes, before anything is drawn; it sets values that depend on them. */
  derive(names, derive) {
    this.#derivers.push([names, derive]);
  }

  /** Calls `draw` when one of the values changes, in the order of the calls of `on`. */
  on(names, draw) {
    this.#drawers.push([names, draw]);
  }

  #schedule() {
    if (this.#waiting || this.#dirty.size === 0) return;
    this.#waiting = true;
    // A hidden tab has no frames, and must not collect changes for hours.
    if (document.hidden) setTimeout(() => this.#flush(), 1000);
    else requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    const started = performance.now();
    const dirty = new Set();
    // Derived values are drawn once, in the same frame as the change.
    while (this.#dirty.size) {
      const changed = this.#dirty;
      this.#dirty = new Set();
      for (const name of changed) dirty.add(name);
      for (const [names, derive] of this.#derivers) {
        if (names.some((name) => changed.has(name))) derive();
      }
    }
    this.#waiting = false;
    for (const [names, draw] of this.#drawers) {
      if (names.some((name) => dirty.has(name))) draw();
    }
    performance.measure(`draw:${[...dirty].join(",")}`, { start: started });
  }
}

/** Returns a function that calls `draw` at once if the host is in sight, else when it comes into sight. */
export function whenSeen(host, draw) {
  let stale = false;
  let seen = false;
  const watcher = new IntersectionObserver(
    (entries) => {
      seen = entries[entries.length - 1].isIntersecting;
      if (seen && stale) {
        stale = false;
        draw();
      }
    },
    { rootMargin: "200px" },
  );
  watcher.observe(host);
  return () => {
    if (seen) draw();
    else stale = true;
  };
}

/** The radio buttons of the group `name` set the value of that name. */
export function choice(view, name) {
  for (const box of document.querySelectorAll(`input[name="${name}"]`)) {
    box.addEventListener("change", () => view.set({ [name]: box.value }));
  }
  view.on([name], () => {
    const box = document.querySelector(`input[name="${name}"][value="${CSS.escape(view.get(name))}"]`);
    if (box) box.checked = true;
  });
}
