// The list of events with its search, the selected event, and the gaps.
const counts = new Array(SECONDS).fill(0);
const events = new WeakMap();  // the event of each row
let paused = false, drawing = 0, pending = [], lags = [], received = 0, gaps = 0, reconnections = 0, unseen = 0;
let chosen = null;

const REASONS = {
  slow: ["this page was too slow", "The browser did not read fast enough, and the policy of the stream skipped events. Subscribe to fewer topics, or raise lag-bytes at the server."],
  history: ["the server no longer retains them", "The page was disconnected for longer than the server retains events. Raise history-bytes, history-events or history-age."],
  unknown: ["the server does not know the last id, for instance because it was restarted", "The id belongs to an earlier run of the log. With --data, the server keeps its history across restarts."],
  conflated: ["newer events of the same key replaced them", "The policy conflate sends only the newest event of each key. Nothing is wrong if only the current state matters."],
  refused: ["the server could not publish them: they came from its upstream, and broke one of its rules", "The log of the server states the rule."],
};

function published(data) {
  if (data[0] !== "{") return null;
  try {
    const sent = JSON.parse(data).t;
    return typeof sent === "number" && Number.isFinite(sent) ? sent : null;
  } catch {
    return null;
  }
}

// Returns what was missed, and why.
function explainGap(data) {
  let gap = null;
  try {
    gap = JSON.parse(data);
  } catch {
    gap = null;
  }
  if (gap === null || typeof gap !== "object") return ["A gap: " + data, ""];
  const many = typeof gap.missed === "number" ? count(gap.missed) + (gap.missed === 1 ? " event was" : " events were")
    : "Events may have been";
  const range = gap.from || gap.to ? " (" + (gap.from || "…") + " to " + (gap.to || "…") + ")" : "";
  const [short, long] = Object.hasOwn(REASONS, gap.reason) ? REASONS[gap.reason] : [String(gap.reason), ""];
  return [many + " missed: " + short + range, long];
}

// Gaps have a list of their own, which later events and Clear do not change.
function missed(text, why = "") {
  gaps += 1;
  const now = Date.now(), list = find("gap-list"), item = make("li", new Date(now).toLocaleTimeString() + "  " + cut(text, DATA_SHOWN_MAX));
  if (why) item.append(make("span", why, "why"));
  find("missed").hidden = false;
  list.prepend(item);
  while (list.childElementCount > GAPS_MAX) list.lastElementChild.remove();
  add({ now, gap: true, topic: "", type: "gap", id: "", data: text });
}

// The list of events is drawn at most once per frame, at any rate.
function add(event) {
  pending.push(event);
  if (pending.length > 2 * ROWS_MAX) pending = pending.slice(-ROWS_MAX);
  if (paused) unseen += 1;
  else if (!drawing) drawing = requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  if (paused) return;
  const rows = find("rows"), fresh = document.createDocumentFragment();
  for (const event of pending.slice(-ROWS_MAX).reverse()) fresh.append(row(event));
  pending = [];
  rows.prepend(fresh);
  while (rows.childElementCount > ROWS_MAX) rows.lastElementChild.remove();
  find("empty").hidden = rows.childElementCount > 0;
}

function row(event) {
  const line = make("tr", undefined, event.gap ? "gap" : "");
  line.append(make("td", new Date(event.now).toLocaleTimeString(), "time"), make("td", event.topic, "topic"),
    make("td", cut(event.type, TYPE_SHOWN_MAX)));
  const id = make("td", event.id, "id");
  id.title = event.id;
  line.append(id, make("td", cut(event.data, DATA_SHOWN_MAX), "data"));
  line.hidden = !matches(event);
  events.set(line, event);
  return line;
}

// The search: all words must occur, in any field and in any case.
let words = [];
function matches(event) {
  if (!words.length) return true;
  const text = [event.topic, event.type, event.id, event.data].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function search() {
  words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const line of find("rows").children) line.hidden = !matches(events.get(line));
  note();
}

function note() {
  const found = words.length ? count(find("rows").querySelectorAll("tr:not([hidden])").length) + " of them match. " : "";
  find("note").textContent = NOTE + " " + found + (paused ? "Paused; " + count(unseen) + " arrived since." : "");
}

// The selected event, formatted if it is JSON.
function choose(line) {
  chosen?.classList.remove("chosen");
  chosen = line;
  chosen?.classList.add("chosen");
  chosen?.scrollIntoView({ block: "nearest" });
}

function step(forward) {
  const lines = [...find("rows").children].filter((line) => !line.hidden);
  const place = lines.indexOf(chosen) + (forward ? 1 : -1);
  choose(lines[Math.max(0, Math.min(lines.length - 1, place))] || null);
}

function openDetail() {
  if (!chosen) return;
  const event = events.get(chosen), data = find("detail-data");
  find("detail-title").textContent = [event.topic, event.type, event.id].filter(Boolean).join("  ");
  data.replaceChildren(...formatJson(event.data));
  find("detail").hidden = false;
}

function closeDetail() {
  find("detail").hidden = true;
}

// Formats JSON without parsing its numbers, which JSON.parse would round. Returns text and coloured spans.
function formatJson(text) {
  try {
    JSON.parse(text);
  } catch {
    return [text];
  }
  const parts = [], line = (depth) => "\n" + "  ".repeat(depth);
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) || [];
  let depth = 0;
  tokens.forEach((word, place) => {
    const next = tokens[place + 1];
    if (word === "{" || word === "[") {
      const empty = next === "}" || next === "]";
      depth += 1;
      parts.push(word + (empty ? "" : line(depth)));
    } else if (word === "}" || word === "]") {
      depth -= 1;
      parts.push((tokens[place - 1] === "{" || tokens[place - 1] === "[" ? "" : line(depth)) + word);
    } else if (word === ",") {
      parts.push("," + line(depth));
    } else if (word === ":") {
      parts.push(": ");
    } else {
      parts.push(make("span", word, word[0] !== '"' ? "value" : next === ":" ? "key" : "text"));
    }
  });
  return parts;
}

// The figures of this page, once a second.
function tick() {
  find("rate").textContent = count(counts[SECONDS - 1]) + "/s";
  lags.sort((a, b) => a - b);
  find("lag").textContent = lags.length ? count(Math.max(0, Math.round(lags[lags.length >> 1]))) + " ms" : "n/a";
  lags = [];
  find("received").textContent = count(received);
  find("gaps").textContent = count(gaps);
  find("reconnections").textContent = count(reconnections);
  note();
  counts.shift();
  counts.push(0);
}

function pause() {
  paused = !paused;
  unseen = 0;
  find("pause").textContent = paused ? "Resume" : "Pause";
  find("pause").setAttribute("aria-pressed", String(paused));
  note();
  if (!paused) draw();
}

function clear() {
  pending = [];
  choose(null);
  closeDetail();
  find("rows").replaceChildren();
  find("empty").hidden = false;
}
