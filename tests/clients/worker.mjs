// Runs a snippet for each job on standard input, and prints each line or event at once, with its time.
// Usage: node worker.mjs fetch|eventsource
import readline from "node:readline";
import * as undici from "undici";
import { lines } from "./snippets/fetch.mjs";
import { follow } from "./snippets/eventsource.mjs";

// Node's own fetch has no HTTP/2. That of undici has.
const dispatcher = new undici.Agent({ allowH2: true });
const fetch2 = (url, options) => undici.fetch(url, { ...options, dispatcher });

const report = (record) => console.log(JSON.stringify({ at: Date.now() / 1000, ...record }));

async function runFetch(job) {
  try {
    for await (const line of lines(job.url, { headers: job.headers }, job.h2 ? fetch2 : fetch)) report({ line });
    report({ end: "clean" });
  } catch (error) {
    report({ end: `error: ${error} ${error.cause}` });
  }
}

function runEventSource(job) {
  const take = (event) => report({ id: event.lastEventId, event: event.type, data: event.data });
  const source = follow(job.url, job.types, take, { fetch: job.h2 ? fetch2 : fetch });
  source.onerror = () => {
    if (source.readyState === source.CLOSED) report({ end: "clean" });
  };
}

const run = process.argv[2] === "fetch" ? runFetch : runEventSource;
report({ ready: true });
for await (const text of readline.createInterface({ input: process.stdin })) run(JSON.parse(text));
process.exit();
