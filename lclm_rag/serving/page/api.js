// @ts-check
/** The service's API: requests with the key, streams of events, uploads with progress. */

/**
 * @typedef {{id: string, version: number, documents?: number, passages?: number, checkpoint: string,
 *   writable?: boolean}} Base
 * @typedef {{document: string, passage: number, span: [number, number], text: string, score: number,
 *   metadata: Record<string, unknown>, verbatim: boolean}} Citation
 * @typedef {{prompt_tokens: number, completion_tokens: number, latents: number, source_tokens: number,
 *   prompt_tokens_details: {cached_tokens: number | null}}} Usage
 * @typedef {{retrieve: number, load: number, assemble: number, first_token: number, total: number}} Timings
 * @typedef {{citations: Citation[], left_out: string[], grounding: {found: string[], missing: string[]},
 *   history?: {searched: string | null, left_out: number}, reason: string, timings: Timings, usage: Usage}} Evidence
 * @typedef {{event: string, data: string}} ServerEvent
 */

const KEY = "lclm-rag-key";
const ROOT = new URL("v1/", document.baseURI);

/** An error that the service told, or that kept it from being reached. */
export class ApiError extends Error {
  /** @param {number} status 0 if the service was not reached. @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The key, which lives as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  /** @param {string} value */
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** @type {() => void} Called when the service wants a key, or another one. */
let onKeyNeeded = () => {};

/** @param {() => void} call */
export function whenKeyNeeded(call) {
  onKeyNeeded = call;
}

const UNREACHABLE = "The service cannot be reached. Check that lclm-rag serve is running, then try again.";

/** @param {number} status @param {string} text The body of a response that is no success. */
function refusal(status, text) {
  if (status === 401) onKeyNeeded();
  try {
    const { error } = JSON.parse(text);
    return new ApiError(status, error.message);
  } catch {
    return new ApiError(status, `The service answered with status ${status}.`);
  }
}

/** @returns {Record<string, string>} */
function authorization() {
  const secret = key.get();
  return secret ? { Authorization: `Bearer ${secret}` } : {};
}

/**
 * @param {string} path @param {Record<string, any>} [parameters]
 * @returns {URL}
 */
function address(path, parameters = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined) url.searchParams.append(name, String(each));
    }
  }
  return url;
}

/**
 * @param {string} method @param {URL} url
 * @param {{body?: unknown, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
async function send(method, url, { body, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = authorization();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { method, headers, signal, body: body === undefined ? null : JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, UNREACHABLE);
  }
  if (!response.ok) throw refusal(response.status, await response.text());
  return response;
}

/** @param {string} path @param {Record<string, any>} [parameters] @returns {Promise<any>} */
export const get = async (path, parameters) => (await send("GET", address(path, parameters))).json();

/** @param {string} path @param {unknown} body @returns {Promise<any>} */
export const post = async (path, body) => (await send("POST", address(path), { body })).json();

/** @param {string} path @param {Record<string, any>} [parameters] @returns {Promise<any>} */
export const remove = async (path, parameters) => (await send("DELETE", address(path, parameters))).json();

/**
 * Read server-sent events.
 * @param {Response} response
 * @returns {AsyncGenerator<ServerEvent>}
 */
async function* events(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = "message";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message";
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("event:")) event = line.slice(6).trim();
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Ask, and hear of the answer while it is made.
 * @param {object} body As for /v1/chat/completions.
 * @param {{retrieved: (found: Citation[]) => void, text: (piece: string) => void}} hear
 * @param {AbortSignal} signal
 * @returns {Promise<Evidence & {cut: boolean}>} `cut`: whether the answer ended at the limit of tokens.
 * @throws {ApiError} Also when the stream ends early.
 */
export async function ask(body, hear, signal) {
  const response = await send("POST", address("chat/completions"), { body: { ...body, stream: true }, signal });
  let last = null;
  let ended = false;
  try {
    for await (const { data } of events(response)) {
      if (data === "[DONE]") {
        ended = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message);
      if (chunk.retrieved) hear.retrieved(chunk.retrieved);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) hear.text(choice.delta.content);
      if (choice?.finish_reason) last = { ...chunk, cut: choice.finish_reason === "length" };
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError(0, "The connection broke off before the answer was complete. Ask again.");
  }
  if (!last || !ended) throw new ApiError(0, "The answer broke off before it was complete. Ask again.");
  return last;
}

/**
 * Read a passage with its neighbors.
 * @param {string} base @param {string} document @param {number} passage @param {number} around
 * @returns {Promise<{passage: number, metadata: Record<string, unknown>,
 *   data: {passage: number, span: [number, number], text: string}[]}>}
 */
export function passages(base, document, passage, around) {
  const path = `passages/${encodeURIComponent(document)}/${passage}`;
  return get(path, { model: base, before: around, after: around });
}

/**
 * Upload a file, and follow the job until it ends.
 * @param {string} base @param {File} file
 * @param {{sent: (share: number) => void, job: (job: any) => void}} hear
 * @returns {Promise<any>} The job, done.
 * @throws {ApiError}
 */
export async function upload(base, file, hear) {
  const url = address("documents", { model: base, filename: file.name });
  const started = await /** @type {Promise<any>} */ (
    new Promise((resolve, reject) => {
      // Not fetch: it does not tell how much has been sent.
      const request = new XMLHttpRequest();
      request.open("PUT", url);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
      request.upload.addEventListener("progress", (event) => hear.sent(event.loaded / Math.max(1, event.total)));
      request.addEventListener("error", () => reject(new ApiError(0, UNREACHABLE)));
      request.addEventListener("load", () => {
        if (request.status < 300) resolve(JSON.parse(request.responseText));
        else reject(refusal(request.status, request.responseText));
      });
      request.send(file);
    })
  );
  hear.job(started);
  const response = await send("GET", address(`jobs/${started.id}/events`));
  for await (const { event, data } of events(response)) {
    const job = JSON.parse(data);
    hear.job(job);
    if (event === "end") {
      if (job.state === "failed") throw new ApiError(400, job.error);
      return job;
    }
  }
  throw new ApiError(0, "The connection broke off. Reload the page to see whether the documents were added.");
}
