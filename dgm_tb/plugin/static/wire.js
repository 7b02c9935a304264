// Decodes the binary answers of the server: "DGM1", header length, JSON header, little-endian buffers.

/** @typedef {import("./types.d.ts").Message} Message */

const MAGIC = 0x314d4744; // "DGM1" read as a little-endian u32
const VIEWS = /** @type {const} */ ({ f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array });

/**
 * The facts and arrays of one binary answer; arrays are views of `buffer`, nothing is copied.
 *
 * @param {ArrayBuffer} buffer
 * @returns {Message}
 * @throws {Error} If the bytes are no such answer, or claim more than they bring.
 */
export function decode(buffer) {
  const bytes = new DataView(buffer);
  if (buffer.byteLength < 8 || bytes.getUint32(0, true) !== MAGIC) {
    throw new Error(`expected a binary answer that begins with "DGM1", got ${buffer.byteLength} other bytes`);
  }
  const start = 8 + bytes.getUint32(4, true);
  if (start > buffer.byteLength) throw new Error("the binary answer was cut off inside its header");
  const { arrays: entries, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  /** @type {Message["arrays"]} */
  const arrays = {};
  for (const { name, dtype, shape, offset } of entries) {
    const View = VIEWS[/** @type {keyof typeof VIEWS} */ (dtype)];
    if (!View) throw new Error(`array ${name} has the dtype ${dtype}; this page reads ${Object.keys(VIEWS).join(", ")}`);
    const length = shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
    const at = start + offset;
    if (at + length * View.BYTES_PER_ELEMENT > buffer.byteLength) throw new Error(`array ${name} was cut off`);
    arrays[name] = { dtype, shape, values: new View(buffer, at, length) };
  }
  return { header, arrays };
}
