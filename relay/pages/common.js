"use strict";
// The state that the parts of the console share, and small helpers. The server joins all parts into one script.
// The text of an event comes from a publisher. It is assigned to textContent only and never parsed as markup.
const ROWS_MAX = 500, GAPS_MAX = 100, SECONDS = 60, STATS_MS = 2000, KNOWN_MAX = 200;
const DATA_SHOWN_MAX = 4000, TYPE_SHOWN_MAX = 80, LINE_MAX = 32 * 1024 * 1024;
const RETRY_MS_MIN = 1000, RETRY_MS_MAX = 30000, REFUSALS_FOR_NOW = [408, 425, 429];
const NOTE = "The newest " + ROWS_MAX + " are shown, newest first.";
const find = (id) => document.getElementById(id);

const topics = new Set(new URLSearchParams(location.search).getAll("topic"));
let token = "", adminToken = "";  // never stored, and never part of copied code
let stream = null, timer = 0;

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function show(state, text) {
  const element = find("state");
  element.dataset.state = state;
  if (element.textContent !== text) element.textContent = text;
}

const cut = (text, most) => text.length > most ? text.slice(0, most) + " …" : text;
const count = (number) => number.toLocaleString();
const rate = (number) => number >= 10 ? count(Math.round(number)) : String(Math.round(number * 10) / 10);
const bearer = (word) => word ? { Authorization: "Bearer " + word } : {};

// A token is one word of visible ASCII, because a header cannot contain anything else.
const isToken = (text) => /^[!-~]+$/.test(text);

function onEnter(input, button, act) {
  const go = () => { const text = find(input).value.trim(); find(input).value = ""; act(text); };
  find(button).addEventListener("click", go);
  find(input).addEventListener("keydown", (key) => { if (key.key === "Enter" && !key.isComposing) go(); });
}
