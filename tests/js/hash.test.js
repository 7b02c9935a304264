import assert from "node:assert/strict";
import { test } from "node:test";
import { formatHash, parseHash } from "../../dgm_tb/plugin/static/hash.js";

test("a selection survives the URL, whatever its names hold", () => {
  const selections = [
    { run: "lightning_logs/version_0", step: 24397, layer: "discriminator.net.0@1", neurons: [3, 17], sample: 1203 },
    { run: "a&b=c#d %25", step: 0, layer: "x[key, 1]", neurons: [0], sample: 0, finding: "nonfinite-437", quantity: "gradient", statistic: "rms" },
  ];
  for (const selection of selections) assert.deepEqual(parseHash(formatHash("#dgmtracker", selection)), selection);
});

test("the keys are those of the contract", () => {
  const hash = formatHash("#dgmtracker", { run: "r", step: 1, layer: "l", neurons: [1, 2], sample: 3 });
  assert.equal(hash, "#dgmtracker&p.dgmtracker.run=r&p.dgmtracker.step=1&p.dgmtracker.layer=l&p.dgmtracker.neurons=1,2&p.dgmtracker.sample=3");
});

test("empty parts are left out, other parameters stay, older ones of ours go", () => {
  const hash = formatHash("#dgmtracker&darkMode=true&p.dgmtracker.step=5&p.other.x=1", { run: "r", step: null, layer: "", neurons: [], sample: null });
  assert.equal(hash, "#dgmtracker&darkMode=true&p.other.x=1&p.dgmtracker.run=r");
});

test("malformed values are left out instead of failing", () => {
  assert.deepEqual(parseHash("#dgmtracker&p.dgmtracker.step=-1&p.dgmtracker.sample=x&p.dgmtracker.neurons=1,,b,2&p.dgmtracker.run=%E0%A4%A"), {
    neurons: [1, 2], run: "%E0%A4%A",
  });
  assert.deepEqual(parseHash(""), {});
});
