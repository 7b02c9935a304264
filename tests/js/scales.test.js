import assert from "node:assert/strict";
import { test } from "node:test";
import { extent, linearTicks, makeScale, nearestIndex, paddedRange, symlogThreshold, ticks } from "../../dgm_tb/plugin/static/scales.js";

test("every scale inverts itself", () => {
  for (const name of ["linear", "symlog", "log"]) {
    const scale = makeScale(name, 0.01);
    for (const value of [1e-6, 0.5, 3, 1e6]) assert.ok(Math.abs(scale.invert(scale.apply(value)) / value - 1) < 1e-9);
  }
});

test("ticks lie inside, apart, ascending, and include zero where the range does", () => {
  for (const name of ["linear", "symlog"]) {
    for (const [low, high, threshold] of [[-1, 1000, 0.1], [-3, 3, 1], [0, 52, 10], [-1e30, 1e30, 1e-3], [5, 5.001, 1], [-1e-9, 2e-9, 1e-9]]) {
      const scale = makeScale(name, threshold);
      const [from, to] = paddedRange([low, high], scale);
      const values = ticks(scale, from, to, 5);
      const at = values.map(scale.apply);
      assert.ok(values.length >= 2 && values.length <= 12, `${name} ${low} ${high}: ${values}`);
      assert.ok(at.every((v) => v >= from - 1e-9 && v <= to + 1e-9), `${name} ${low} ${high}: ${values}`);
      assert.ok(at.every((v, i) => i === 0 || v > at[i - 1]));
      if (low <= 0 && high >= 0) assert.ok(values.includes(0), `${name} ${low} ${high}: ${values}`);
    }
  }
});

test("linear ticks are round numbers", () => {
  assert.deepEqual(linearTicks(0, 479, 5), [0, 100, 200, 300, 400]);
  assert.deepEqual(linearTicks(0.1, 0.42, 3), [0.2, 0.4]);
  assert.deepEqual(linearTicks(3, 3, 5), []);
});

test("the extent sees finite values only; log positive ones only", () => {
  const series = [new Float32Array([NaN, -2, Infinity]), new Float32Array([5, -Infinity])];
  assert.deepEqual(extent(series), [-2, 5]);
  assert.deepEqual(extent(series, "log"), [5, 5]);
  assert.equal(extent([new Float32Array([NaN])]), null);
  assert.deepEqual(paddedRange(null, makeScale("linear")), [-0.06, 1.06]);
});

test("one constant value still gives a range around it", () => {
  const [low, high] = paddedRange([7, 7], makeScale("linear"));
  assert.ok(low < 7 && high > 7);
});

test("the symlog threshold is the size of the crowd, not of the outlier", () => {
  assert.equal(symlogThreshold([new Float32Array([0.2, 0.3, 0.5, 1e9, NaN, 0])]), 0.1);
  assert.equal(symlogThreshold([new Float32Array([0, NaN])]), 1);
});

test("nearestIndex agrees with a scan", () => {
  const sorted = [0, 1, 1, 4, 9, 16];
  for (let value = -2; value < 20; value += 0.37) {
    const distance = Math.abs(sorted[nearestIndex(sorted, value)] - value);
    assert.equal(distance, Math.min(...sorted.map((v) => Math.abs(v - value))));
  }
});
