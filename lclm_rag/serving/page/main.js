// @ts-check
/** Puts the page together: knowledge bases, views, the key. */

import { ApiError, get, key, whenKeyNeeded } from "./api.js";
import { changeBase, startChat, welcome } from "./chat.js";
import { showDocuments, startDocuments } from "./documents.js";
import { by, h, problem } from "./dom.js";
import { startSettings } from "./settings.js";

/** @typedef {import("./api.js").Base} Base */

/** @type {Base[]} */
let bases = [];

/** @returns {Base | null} */
const currentBase = () => bases.find((base) => base.id === by("base").value) ?? null;

/** Read which knowledge bases there are, and what they hold. */
async function load() {
  try {
    bases = (await get("models")).data;
  } catch (error) {
    bases = [];
    const keyless = error instanceof ApiError && error.status === 401;
    by("trouble").replaceChildren(keyless ? problem("This service needs an API key.", "Enter the key", askForKey)
      : problem(error, "Try again", load));
    welcome();
    return;
  }
  const select = by("base");
  const before = select.value;
  select.replaceChildren(...bases.map(({ id }) => h("option", { value: id }, id)));
  if (bases.some(({ id }) => id === before)) select.value = before;
  select.disabled = bases.length < 2;
  by("forget-key").hidden = key.get() === null;
  by("trouble").replaceChildren(
    ...(bases.length ? [] : [problem("There is no knowledge base that this key may ask. Use another key.", "Enter the key", askForKey)]));
  welcome();
  if (view() === "documents") await showDocuments();
}

const view = () => (location.hash === "#documents" ? "documents" : "ask");

function showView() {
  const current = view();
  for (const name of ["ask", "documents"]) {
    by(name).hidden = name !== current;
    if (name === current) by(`to-${name}`).setAttribute("aria-current", "page");
    else by(`to-${name}`).removeAttribute("aria-current");
  }
  document.title = current === "ask" ? "Ask · lclm-rag" : "Documents · lclm-rag";
  scrollTo(0, 0);
  if (current === "documents") showDocuments();
}

function askForKey() {
  const dialog = by("key");
  if (dialog.open) return;
  by("key-wrong").textContent = key.get() === null ? "" : "This key is not valid.";
  by("key-input").value = "";
  dialog.showModal();
}

by("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  key.set(by("key-input").value.trim());
  by("key").close();
  load();
});
by("forget-key").addEventListener("click", () => {
  key.forget();
  location.reload();
});
by("base").addEventListener("change", () => {
  changeBase();
  if (view() === "documents") showDocuments();
});
addEventListener("hashchange", showView);
addEventListener("keydown", (event) => {
  const typing = event.target instanceof Element && event.target.matches("input, textarea, select");
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  by(view() === "ask" ? "question" : "search").focus();
});

whenKeyNeeded(askForKey);
startSettings(() => {
  if (view() === "documents") showDocuments();
});
startChat(currentBase);
startDocuments(currentBase, load);
showView();
load();
