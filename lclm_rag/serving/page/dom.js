// @ts-check
/** Making elements. Text only ever becomes text nodes: nothing here reads markup. */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [props] Attributes; `on…` are listeners, `class` is the class, and null, undefined
 *   and false leave an attribute out.
 * @param {...(Node | string | number | null | undefined)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/**
 * @param {string} id
 * @returns {any} The element of the page with this id.
 */
export function by(id) {
  return document.getElementById(id);
}

/** Tell people who do not see the page what has happened. @param {string} sentence */
export function announce(sentence) {
  by("status").textContent = sentence;
}

/** @param {number} value @returns {string} */
export const count = (value) => value.toLocaleString("en");

/** @param {number} number @param {string} one @param {string} [many] @returns {string} "1 passage", "2 passages" */
export const counted = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** @param {number} seconds @returns {string} */
export function duration(seconds) {
  if (seconds < 0.001) return "under 1 ms";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

/**
 * A box that says what went wrong.
 * @param {unknown} error
 * @param {string} [action] What the button says.
 * @param {() => void} [act]
 */
export function problem(error, action, act) {
  const words = error instanceof Error ? error.message : String(error);
  const button = act ? h("button", { type: "button", onclick: act }, action) : null;
  return h("div", { class: "problem", role: "alert" }, h("p", {}, words), button);
}

/**
 * A field of a document's metadata as a condition, such as `year=2020`; null for what cannot be filtered on.
 * @param {string} field @param {unknown} value @returns {string | null}
 */
export function condition(field, value) {
  const name = /^[A-Za-z_][\w.-]*$/.test(field) ? field : JSON.stringify(field);
  if (typeof value === "string") return value.includes('"') ? null : `${name}="${value}"`;
  return typeof value === "number" || typeof value === "boolean" ? `${name}=${value}` : null;
}
