import assert from "node:assert/strict";
import { test } from "node:test";
import { formatAge, formatCount, formatEvidence, formatStep, formatValue, leafName, shorten, toNumber } from "../../dgm_tb/plugin/static/format.js";

test("values are short and keep their sign and kind", () => {
  const cases = [[0, "0"], [0.8, "0.8"], [-1.234, "−1.23"], [9120, "9.12k"], [1.5e9, "1.5B"], [1e-7, "1e−7"], [-3.2e-5, "−3.2e−5"], [4e30, "4e30"], [NaN, "NaN"], [Infinity, "Inf"], [-Infinity, "−Inf"]];
  for (const [value, text] of cases) assert.equal(formatValue(value), text);
});

test("steps, counts and ages read as words", () => {
  assert.equal(formatStep(24397), "24,397");
  assert.equal(formatStep(null), "–");
  assert.equal(formatCount(1, "neuron"), "1 neuron");
  assert.equal(formatCount(18432, "neuron"), "18,432 neurons");
  assert.deepEqual([3, 100, 7200, 4e5].map(formatAge), ["3 s ago", "2 min ago", "2 h ago", "5 days ago"]);
});

test("a long name keeps its leaf", () => {
  assert.equal(shorten("encoder.0", 20), "encoder.0");
  const short = shorten("generator.up_blocks.3.resnets.1.conv_shortcut", 20);
  assert.equal(short.length, 20);
  assert.ok(short.endsWith("conv_shortcut"));
  assert.equal(leafName("encoder.layers.0"), "layers.0");
  assert.equal(leafName("fc_mu"), "fc_mu");
});

test("evidence of any JSON form becomes a line", () => {
  assert.equal(formatEvidence({ largest: 640.4, names: ["a", "b"] }), "largest 640, names a, b");
  assert.equal(formatEvidence([1, 2, 3, 4, 5]), "1, 2, 3, 4, …");
  assert.equal(formatEvidence("Infinity"), "Infinity");
});

test("non-finite words of JSON become numbers again", () => {
  assert.deepEqual(["NaN", "Infinity", "-Infinity", 2].map(toNumber), [NaN, Infinity, -Infinity, 2]);
});
