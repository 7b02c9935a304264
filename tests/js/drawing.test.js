import assert from "node:assert/strict";
import { test } from "node:test";
import "./browser.js";

const { THEMES, contributionScale, rgb } = await import("../../dgm_tb/plugin/static/color.js");
const { nearestLine, nonfiniteMarks } = await import("../../dgm_tb/plugin/static/marks.js");
const { miniLine } = await import("../../dgm_tb/plugin/static/views/node.js");
const { placeCells, unusualness } = await import("../../dgm_tb/plugin/static/views/neurons.js");
const { imageShape, toOverlay, toPixels } = await import("../../dgm_tb/plugin/static/views/samples.js");

const AREA = { x: 10, y: 4, width: 160, height: 200 };

/** Relative luminance after WCAG. */
function luminance(color) {
  const [r, g, b] = rgb(color).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a, b) {
  const [high, low] = [luminance(a), luminance(b)].toSorted((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}

test("texts and marks of both themes can be read on their surface", () => {
  for (const theme of Object.values(THEMES)) {
    for (const name of ["text", "muted", "anomaly", "focus", "warning", "negative", "positive", "accent"]) {
      for (const surface of ["surface", "sunken"]) assert.ok(contrast(theme[name], theme[surface]) >= 4.4, `${name} on ${surface}: ${contrast(theme[name], theme[surface])}`);
    }
  }
});

test("contributions: the ends and the middle are the theme's, beyond is clipped, not finite is an anomaly", () => {
  for (const theme of Object.values(THEMES)) {
    const scale = contributionScale(theme);
    assert.deepEqual(rgb(scale(-1)), rgb(theme.negative));
    assert.deepEqual(rgb(scale(0)), rgb(theme.middle));
    assert.deepEqual(rgb(scale(1)), rgb(theme.positive));
    assert.equal(scale(7), scale(1));
    assert.equal(scale(NaN), theme.anomaly);
  }
});

test("what is not finite is marked at the last finite value, by kind, its beginning told apart", () => {
  const marks = nonfiniteMarks(new Float64Array([0, 1, 2, 3, 4]), new Float32Array([NaN, 5, Infinity, NaN, NaN]), null);
  assert.deepEqual(marks, [
    { step: 0, value: 5, code: 1, isFirst: true },
    { step: 2, value: 5, code: 2, isFirst: true },
    { step: 3, value: 5, code: 1, isFirst: true },
    { step: 4, value: 5, code: 1, isFirst: false },
  ]);
});

test("what was not recorded is a gap and no anomaly", () => {
  assert.deepEqual(nonfiniteMarks(new Float64Array([0, 1]), new Float32Array([NaN, 2]), new Uint8Array([0, 0])), []);
});

test("the nearest line is found within reach only", () => {
  const lines = [[0, 10], [0, 20], [0, NaN]].map((row) => Float32Array.from(row));
  assert.equal(nearestLine(lines, 1, 1, (_, value) => Math.abs(value - 18)), 1);
  assert.equal(nearestLine(lines, 1, 1, () => 99), -1);
});

test("every neuron gets a cell of its own inside the area, as long as they fit", () => {
  for (const count of [1, 7, 64, 512, 1200]) {
    const cells = placeCells(count, null, AREA, null);
    assert.deepEqual(cells.map((cell) => cell.neuron), Array.from({ length: count }, (_, i) => i));
    assert.equal(new Set(cells.map(({ x, y }) => `${x} ${y}`)).size, count);
    for (const { x, y, size } of cells) {
      assert.ok(x >= AREA.x - 0.01 && x + size <= AREA.x + AREA.width + 0.01 && y >= AREA.y - 0.01 && y + size <= AREA.y + AREA.height + 0.01);
    }
  }
});

test("of very many neurons the strongest are drawn, and the focus neuron always", () => {
  const strength = Float32Array.from({ length: 20000 }, (_, i) => (i % 2 ? -i : i));
  const cells = placeCells(20000, strength, AREA, 5);
  assert.equal(cells.length, 1200);
  assert.ok(cells.some((cell) => cell.neuron === 5) && cells.some((cell) => cell.neuron === 19999) && !cells.some((cell) => cell.neuron === 100));
});

test("unusualness is the distance from the median, NaN stays NaN", () => {
  assert.deepEqual([...unusualness(new Float32Array([1, 1, 5, NaN, 3]))], [1, 1, 1, NaN, 0]);
});

test("a mini chart breaks at NaN and tells where", () => {
  const { line, bad } = miniLine([0, 1, 2, 3], [1, NaN, 2, 3], [0, 1, 0, 0]);
  assert.equal(line.split("M").length - 1, 2);
  assert.deepEqual(bad, [1]);
});

test("inputs of any axes have a picture", () => {
  assert.deepEqual(imageShape("NCHW", [5, 3, 32, 16]), { width: 16, height: 32, channels: 3, columns: 16 });
  assert.deepEqual(imageShape("NHW", [5, 8, 9]), { width: 9, height: 8, channels: 1, columns: 9 });
  assert.deepEqual(imageShape("NF", [5, 64]), { width: 8, height: 8, channels: 1, columns: 8 });
  assert.deepEqual(imageShape("NF", [5, 10]), { width: 4, height: 3, channels: 1, columns: 4 });
});

test("pixels: inside the range grey, outside red and darker the farther, not finite full red", () => {
  const pixels = toPixels(new Float32Array([0, 16, 8, 32, 1600, NaN]), { width: 6, height: 1, channels: 1, columns: 6 }, 0, 16);
  const pixel = (i) => [...pixels.slice(i * 4, i * 4 + 4)];
  assert.deepEqual(pixel(0), [0, 0, 0, 255]);
  assert.deepEqual(pixel(1), [255, 255, 255, 255]);
  assert.deepEqual(pixel(2), [128, 128, 128, 255]);
  assert.ok(pixel(3)[0] > pixel(3)[1] && pixel(4)[0] > pixel(4)[1] && pixel(4)[1] < pixel(3)[1]);
  assert.deepEqual(pixel(5), [211, 47, 47, 255]);
});

test("a relevance map sums channels, keeps signs apart, and is clear where there is none", () => {
  const scale = contributionScale(THEMES.light);
  const pixels = toOverlay(new Float32Array([1, 0, -0.5, 1, 0, -0.5]), { width: 3, height: 1, channels: 2, columns: 3 }, 2, scale);
  assert.deepEqual([...pixels.slice(0, 3)], rgb(THEMES.light.positive));
  assert.equal(pixels[7], 0);
  assert.deepEqual([...pixels.slice(8, 11)], rgb(THEMES.light.negative));
});
