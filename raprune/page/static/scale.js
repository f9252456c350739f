/** Scales from values to pixels and back, and the ticks of an axis. */

/** A linear scale from `domain` values to `range` pixels. */
export function linear([low, high], [start, end]) {
  const factor = high === low ? 0 : (end - start) / (high - low);
  const scale = (value) => start + (value - low) * factor;
  scale.back = (pixel) => (factor === 0 ? low : low + (pixel - start) / factor);
  scale.domain = [low, high];
  return scale;
}

/**
 * A scale of accuracies by the logarithm of their error: 99.0 and 99.5 % are as far apart as 90 and 95 %.
 *
 * `least` is the smallest error that is shown, because the error 0 has no logarithm.
 */
export function byError([low, high], [start, end], least) {
  const height = (accuracy) => -Math.log(Math.max(1 - accuracy, least));
  const inner = linear([height(low), height(high)], [start, end]);
  const scale = (accuracy) => inner(height(accuracy));
  scale.back = (pixel) => 1 - Math.exp(-inner.back(pixel));
  scale.domain = [low, high];
  return scale;
}

/** Round values within [low, high], about `wanted` of them. */
export function ticks(low, high, wanted = 6) {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((multiple) => multiple * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/** Accuracies at round errors within [low, high], at least `apart` pixels from each other: the rounder ones first. */
export function errorTicks(low, high, scale, apart = 26) {
  const chosen = [];
  // Errors of 10, 1, 0.1 %, then of 50, 5, ..., then whole digits, halves of them, tenths.
  for (const digits of [[1], [5], [2], [3, 4, 6, 7, 8, 9], halves(), tenths()]) {
    for (let power = -1; power >= -6; power -= 1) {
      for (const digit of digits) {
        const accuracy = 1 - Number((digit * 10 ** power).toPrecision(3));
        if (accuracy < low - 1e-9 || accuracy > high + 1e-9) continue;
        if (chosen.every((other) => Math.abs(scale(other) - scale(accuracy)) >= apart)) chosen.push(accuracy);
      }
    }
    if (digits.length > 4 && chosen.length > 3) break;
  }
  return chosen.sort((a, b) => a - b);
}

function halves() {
  return [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5];
}

function tenths() {
  return Array.from({ length: 90 }, (_, i) => 1 + i / 10);
}
