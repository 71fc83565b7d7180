// The state of the server: topics with their rates, charts and slow streams, from /stats and /metrics.
// Both are requested only while the page is visible.
const POINTS = 60;
const series = { events: [], deliveries: [], p50: [], p99: [] };
let before = null, buckets = null, topicRates = [];

const POLICIES = {
  "drop-oldest": "skips to newer events, after a relay.gap",
  "drop-newest": "finishes its backlog, and misses what is published meanwhile",
  conflate: "receives only the newest event of each key",
  disconnect: "is closed; the client resumes",
  block: "holds up publishers for a limited time",
};

async function ask() {
  if (!document.hidden) {
    try {
      const answer = await fetch("stats", { cache: "no-store", headers: bearer(adminToken) });
      if (answer.status === 401) askForAdminToken();
      else if (answer.ok) {
        about(await answer.json());
        const metrics = await fetch("metrics", { cache: "no-store", headers: bearer(adminToken) });
        if (metrics.ok) takeLatency(await metrics.text());
      }
      drawCharts();
    } catch {
      find("server").textContent = "server unreachable";
      before = buckets = null;
    }
  }
  setTimeout(ask, STATS_MS);
}

function askForAdminToken() {
  for (const id of ["charts", "topics-panel", "streams-panel"]) find(id).hidden = true;
  find("ask-admin").hidden = false;
}

function useAdminToken(text) {
  if (isToken(text)) adminToken = text;
}

function push(name, value) {
  series[name].push(value);
  if (series[name].length > POINTS) series[name].shift();
}

function about(stats) {
  find("ask-admin").hidden = true;
  for (const id of ["charts", "topics-panel", "streams-panel"]) find(id).hidden = false;
  find("server").textContent = "relay " + stats.version + ", " + stats.engine + " engine";
  find("streams").textContent = count(stats.streams);
  find("lagging").textContent = count(stats.lagging);
  find("topics-total").textContent = count(stats.topics_total);
  find("log-fill").textContent = Math.round(100 * stats.log.bytes / (stats.log.bytes_max || 1)) + " %";
  const passed = before && before.uptime_s < stats.uptime_s ? stats.uptime_s - before.uptime_s : 0;
  if (passed) {
    push("events", Math.max(0, stats.events - before.events) / passed);
    push("deliveries", Math.max(0, stats.deliveries - before.deliveries) / passed);
    find("events-rate").textContent = rate(series.events.at(-1));
    find("deliveries-rate").textContent = rate(series.deliveries.at(-1));
  }
  const earlier = new Map(before ? before.topics.map((topic) => [topic.topic, topic.events]) : []);
  topicRates = stats.topics.map((topic) => {
    const since = earlier.get(topic.topic);
    return { ...topic, rate: passed && since !== undefined ? Math.max(0, topic.events - since) / passed : 0 };
  }).sort((a, b) => b.rate - a.rate || b.subscribers - a.subscribers || (a.topic < b.topic ? -1 : 1));
  drawKnown();
  drawSlowest(stats);
  before = stats;
}

// The buttons stay in place while one of them has the focus or the pointer.
function drawKnown() {
  const list = find("known");
  if (list.contains(document.activeElement) || list.matches(":hover")) return refreshRates(list);
  const wanted = find("find-topic").value.trim().toLowerCase();
  const found = topicRates.filter((topic) => topic.topic.toLowerCase().includes(wanted)).slice(0, KNOWN_MAX);
  list.replaceChildren(...found.map((topic) => {
    const line = make("tr", undefined, topics.has(topic.topic) ? "chosen" : ""), name = make("td"), button = make("button", topic.topic);
    button.type = "button";
    button.title = topic.topic;
    button.setAttribute("aria-label", (topics.has(topic.topic) ? "Remove topic " : "Add topic ") + topic.topic);
    button.addEventListener("click", () => { button.blur(); topics.has(topic.topic) ? removeTopic(topic.topic) : addTopic(topic.topic); });
    name.append(button);
    line.append(name, make("td", rate(topic.rate), "number"), make("td", count(topic.subscribers), "number"));
    return line;
  }));
  find("no-topics").hidden = topicRates.length > 0;
  find("suggestions").replaceChildren(...topicRates.slice(0, KNOWN_MAX).map((topic) => { const option = make("option"); option.value = topic.topic; return option; }));
}

function refreshRates(list) {
  const known = new Map(topicRates.map((topic) => [topic.topic, topic]));
  for (const line of list.children) {
    const topic = known.get(line.querySelector("button").title);
    line.children[1].textContent = topic ? rate(topic.rate) : "0";
    line.children[2].textContent = topic ? count(topic.subscribers) : "0";
  }
}

function drawSlowest(stats) {
  find("slowest").replaceChildren(...stats.slowest.filter((slow) => slow.lag_events).map((slow) => {
    const line = make("tr"), policy = make("td", slow.policy);
    policy.title = "A slow stream " + (POLICIES[slow.policy] || "");
    line.append(make("td", slow.address), make("td", slow.topics.join(", "), "topic"), policy, make("td", count(slow.lag_events), "number"),
      make("td", count(slow.lag_bytes), "number"), make("td", slow.lag_s.toFixed(1), "number"));
    return line;
  }));
  find("no-lag").hidden = find("slowest").childElementCount > 0;
  const list = (named) => Object.entries(named).filter(([, number]) => number).map(([name, number]) => name + " " + count(number)).join(", ");
  find("forms").textContent = list(stats.forms) ? "Open: " + list(stats.forms) : "";
  const acted = Object.entries(stats.policy_actions).filter(([, number]) => number)
    .map(([name, number]) => name + " acted " + count(number) + " times: a slow stream " + (POLICIES[name] || "")).join(". ");
  find("actions").textContent = [acted, list(stats.closes) && "Closed: " + list(stats.closes)].filter(Boolean).join(". ");
}

// Reads the histogram relay_publish_to_write_seconds, added over all processes. Its counts since the last request give
// the percentiles.
function takeLatency(text) {
  const now = new Map();
  for (const [, bound, number] of text.matchAll(/^relay_publish_to_write_seconds_bucket\{[^}]*?le="([^"]+)"[^}]*\} (\S+)$/gm))
    now.set(bound, (now.get(bound) || 0) + Number(number));
  if (buckets && now.size) {
    const since = [...now].map(([bound, number]) => [bound === "+Inf" ? Infinity : Number(bound), number - (buckets.get(bound) || 0)]);
    since.sort((a, b) => a[0] - b[0]);
    for (const [name, part] of [["p50", 0.5], ["p99", 0.99]]) {
      const value = percentile(since, part);
      push(name, value);
      find(name).textContent = value === null ? "n/a" : rate(1000 * value) + " ms";
    }
  }
  buckets = now;
}

// Interpolates within a bucket. Returns null without observations.
function percentile(bounds, part) {
  const total = bounds.length ? bounds.at(-1)[1] : 0;
  if (total <= 0) return null;
  let low = 0, below = 0;
  for (const [bound, number] of bounds) {
    if (number >= part * total) return bound === Infinity ? low : low + (bound - low) * (part * total - below) / (number - below);
    [low, below] = [bound, number];
  }
  return low;
}

function drawCharts() {
  chart("throughput", [series.events, series.deliveries], (value) => rate(value) + "/s");
  chart("latency", [series.p50, series.p99], (value) => rate(1000 * value) + " ms");
}

// Draws lines from zero to their maximum, the newest at the right. A null is a gap in the line.
function chart(id, lines, unit) {
  const canvas = find(id), ratio = window.devicePixelRatio || 1;
  const width = canvas.width = canvas.clientWidth * ratio, height = canvas.height = canvas.clientHeight * ratio;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), most = Math.max(0, ...lines.flat());
  const colour = (name) => style.getPropertyValue(name), y = (value) => height - ratio - (most ? value / most : 0) * (height - 16 * ratio);
  pen.strokeStyle = colour("--line");
  pen.lineWidth = ratio;
  pen.strokeRect(0, height - ratio / 2, width, 0);
  pen.fillStyle = colour("--soft");
  pen.font = 11 * ratio + "px system-ui, sans-serif";
  if (most) pen.fillText("max " + unit(most), 0, 11 * ratio);
  lines.forEach((values, number) => {
    pen.strokeStyle = colour(number ? "--second" : "--accent");
    pen.lineWidth = 1.5 * ratio;
    pen.lineJoin = "round";
    pen.beginPath();
    let drawn = false;
    values.forEach((value, place) => {
      const x = width * (POINTS - values.length + place) / (POINTS - 1);
      if (value !== null) drawn ? pen.lineTo(x, y(value)) : pen.moveTo(x, y(value));
      drawn = value !== null;
    });
    pen.stroke();
  });
  canvas.dataset.points = Math.max(...lines.map((values) => values.length));
  canvas.setAttribute("aria-label", canvas.getAttribute("aria-label").split(",")[0] + ", at most " + unit(most));
}
