// @ts-check
/** The words of an answer, with the strings marked that its sources hold and lack. */

import { h } from "./dom.js";

/** @typedef {import("./api.js").Citation} Citation */

const WORD = /[\p{L}\p{N}]/u;

/**
 * Where strings occur in a text, as words of their own and without overlap; longer ones first.
 * @param {string} text @param {string[]} strings
 * @returns {{start: number, end: number, string: string}[]} In the order of the text.
 */
export function occurrences(text, strings) {
  /** @type {{start: number, end: number, string: string}[]} */
  const found = [];
  const longest = [...new Set(strings)].filter(Boolean).sort((one, other) => other.length - one.length);
  for (const string of longest) {
    for (let start = text.indexOf(string); start >= 0; start = text.indexOf(string, start + 1)) {
      const end = start + string.length;
      const inside =
        (WORD.test(text[start - 1] ?? "") && WORD.test(string[0])) ||
        (WORD.test(text[end] ?? "") && WORD.test(string[string.length - 1]));
      if (!inside && !found.some((other) => start < other.end && other.start < end)) found.push({ start, end, string });
    }
  }
  return found.sort((one, other) => one.start - other.start);
}

/**
 * The source that holds a string, if one does letter by letter.
 * @param {string} string @param {Citation[]} sources
 */
const holder = (string, sources) =>
  sources.find((source) => occurrences(source.text, [string]).length) ??
  sources.find((source) => source.text.toLowerCase().includes(string.toLowerCase()));

/**
 * @param {string} text
 * @param {{found: string[], missing: string[]}} grounding
 * @param {Citation[]} sources
 * @param {(source: Citation, string: string) => void} open Opens a source at a string.
 * @returns {(Node | string)[]}
 */
export function grounded(text, grounding, sources, open) {
  const missing = new Set(grounding.missing);
  const parts = [];
  let end = 0;
  for (const place of occurrences(text, [...grounding.missing, ...grounding.found])) {
    parts.push(text.slice(end, place.start));
    end = place.end;
    const source = missing.has(place.string) ? undefined : holder(place.string, sources);
    if (missing.has(place.string)) {
      parts.push(
        h("mark", { class: "missing", title: "Not in the sources" }, place.string,
          h("span", { class: "hidden" }, " (not in the sources)")),
      );
    } else if (source) {
      const title = `In ${source.document}: open it there`;
      parts.push(h("button", { type: "button", class: "found", title, onclick: () => open(source, place.string) }, place.string));
    } else parts.push(place.string);
  }
  parts.push(text.slice(end));
  return parts;
}

/** @param {string[]} missing @returns {HTMLElement | null} A sentence about strings that the sources lack. */
export function missingNote(missing) {
  if (!missing.length) return null;
  const strings = missing.flatMap((string, i) => [i ? ", " : "", h("q", {}, string)]);
  return h("p", { class: "missing-note" }, "Not in the sources: ", ...strings,
    ". Check before you rely on it, or read a source verbatim.");
}
