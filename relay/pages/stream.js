// The stream of events: NDJSON over fetch, with resume and back-off.

// Parses NDJSON piece by piece: one JSON object per line. Unlike an event stream, it has the topic of each event.
// EventSource is not sufficient: it reads event streams only, and cannot send a token.
class Parser {
  constructor(lastId, begin, take) {
    this.lastId = lastId;
    this.begin = begin;
    this.take = take;
    this.retryMs = null;
    this.text = "";
  }

  feed(text) {
    const lines = text.split("\n");
    lines[0] = this.text + lines[0];
    this.text = lines.pop();
    if (this.text.length > LINE_MAX) throw new Error("an event is too large for this page");
    for (const line of lines) if (line) this.line(line);  // a heartbeat is an empty line
  }

  line(line) {
    const event = JSON.parse(line);
    if (event.id !== undefined) this.lastId = event.id;
    if (event.retry !== undefined) this.retryMs = event.retry;
    this.begin();
    if (event.data === undefined) return;
    // JSON data is shown as it was published. JSON.parse would round long numbers. The server writes data last, and
    // within a string each quotation mark has a backslash before it.
    const json = line.slice(line.search(/[{,]"data":/) + 8, -1);
    this.take(event.topic || "", event.event || "message", typeof event.data === "string" ? event.data : json, this.lastId);
  }
}

// One subscription. It reconnects and resumes until the topics change or the server rejects it permanently.
class Stream {
  constructor(since, lastId) {
    this.since = since;
    this.lastId = lastId;
    this.abort = new AbortController();
    this.retryMs = RETRY_MS_MIN;
    this.failures = 0;
    this.established = false;  // whether any connection has been open
  }

  close() {
    clearTimeout(timer);
    this.abort.abort();
  }

  async connect() {
    clearTimeout(timer);
    show("waiting", this.established ? "reconnecting" : "connecting");
    const query = new URLSearchParams();
    for (const topic of topics) query.append("topic", topic);
    if (this.lastId) query.set("lastEventId", this.lastId);
    else if (this.since) query.set("since", this.since);
    const headers = { Accept: "application/x-ndjson", ...bearer(token) };
    let reason = "disconnected";
    try {
      const answer = await fetch("events?" + query, { headers, cache: "no-store", signal: this.abort.signal });
      if (answer.status !== 200) {
        if (await this.refused(answer)) return;
        reason = "the server answered " + answer.status;
      } else {
        await this.read(answer.body);
      }
    } catch (error) {
      if (this !== stream) return;
      if (!(error instanceof TypeError)) reason = error.message;  // fetch reports a broken connection as a TypeError
    }
    if (this === stream) this.again(reason);
  }

  async read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new Parser(this.lastId, () => this.begin(), (...event) => this.take(...event));
    show("open", "connected");
    this.begun = false;
    for (;;) {
      const { done, value } = await reader.read();
      if (this !== stream || done) return;
      parser.feed(value);
      this.lastId = parser.lastId;
      if (parser.retryMs !== null) this.retryMs = Math.min(parser.retryMs, RETRY_MS_MAX);
    }
  }

  // A connection counts after its first line.
  begin() {
    if (this.begun) return;
    this.begun = true;
    this.failures = 0;
    if (this.established) {
      reconnections += 1;
      if (!this.lastId) missed("Events may have been missed: the connection was lost before any event had an id");
    }
    this.established = true;
  }

  take(topic, type, data, id) {
    if (type === "relay.heartbeat") return;
    const now = Date.now(), gap = type === "relay.gap";
    if (gap) {
      missed(...explainGap(data));
      return;
    }
    received += 1;
    counts[SECONDS - 1] += 1;
    const sent = published(data);
    if (sent !== null) lags.push(now - sent);
    noteArrival(id, data);
    add({ now, gap: false, topic, type, id, data });
  }

  // Whether another attempt is useless.
  async refused(answer) {
    if (answer.status === 204) {
      show("closed", "ended: no more events will come");
      return true;
    }
    if (answer.status >= 500 || REFUSALS_FOR_NOW.includes(answer.status)) {
      await answer.body?.cancel();
      return false;
    }
    let reason = "";
    try {
      reason = cut(String((await answer.json()).error || ""), 200);
    } catch {
      reason = "";  // Another server's answer has no reason that the page could show.
    }
    if (this !== stream) return true;
    if (answer.status === 401 || answer.status === 403) {
      find("ask").hidden = false;
      find("ask-reason").textContent = reason || "The server asks for a token.";
      find("token").focus();
      show("closed", answer.status === 401 ? "a token is needed" : "not allowed");
    } else {
      show("closed", "refused (" + answer.status + ")" + (reason ? ": " + reason : ""));
    }
    return true;
  }

  again(reason) {
    const wait = Math.min(RETRY_MS_MAX, Math.max(this.retryMs, RETRY_MS_MIN * 2 ** this.failures) * (0.75 + Math.random() / 2));
    this.failures += 1;
    show("waiting", reason + "; reconnecting in " + Math.ceil(wait / 1000) + " s");
    timer = setTimeout(() => this.connect(), wait);
  }
}
