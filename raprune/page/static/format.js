/** Numbers as text. Accuracies and fractions in [0, 1] become percent. */

const COUNT = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const NOTHING = "–";

/** 0.9876 -> "98.76 %"; an unknown value is a dash. */
export function percent(fraction, digits = 2) {
  return known(fraction) ? `${(100 * fraction).toFixed(digits)} %` : NOTHING;
}

/** 12345 -> "12,345". */
export function count(value) {
  return known(value) ? COUNT.format(value) : NOTHING;
}

/** 12345678 -> "12.3M". */
export function short(value) {
  return known(value) ? SHORT.format(value) : NOTHING;
}

/** Seconds -> "1 h 05 min", "12 min", "34 s", "0.4 s". */
export function duration(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 100 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${(hours / 24).toFixed(1)} days`;
}

/** Seconds since something -> "just now", "5 min ago", "3 h ago", "12 days ago", as `raprune runs` says it. */
export function ago(seconds) {
  if (seconds < 60) return "just now";
  const units = [["year", 365.25 * 86400], ["month", 30.4 * 86400], ["day", 86400], ["h", 3600], ["min", 60]];
  const [unit, size] = units.find(([name, length]) => seconds >= (name === "h" || name === "min" ? 1 : 2) * length);
  const number = Math.floor(seconds / size);
  return `${number} ${unit}${unit === "h" || unit === "min" ? "" : "s"} ago`;
}

/** Up to four significant digits, without zeros at the end. */
export function number(value) {
  if (!known(value)) return NOTHING;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) {
    return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(Number(value.toPrecision(4)));
}

/** 1 -> "1 epoch", 0.25 -> "0.25 epochs". */
export function epochsText(value) {
  return `${number(value)} epoch${value === 1 ? "" : "s"}`;
}

/** {"lr": 0.1, "form": "block"} -> "lr=0.1, form=block". */
export function settingsText(settings) {
  const parts = Object.entries(settings).map(([key, value]) =>
    `${key}=${typeof value === "number" ? number(value) : value}`
  );
  return parts.join(", ");
}

export function known(value) {
  return value !== null && value !== undefined && !Number.isNaN(value);
}
