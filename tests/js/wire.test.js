import assert from "node:assert/strict";
import { test } from "node:test";
import { decode } from "../../dgm_tb/plugin/static/api.js";

/** Encodes as http_api.md says. */
function encode(header, arrays) {
  let offset = 0;
  const entries = arrays.map(([name, dtype, shape, values]) => {
    const entry = { name, dtype, shape, offset };
    offset += Math.ceil(values.byteLength / 8) * 8;
    return entry;
  });
  let text = JSON.stringify({ ...header, arrays: entries });
  text += " ".repeat((8 - ((8 + Buffer.byteLength(text)) % 8)) % 8);
  const head = Buffer.alloc(8);
  head.write("DGM1");
  head.writeUInt32LE(Buffer.byteLength(text), 4);
  const buffers = arrays.map(([, , , values]) => {
    const bytes = Buffer.alloc(Math.ceil(values.byteLength / 8) * 8);
    Buffer.from(values.buffer, values.byteOffset, values.byteLength).copy(bytes);
    return bytes;
  });
  const all = Buffer.concat([head, Buffer.from(text), ...buffers]);
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.length);
}

const ARRAYS = [
  ["steps", "f8", [3], new Float64Array([0, 1, 2 ** 40])],
  ["values", "f4", [2, 3], new Float32Array([1, NaN, Infinity, -Infinity, 0, -2.5])],
  ["neurons", "i4", [1], new Int32Array([-7])],
  ["outlier", "u1", [3], new Uint8Array([0, 1, 255])],
  ["empty", "f4", [0, 3], new Float32Array(0)],
];

test("every dtype, shape and special value comes back", () => {
  const { header, arrays } = decode(encode({ layer: "énc.0", neurons: 3 }, ARRAYS));
  assert.deepEqual(header, { layer: "énc.0", neurons: 3 });
  for (const [name, dtype, shape, values] of ARRAYS) {
    assert.deepEqual(arrays[name], { dtype, shape, values });
  }
});

test("no truncation goes unnoticed or crashes in another way than by an error", () => {
  const whole = encode({}, ARRAYS.slice(0, 4));
  for (let length = 0; length < whole.byteLength - 8; length++) assert.throws(() => decode(whole.slice(0, length)), Error);
});

test("bytes of another kind and unknown dtypes are refused with a sentence", () => {
  assert.throws(() => decode(new TextEncoder().encode("<html>oops</html>").buffer), /begins with "DGM1"/);
  assert.throws(() => decode(encode({}, [["x", "f2", [1], new Uint8Array(2)]])), /dtype f2/);
});
