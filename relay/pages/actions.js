// The actions of the user: topics, tokens, publishing, copying, keys.

function subscribe(since = "", lastId = "") {
  if (stream) stream.close();
  stream = null;
  find("ask").hidden = true;
  find("empty").textContent = topics.size ? "Waiting for events." : "Add a topic to see its events.";
  find("history").disabled = find("code-open").disabled = topics.size === 0;
  if (topics.size === 0) {
    show("idle", "not connected");
    return;
  }
  stream = new Stream(since, lastId);
  stream.connect();
}

function drawTopics() {
  find("topics").replaceChildren(...[...topics].map((topic) => {
    const item = make("li"), button = make("button", topic);
    button.type = "button";
    button.setAttribute("aria-label", "Remove topic " + topic);
    button.addEventListener("click", () => { removeTopic(topic); find("topics").focus(); });
    item.append(button);
    return item;
  }));
  const address = new URLSearchParams();
  for (const topic of topics) address.append("topic", topic);
  history.replaceState(null, "", "?" + address);
  drawKnown();
}

function addTopic(topic) {
  if (!topic || topics.has(topic)) return;
  topics.add(topic);
  // The last id belongs to a topic that is still subscribed to, so the stream resumes from it.
  changeTopics(stream ? stream.lastId : "");
}

function removeTopic(topic) {
  topics.delete(topic);
  // The last id may belong to the removed topic, so the stream cannot resume from it.
  changeTopics("");
}

function changeTopics(lastId) {
  if (stream && stream.established && topics.size && !lastId)
    missed("Events may have been missed: the page reconnected for other topics, and could not resume");
  drawTopics();
  subscribe("", lastId);
}

function useToken(text) {
  if (!isToken(text)) {
    find("ask-reason").textContent = "A token is one word of ASCII characters.";
    return;
  }
  token = text;
  find("ask").hidden = true;
  if (stream) stream.connect();
}

// Publishing.

let sent = null;  // the last published event: its id, and the time of the request

async function publish() {
  const query = new URLSearchParams({ topic: find("publish-topic").value.trim() || "default" });
  const type = find("publish-event").value.trim(), word = find("publish-token").value.trim();
  if (type) query.set("event", type);
  const headers = { "Content-Type": "text/plain", ...bearer(isToken(word) ? word : "") };
  const began = performance.now(), report = (text) => { find("publish-result").textContent = text; };
  report("publishing …");
  sent = { id: "", began };
  try {
    const answer = await fetch("publish?" + query, { method: "POST", headers, body: find("publish-data").value });
    const body = await answer.json(), took = Math.round(performance.now() - began);
    if (!answer.ok) {
      report("rejected (" + answer.status + "): " + cut(String(body.error || ""), 200));
      return;
    }
    report("published as " + body.ids[0] + " in " + took + " ms");
    sent.id = body.ids[0];
    if (sent.seen) arrived(sent.seen);
  } catch {
    report("the server cannot be reached");
  }
}

// Notes the event that this page published. It may arrive before the answer to the request.
function noteArrival(id, data) {
  if (!sent || sent.done) return;
  if (sent.id ? id === sent.id : data === find("publish-data").value) {
    sent.seen = { id, at: performance.now() };
    if (sent.id) arrived(sent.seen);
  }
}

function arrived(seen) {
  if (seen.id !== sent.id || sent.done) return;
  sent.done = true;
  find("publish-result").textContent += "; received after " + Math.round(seen.at - sent.began) + " ms";
}

// Code to copy. It names a variable instead of a token.

const quote = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
const root = () => location.origin + location.pathname.replace(/\/$/, "");

function code(language) {
  const list = [...topics], query = list.map((topic) => "topic=" + encodeURIComponent(topic).replaceAll("'", "%27")).join("&");
  const url = root() + "/events?" + query;
  if (language === "curl") return "curl -N " + (token ? "-H \"Authorization: Bearer $TOKEN\" " : "") + quote(url);
  if (language === "python")
    return [...(token ? ["import os"] : []), "import asyncio", "", "from relay.client import subscribe", "", "", "async def main():",
      "    async for event in subscribe(" + JSON.stringify(root() || location.origin) + ", " + JSON.stringify(list) +
      (token ? ", headers={\"Authorization\": f\"Bearer {os.environ['TOKEN']}\"}" : "") + "):",
      "        print(event.topic, event.event, event.data)", "", "", "asyncio.run(main())"].join("\n");
  if (token) return "// EventSource cannot send a token: get a ticket first (docs/security.md, Browsers).\n" +
    "const answer = await fetch(" + JSON.stringify(root() + "/ticket") + ", { method: \"POST\", headers: { Authorization: \"Bearer \" + token } });\n" +
    "const { ticket } = await answer.json();\nconst source = new EventSource(" + JSON.stringify(url + "&ticket=") + " + ticket);\n" + LISTEN;
  return "const source = new EventSource(" + JSON.stringify(url) + ");\n" + LISTEN;
}

const LISTEN = "source.onmessage = (event) => console.log(event.lastEventId, event.data);\n" +
  "source.addEventListener(\"relay.gap\", (event) => console.warn(\"missed\", event.data));";

function publishCode() {
  const query = new URLSearchParams({ topic: find("publish-topic").value.trim() || "default" });
  if (find("publish-event").value.trim()) query.set("event", find("publish-event").value.trim());
  return "curl -H \"Authorization: Bearer $RELAY_PUBLISH_TOKEN\" -H 'Content-Type: text/plain' --data-binary " +
    quote(find("publish-data").value) + " " + quote(root() + "/publish?" + query);
}

function showCode(title, text, choices) {
  find("code-title").textContent = title;
  find("code").textContent = text;
  for (const button of document.querySelectorAll("[data-code]")) button.hidden = !choices;
  if (!find("code-dialog").open) find("code-dialog").showModal();
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // The clipboard needs https or this machine, and the user's permission.
    button.textContent = "Select it";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

// Keys. Those of one letter have no effect in a field.

function press(key) {
  if (key.key === "Escape") closeDetail();
  if (key.ctrlKey || key.metaKey || key.altKey || key.target.closest("input, textarea, dialog")) return;
  const acts = { "/": () => find("search").focus(), t: () => find("topic").focus(), p: pause, "?": () => find("help-dialog").showModal() };
  if (!Object.hasOwn(acts, key.key)) return;
  key.preventDefault();
  acts[key.key]();
}

function pressInTail(key) {
  if (key.key === "ArrowDown" || key.key === "ArrowUp") {
    key.preventDefault();
    step(key.key === "ArrowDown");
    if (!find("detail").hidden) openDetail();
  } else if (key.key === "Enter") {
    openDetail();
  }
}

const click = (id, act) => find(id).addEventListener("click", act);
click("pause", pause);
click("clear", clear);
click("history", () => { clear(); subscribe("earliest"); });
click("detail-close", closeDetail);
click("detail-copy", () => { if (chosen) copy(events.get(chosen).data, find("detail-copy")); });
click("rows", (event) => { choose(event.target.closest("tr")); openDetail(); });
click("help", () => find("help-dialog").showModal());
click("help-close", () => find("help-dialog").close());
click("code-open", () => showCode("Subscribe from", code("curl"), true));
click("code-close", () => find("code-dialog").close());
click("code-copy", () => copy(find("code").textContent, find("code-copy")));
click("publish-send", publish);
click("publish-code", () => showCode("Publish from curl", publishCode(), false));
for (const button of document.querySelectorAll("[data-code]"))
  button.addEventListener("click", () => showCode("Subscribe from", code(button.dataset.code), true));
find("search").addEventListener("input", search);
find("find-topic").addEventListener("input", drawKnown);
find("tail").addEventListener("keydown", pressInTail);
document.addEventListener("keydown", press);
onEnter("topic", "add-topic", addTopic);
onEnter("token", "use-token", useToken);
onEnter("admin-token", "use-admin-token", useAdminToken);
find("publish-topic").value = [...topics].find((topic) => !topic.includes("*")) || "default";
drawTopics();
subscribe();
setInterval(tick, 1000);
ask();
