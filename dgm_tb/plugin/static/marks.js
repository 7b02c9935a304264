// Marks on a time chart, each a function of data and a view. What is not finite is never dropped: it is carried at the
// last finite value, as a triangle (NaN) or a diamond (Inf).

/** @typedef {import("./chart.js").View} View */
/** @typedef {import("./types.d.ts").Numbers} Numbers */

/** Code of a value in `nonfinite` arrays: 0 finite, 1 NaN, 2 Inf, 3 -Inf. @param {number} value */
export function nonfiniteCode(value) {
  return Number.isFinite(value) ? 0 : Number.isNaN(value) ? 1 : value > 0 ? 2 : 3;
}

/**
 * One line; it breaks where a value is not finite.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {View} view
 * @param {Numbers} steps
 * @param {Numbers} values
 * @param {{ color: string, width?: number, dash?: number[], alpha?: number }} style width in device pixels
 */
export function drawLine(context, view, steps, values, { color, width = 1, dash = [], alpha = 1 }) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.globalAlpha = alpha;
  context.lineJoin = "round";
  context.setLineDash(dash.map((length) => length * view.ratio));
  context.beginPath();
  trace(context, view, steps, values);
  context.stroke();
  context.setLineDash([]);
  context.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} context @param {View} view @param {Numbers} steps @param {Numbers} values */
function trace(context, view, steps, values) {
  let isDrawing = false;
  for (let i = 0; i < steps.length; i++) {
    const y = Number.isFinite(values[i]) ? view.y(values[i]) : NaN;
    if (Number.isNaN(y)) {
      isDrawing = false;
      continue;
    }
    const x = view.x(steps[i]);
    if (isDrawing) context.lineTo(x, y);
    else context.moveTo(x, y);
    // A value between two gaps has no line; one pixel keeps it visible.
    if (!isDrawing && !Number.isFinite(values[i + 1])) context.lineTo(x + view.ratio, y);
    isDrawing = true;
  }
}

/**
 * The area between two series.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {View} view
 * @param {Numbers} steps
 * @param {Numbers} low
 * @param {Numbers} high
 * @param {string} color
 */
export function drawBand(context, view, steps, low, high, color) {
  context.fillStyle = color;
  for (let start = 0; start < steps.length; start++) {
    if (!isFinitePair(low, high, start)) continue;
    let end = start;
    while (end + 1 < steps.length && isFinitePair(low, high, end + 1)) end++;
    context.beginPath();
    for (let i = start; i <= end; i++) context.lineTo(view.x(steps[i]), view.y(high[i]));
    for (let i = end; i >= start; i--) context.lineTo(view.x(steps[i]), view.y(low[i]));
    context.fill();
    start = end;
  }
}

/** An image over a part of the plot. @param {CanvasRenderingContext2D} context @param {HTMLCanvasElement} image @param {number} left @param {number} top @param {number} right @param {number} bottom */
export function drawImage(context, image, left, top, right, bottom) {
  context.imageSmoothingEnabled = true;
  context.drawImage(image, left, top, right - left, bottom - top);
}

/** @param {Numbers} low @param {Numbers} high @param {number} i */
function isFinitePair(low, high, i) {
  return Number.isFinite(low[i]) && Number.isFinite(high[i]);
}

/**
 * Where the marks of what is not finite stand.
 *
 * @param {Numbers} steps
 * @param {Numbers} values
 * @param {Numbers | null} codes null: taken from the values
 * @returns {{ step: number, value: number, code: number, isFirst: boolean }[]} `value`: the last finite one, else the
 *   next, else NaN
 */
export function nonfiniteMarks(steps, values, codes) {
  const marks = [];
  let carried = NaN;
  let before = 0;
  for (let i = 0; i < steps.length; i++) {
    const code = codes ? codes[i] : nonfiniteCode(values[i]);
    if (code === 0 && Number.isFinite(values[i])) carried = values[i];
    if (code !== 0) marks.push({ step: steps[i], value: carried, code, isFirst: before !== code });
    before = code;
  }
  const next = values.find((value) => Number.isFinite(value));
  for (const mark of marks) if (Number.isNaN(mark.value) && next !== undefined) mark.value = next;
  return marks;
}

/**
 * Draws `nonfiniteMarks`: where it begins or changes always, and larger; in between every `spacing` CSS pixels.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {View} view
 * @param {ReturnType<typeof nonfiniteMarks>} marks
 * @param {string} color
 * @param {{ size?: number, spacing?: number }} [style] CSS pixels
 */
export function drawNonfinite(context, view, marks, color, { size = 4, spacing = 26 } = {}) {
  context.fillStyle = color;
  let lastX = -Infinity;
  for (const { step, value, code, isFirst } of marks) {
    const x = view.x(step);
    if (x < -10 || x > view.width + 10) continue;
    if (x - lastX < (isFirst ? size : spacing) * view.ratio) continue;
    const inside = Number.isFinite(value) ? view.y(value) : view.height;
    const radius = (isFirst ? size * 1.35 : size) * view.ratio;
    const y = Math.max(radius + 1, Math.min(view.height - radius - 1, Number.isNaN(inside) ? view.height : inside));
    if (code === 1) drawTriangle(context, x, y, radius);
    else drawDiamond(context, x, y, radius);
    lastX = x;
  }
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {number} radius */
export function drawTriangle(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y + radius * 0.8);
  context.lineTo(x - radius, y + radius * 0.8);
  context.fill();
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {number} radius */
export function drawDiamond(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.fill();
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {number} radius @param {string} color */
export function drawDot(context, x, y, radius, color) {
  context.fillStyle = color;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

/**
 * A short text beside a point, on a plate of the surface's colour, kept inside the plot.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {View} view
 * @param {string} text
 * @param {number} x device pixels
 * @param {number} y
 * @param {string} color
 * @param {boolean} [isLeft]
 */
export function drawLabel(context, view, text, x, y, color, isLeft = false) {
  const size = 11 * view.ratio;
  context.font = `${size}px Roboto, system-ui, sans-serif`;
  const width = context.measureText(text).width;
  const left = isLeft || x + 6 * view.ratio + width > view.width ? x - width - 6 * view.ratio : x + 6 * view.ratio;
  const base = Math.max(size, Math.min(view.height - 3 * view.ratio, y + size * 0.35));
  context.globalAlpha = 0.85;
  context.fillStyle = view.theme.surface;
  context.fillRect(left - 2 * view.ratio, base - size, width + 4 * view.ratio, size * 1.3);
  context.globalAlpha = 1;
  context.fillStyle = color;
  context.fillText(text, left, base);
}

/**
 * The series nearest to the pointer at one step.
 *
 * @param {(number | Float32Array)[] | Float32Array[]} lines
 * @param {number} column position in the lines
 * @param {number} step
 * @param {(step: number, value: number) => number} distance CSS pixels
 * @param {number} [limit] CSS pixels
 * @returns {number} position in `lines`, or -1
 */
export function nearestLine(lines, column, step, distance, limit = 28) {
  let best = -1;
  let least = limit;
  lines.forEach((line, i) => {
    const value = /** @type {Float32Array} */ (line)[column];
    if (!Number.isFinite(value)) return;
    const length = distance(step, value);
    if (length < least) [best, least] = [i, length];
  });
  return best;
}
