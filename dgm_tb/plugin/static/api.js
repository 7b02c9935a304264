// Asks the server: one function per form of answer, errors as its own sentence, a small cache of what was read; and
// decodes binary answers: "DGM1", header length, JSON header, little-endian buffers (http_api.md).


/** @typedef {Record<string, string | number | null | undefined>} Query */
/** @typedef {import("./types.d.ts").Message} Message */

// .../plugin/dgmtracker/static/<version>/api.js -> .../plugin/dgmtracker/
const BASE = import.meta.url.replace(/static\/.*$/, "");
const CACHE_ENTRIES = 60;

/** @type {Map<string, Promise<any>>} */
const cache = new Map();

/** A failed request; `message` is the sentence that the server gave. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @param {string} route @param {Query} query */
export function address(route, query) {
  const parameters = Object.entries(query)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([key, value]) => `${key}=${encodeURIComponent(String(value))}`);
  return `${BASE}${route}${parameters.length ? `?${parameters.join("&")}` : ""}`;
}

/**
 * Facts as JSON.
 *
 * @param {string} route
 * @param {Query} [query]
 * @returns {Promise<any>}
 */
export async function getJson(route, query = {}) {
  return (await request(address(route, query))).json();
}

/**
 * Arrays. Answers are kept per `revision` of the run, so going back to a view costs nothing.
 *
 * @param {string} route
 * @param {Query} query
 * @param {string} revision
 * @returns {Promise<import("./types.d.ts").Message>}
 */
export function getArrays(route, query, revision) {
  const url = address(route, query);
  const key = `${revision} ${url}`;
  const known = cache.get(key);
  if (known) return known;
  const answer = request(url).then(async (response) => decode(await response.arrayBuffer()));
  cache.set(key, answer);
  answer.catch(() => cache.delete(key));
  if (cache.size > CACHE_ENTRIES) cache.delete(/** @type {string} */ (cache.keys().next().value));
  return answer;
}

/** Arrays that nobody asks for twice. @param {string} route @param {Query} query @returns {Promise<import("./types.d.ts").Message>} */
export async function ask(route, query) {
  return decode(await (await request(address(route, query))).arrayBuffer());
}

/** @param {string} url */
async function request(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new ApiError("TensorBoard does not answer; is it still running?", 0);
  }
  if (response.ok) return response;
  const text = response.headers.get("content-type")?.startsWith("text/plain") ? await response.text() : "";
  throw new ApiError(text.trim() || `TensorBoard answered ${response.status} for ${new URL(url).pathname}`, response.status);
}

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
