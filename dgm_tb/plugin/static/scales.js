// Axes as pure functions: how values become a linear coordinate, where the ticks stand, what range a series needs.

/** @typedef {"linear" | "symlog" | "log"} ScaleName */

/**
 * A y scale: `apply` maps values to a linear coordinate and `invert` back.
 *
 * @typedef {{ name: ScaleName, apply: (value: number) => number, invert: (value: number) => number }} Scale
 */

/**
 * @param {ScaleName} name
 * @param {number} threshold for symlog: below it the scale is nearly linear
 * @returns {Scale}
 */
export function makeScale(name, threshold = 1) {
  if (name === "symlog") {
    return { name, apply: (v) => Math.asinh(v / threshold), invert: (v) => Math.sinh(v) * threshold };
  }
  if (name === "log") return { name, apply: (v) => (v > 0 ? Math.log10(v) : NaN), invert: (v) => 10 ** v };
  return { name, apply: (v) => v, invert: (v) => v };
}

/**
 * The smallest and largest finite value; log takes positive values only.
 *
 * @param {Iterable<ArrayLike<number>>} series
 * @param {ScaleName} name
 * @returns {[number, number] | null} null if there is none
 */
export function extent(series, name = "linear") {
  let low = Infinity;
  let high = -Infinity;
  for (const values of series) {
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (!Number.isFinite(value) || (name === "log" && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

/**
 * Where a symlog scale turns from linear to logarithmic: a typical size of the values, so that the crowd keeps its
 * shape and only what is far out is squeezed.
 *
 * @param {ArrayLike<number>[]} series
 */
export function symlogThreshold(series) {
  const sizes = [];
  const total = series.reduce((sum, values) => sum + values.length, 0);
  const stride = Math.max(1, Math.floor(total / 2000));
  let count = 0;
  for (const values of series) {
    for (let i = 0; i < values.length; i++) {
      if (count++ % stride === 0 && Number.isFinite(values[i]) && values[i] !== 0) sizes.push(Math.abs(values[i]));
    }
  }
  if (!sizes.length) return 1;
  sizes.sort((a, b) => a - b);
  return 10 ** Math.floor(Math.log10(sizes[sizes.length >> 1]));
}

/**
 * Scaled range of an extent with a margin of 6 %; never empty.
 *
 * @param {[number, number] | null} values
 * @param {Scale} scale
 * @returns {[number, number]}
 */
export function paddedRange(values, scale) {
  let [low, high] = values ? [scale.apply(values[0]), scale.apply(values[1])] : [0, 1];
  if (high - low < 1e-9 * Math.max(1, Math.abs(low))) [low, high] = [low - 0.5, high + 0.5];
  const margin = (high - low) * 0.06;
  return [low - margin, high + margin];
}

/**
 * Tick values for a scaled range, at most about `count` of them.
 *
 * @param {Scale} scale
 * @param {number} low in scaled units
 * @param {number} high
 * @param {number} count
 * @returns {number[]} in units of the values
 */
export function ticks(scale, low, high, count) {
  const [from, to] = [scale.invert(low), scale.invert(high)];
  if (scale.name === "linear") return linearTicks(from, to, count);
  // Powers of ten first, then their halves and fifths, then round numbers: a short axis is not left bare, a long one not crowded.
  const wanted = [...powersOfTen(scale, from, to, [1]), ...powersOfTen(scale, from, to, [5]), ...linearTicks(from, to, count), ...powersOfTen(scale, from, to, [2])];
  return thin(wanted, scale, ((high - low) / count) * 0.8);
}

/** @param {number} from @param {number} to @param {number} count */
export function linearTicks(from, to, count) {
  const raw = (to - from) / Math.max(count, 1);
  if (!(raw > 0) || !Number.isFinite(raw)) return [];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999) ?? 10 * power;
  const first = Math.ceil(from / step);
  const last = Math.floor(to / step);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** @param {Scale} scale @param {number} from @param {number} to @param {number[]} multiples */
function powersOfTen(scale, from, to, multiples) {
  const inside = (/** @type {number} */ v) => v >= from && v <= to;
  const floor = Math.floor(Math.log10(scale.name === "log" ? from : scale.invert(0.5)));
  const top = Math.ceil(Math.log10(Math.max(Math.abs(from), Math.abs(to), Number.MIN_VALUE)));
  const powers = [];
  for (let k = top; k >= Math.max(floor, top - 60); k--) powers.push(...multiples.map((m) => Number((m * 10 ** k).toPrecision(3))));
  const signed = scale.name === "log" ? powers : [0, ...powers.flatMap((v) => [v, -v])];
  return signed.filter(inside);
}

/** Ticks at least `gap` apart in scaled units; the first win. @param {number[]} wanted @param {Scale} scale @param {number} gap */
function thin(wanted, scale, gap) {
  /** @type {number[]} */
  const kept = [];
  for (const value of wanted) {
    if (kept.every((other) => Math.abs(scale.apply(other) - scale.apply(value)) >= gap)) kept.push(value);
  }
  return kept.sort((a, b) => a - b);
}

/**
 * Position of the element nearest to `value` in an ascending array.
 *
 * @param {ArrayLike<number>} sorted
 * @param {number} value
 */
export function nearestIndex(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return sorted.length && Math.abs(sorted[high] - value) < Math.abs(value - sorted[low]) ? high : low;
}
