// @ts-check
/** The conversation: questions, answers as they come, and the same question again with a passage verbatim. */

import { ask } from "./api.js";
import { grounded, missingNote } from "./answer.js";
import { announce, by, counted, h, problem } from "./dom.js";
import { comparison, savings } from "./savings.js";
import { settings, suggest } from "./settings.js";
import { cards, openPassage } from "./sources.js";

/**
 * @typedef {import("./api.js").Base} Base
 * @typedef {import("./api.js").Citation} Citation
 * @typedef {import("./api.js").Evidence} Evidence
 * @typedef {{question: string, base: Base, options: object, history: {role: string, content: string}[],
 *   text: string, evidence: Evidence | null, article: HTMLElement, answer: HTMLElement, after: HTMLElement,
 *   sources: HTMLElement}} Turn
 */

/** @type {Turn[]} Those of the conversation that goes on. */
let turns = [];
/** @type {AbortController | null} */
let running = null;
/** @type {() => Base | null} */
let currentBase = () => null;

/** @param {() => Base | null} base Gives the knowledge base that is asked. */
export function startChat(base) {
  currentBase = base;
  const question = by("question");
  by("question-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    submit(question.value);
  });
  question.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit(question.value);
    }
  });
  by("stop").addEventListener("click", () => running?.abort());
  by("fresh").addEventListener("click", () => {
    running?.abort();
    turns = [];
    by("turns").replaceChildren();
    welcome();
    announce("New conversation.");
    question.focus();
  });
}

/** Go on with another knowledge base, to which the conversation so far means nothing. */
export function changeBase() {
  running?.abort();
  if (turns.length) {
    by("turns").append(h("p", { class: "divider" }, `From here on: ${currentBase()?.id}, a new conversation`));
  }
  turns = [];
  welcome();
}

/** Say what can be asked, while nothing has been. */
export function welcome() {
  const base = currentBase();
  const empty = by("empty");
  empty.hidden = by("turns").children.length > 0;
  by("fresh").hidden = !empty.hidden;
  by("send").disabled = !base || base.passages === 0;
  if (!base) {
    empty.replaceChildren();
  } else if (base.passages === 0) {
    empty.replaceChildren(
      h("h2", {}, `${base.id} is empty`),
      base.writable
        ? h("p", {}, "There is nothing to ask yet. ", h("a", { href: "#documents" }, "Add documents"), " first.")
        : h("p", {}, "There is nothing to ask yet. Add documents with lclm-rag add; they show up here at once."));
  } else {
    empty.replaceChildren(
      h("h2", {}, `Ask ${base.id}`),
      h("p", {}, `${base.documents === undefined ? "Documents" : counted(base.documents, "document")}, ` +
        "read as latents in place of text. Each answer shows the passages it rests on and what compression saved."));
  }
}

/** @param {string} words */
function submit(words) {
  const base = currentBase();
  const question = words.trim();
  if (running || !base || base.passages === 0) return;
  if (!question) {
    by("question").focus();
    return;
  }
  by("question").value = "";
  const history = turns.filter((turn) => turn.text)
    .flatMap((turn) => [{ role: "user", content: turn.question }, { role: "assistant", content: turn.text }]);
  const answer = h("div", { class: "answer" });
  const after = h("div", { class: "after" });
  const sources = h("div", { class: "sources-column" });
  const article = h("article", { class: "turn" },
    h("h2", { class: "question", tabindex: "-1" }, question),
    h("div", { class: "turn-grid" }, h("div", { class: "answer-column" }, answer, after), sources));
  /** @type {Turn} */
  const turn = { question, base, options: settings(), history, text: "", evidence: null, article, answer, after, sources };
  turns.push(turn);
  by("turns").append(article);
  welcome();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  article.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  work(turn, turn.options);
}

/**
 * Ask a turn's question, and show what comes.
 * @param {Turn} turn @param {object} options Fields of the request.
 * @param {{text: string, evidence: Evidence} | null} [before] The answer to compare with.
 */
async function work(turn, options, before = null) {
  const { base, answer, after, sources } = turn;
  const controller = new AbortController();
  running = controller;
  by("send").hidden = true;
  by("stop").hidden = false;
  turn.text = "";
  turn.evidence = null;
  const waiting = h("p", { class: "waiting" }, before ? "Reading verbatim…" : "Searching…");
  const words = document.createTextNode("");
  answer.replaceChildren(waiting);
  answer.setAttribute("aria-busy", "true");
  after.replaceChildren();
  announce(waiting.textContent ?? "");
  const body = { ...options, model: base.id, messages: [...turn.history, { role: "user", content: turn.question }] };
  try {
    const evidence = await ask(body, {
      retrieved(found) {
        waiting.textContent = found.length ? `Reading ${counted(found.length, "passage")}…` : "";
        showSources(turn, found, false);
        announce(`${counted(found.length, "source")} found.`);
        for (const { metadata } of found) suggest(metadata);
      },
      text(piece) {
        turn.text += piece;
        if (!words.isConnected) answer.replaceChildren(h("p", { class: "words streaming" }, words));
        words.data = turn.text.trimStart();
      },
    }, controller.signal);
    turn.evidence = evidence;
    finish(turn, evidence, before);
  } catch (error) {
    fail(turn, error, controller.signal.aborted, () => work(turn, options, before));
  } finally {
    answer.setAttribute("aria-busy", "false");
    if (running === controller) {
      running = null;
      by("send").hidden = false;
      by("stop").hidden = true;
    }
  }
}

/**
 * @param {Turn} turn @param {Evidence & {cut: boolean}} evidence
 * @param {{text: string, evidence: Evidence} | null} before
 */
function finish(turn, evidence, before) {
  const { answer, after } = turn;
  const text = turn.text.trim();
  if (evidence.reason) {
    // It came as text, so that every client shows it; it is no answer that a conversation goes on from.
    answer.replaceChildren(h("p", { class: "no-answer" }, evidence.reason));
    turn.text = "";
  } else {
    const open = (/** @type {Citation} */ source, /** @type {string} */ string) => show(turn, source, string);
    answer.replaceChildren(h("p", { class: "words" }, ...grounded(text, evidence.grounding, evidence.citations, open)));
  }
  showSources(turn, evidence.citations, true);
  const notes = [];
  if (evidence.history?.searched) notes.push(`Searched for: ${evidence.history.searched}`);
  if (evidence.history?.left_out) {
    notes.push(`${counted(evidence.history.left_out, "earlier message")} did not fit into the prompt.`);
  }
  if (evidence.cut) notes.push("The answer was cut at the limit of its length.");
  if (evidence.left_out.length) {
    notes.push(`${counted(evidence.left_out.length, "passage")} did not fit into the prompt.`);
  }
  after.replaceChildren(...[
    missingNote(evidence.grounding.missing),
    ...notes.map((note) => h("p", { class: "dim note" }, note)),
    savings(evidence),
    before ? comparison(before, { text, evidence }) : null,
  ].filter((node) => node !== null));
  const missing = evidence.grounding.missing.length;
  announce(`Answer: ${text || evidence.reason}` + (missing ? ` ${counted(missing, "string")} not in the sources.` : ""));
}

/** @param {Turn} turn @param {unknown} error @param {boolean} stopped @param {() => void} again */
function fail(turn, error, stopped, again) {
  const { answer, after } = turn;
  answer.querySelector(".waiting")?.remove();
  answer.querySelector(".streaming")?.classList.remove("streaming");
  const retry = () => {
    if (!running) again();
  };
  if (stopped) {
    after.replaceChildren(h("p", { class: "dim" }, "Stopped. ", h("button", { type: "button", onclick: retry }, "Ask again")));
    announce("Stopped.");
    return;
  }
  // Half an answer is not a turn to go on from.
  turn.text = "";
  after.replaceChildren(problem(error, "Ask again", retry));
}

/** @param {Turn} turn @param {Citation[]} citations @param {boolean} done */
function showSources(turn, citations, done) {
  const title = citations.length ? h("h2", { class: "column-title" }, counted(citations.length, "source")) : "";
  const read = done && turn.options["context"] === "latents" ? (/** @type {Citation} */ c) => readVerbatim(turn, c) : null;
  turn.sources.replaceChildren(title, cards(citations, (citation) => show(turn, citation), read));
}

/** @param {Turn} turn @param {Citation} citation @param {string} [string] */
function show(turn, citation, string) {
  const able = turn.evidence && !citation.verbatim && turn.options["context"] === "latents";
  openPassage(turn.base.id, citation, { string, readVerbatim: able ? () => readVerbatim(turn, citation) : null });
}

/** Ask again, with a passage in the prompt as text. @param {Turn} turn @param {Citation} citation */
function readVerbatim(turn, citation) {
  const { evidence, text } = turn;
  if (running || !evidence) return;
  // Those that were verbatim stay so.
  const expand = [...evidence.citations.filter((each) => each.verbatim), citation].map((each) => `${each.document}#${each.passage}`);
  turn.article.querySelector("h2")?.focus({ preventScroll: true });
  turn.article.scrollIntoView({ block: "start" });
  work(turn, { ...turn.options, expand }, { text, evidence });
}
