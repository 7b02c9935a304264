// Asks the server: one function per form of answer, errors as its own sentence, a small cache of what was read.

import { decode } from "./wire.js";

/** @typedef {Record<string, string | number | null | undefined>} Query */

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
