/**
 * Shares one connection between the tabs of an origin.
 *
 * The context that holds the lock of a subscription leads: it has the connection, and broadcasts each report. A
 * SharedWorker leads if the browser has one, because it outlives each tab. Each tab waits for the lock too, so that one
 * of them leads if the worker or the leading tab ends.
 *
 * Owns the locks, the channel and the messages on it. Never parses a stream (`connection`) and never dispatches events
 * (`source`).
 */

import { Connection, OPEN, type Authorize, type Credentials, type Plan, type Report } from "./connection.js";

/** Identifies a shared subscription. Its JSON text names the lock, the channel and the worker. */
export interface Key {
  name: string;
  plan: Plan;
  /** Whether requests need credentials, which only a tab has. */
  isPrivate: boolean;
}

type Message =
  /** From a tab that has joined. The leader answers with a report if its connection is open. */
  | { kind: "hello" }
  /** From the leader, whose id is new in each term. */
  | { kind: "report"; leader: string; report: Report }
  /** From a worker that needs credentials, to one tab, which answers. */
  | { kind: "ask"; tab: string; rejected: boolean }
  | { kind: "answer"; tab: string; credentials?: Credentials; error?: string };

type Take = (leader: string, report: Report) => void;

/** Reports of the last leader arrive within this time. */
const HANDOVER_MS = 100;
/** Time in which a tab has to answer a worker. */
const ANSWER_MS = 10_000;
/** Number of ids that a tab remembers, to recognise repeated events after a change of the leader. */
const IDS_MAX = 1_000;

/** Return whether this context can share a connection. Browsers have locks only in secure contexts. */
export const canShare = () => typeof BroadcastChannel === "function" && !!globalThis.navigator?.locks;

/** Wait for a lock and hold it during a task. Do nothing if the signal aborts first. */
function locked(name: string, signal: AbortSignal, task: () => Promise<void>): Promise<void> {
  return navigator.locks
    .request(name, { signal }, () => (signal.aborted ? undefined : task()))
    .catch((error) => {
      if (!signal.aborted) throw error;
    });
}

/** Lead as soon as no other context does, until the signal aborts or the subscription ends. */
function lead(
  key: string,
  channel: BroadcastChannel,
  position: () => string,
  authorize: Authorize,
  take: Take,
  signal: AbortSignal,
): Promise<void> {
  return locked(key, signal, async () => {
    if (position()) await new Promise((resolve) => setTimeout(resolve, HANDOVER_MS));
    if (signal.aborted) return;
    const leader = crypto.randomUUID();
    let opened: Report | undefined;
    const post = (report: Report) => channel.postMessage({ kind: "report", leader, report } satisfies Message);
    const greet = ({ data }: MessageEvent<Message>) => {
      if (data.kind === "hello" && opened) post(opened);
    };
    const { plan }: Key = JSON.parse(key);
    const connection = new Connection(plan, position(), authorize, (report) => {
      if (report.state !== undefined) opened = report.state === OPEN ? report : undefined;
      post(report);
      take(leader, report);
    });
    channel.addEventListener("message", greet);
    signal.addEventListener("abort", () => connection.close());
    await connection.run();
    channel.removeEventListener("message", greet);
  });
}

/**
 * Join a shared subscription from a tab.
 *
 * Args:
 *   key: identifies the subscription.
 *   worker: address of the script of the SharedWorker.
 *   authorize: returns the credentials of a request.
 *   receive: receives each report once.
 *
 * Returns: a function that leaves the subscription.
 */
export function join(
  key: Key,
  worker: string | URL,
  authorize: Authorize,
  receive: (report: Report) => void,
): () => void {
  const text = JSON.stringify(key);
  const tab = crypto.randomUUID();
  const channel = new BroadcastChannel(text);
  const left = new AbortController();
  const { signal } = left;
  const ids: string[] = [];
  let leader = "";
  let repeats: string[] = [];

  // A new leader resumes from its own position, which other tabs may have passed. It repeats events in their order.
  // The order shows which events are new, because a publisher may use an id again.
  const take: Take = (from, report) => {
    if (from !== leader) repeats = [...ids];
    leader = from;
    const { id, data } = report;
    if (id !== undefined) {
      if (repeats.length && data === undefined) return;
      const place = repeats.indexOf(id);
      repeats = place < 0 ? [] : repeats.slice(place + 1);
      if (place >= 0) return;
      ids.push(id);
      if (ids.length > IDS_MAX) ids.shift();
    }
    receive(report);
  };
  const answer = (members: { credentials?: Credentials; error?: string }) => {
    if (!signal.aborted) channel.postMessage({ kind: "answer", tab, ...members } satisfies Message);
  };
  channel.onmessage = ({ data }: MessageEvent<Message>) => {
    if (data.kind === "report") take(data.leader, data.report);
    if (data.kind === "ask" && data.tab === tab) {
      authorize(data.rejected).then(
        (credentials) => answer({ credentials }),
        (error) => answer({ error: String(error) }),
      );
    }
  };
  let isWaiting = false;
  const wait = () => {
    if (isWaiting || signal.aborted) return;
    isWaiting = true;
    channel.postMessage({ kind: "hello" } satisfies Message);
    lead(text, channel, () => ids.at(-1) ?? "", authorize, take, signal);
  };
  // A worker knows from this lock that the tab exists.
  locked(tab, signal, async () => {
    const port = startWorker(worker, text, wait);
    if (port) {
      port.onmessage = wait; // The worker has requested the lock of the subscription, so it leads first.
      port.postMessage(tab);
    }
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
  });
  return () => {
    left.abort();
    channel.close();
  };
}

/** Start the SharedWorker of a subscription, or connect to it. Call `failed` if there is none. */
function startWorker(url: string | URL, name: string, failed: () => void): MessagePort | undefined {
  if (typeof SharedWorker === "function") {
    const warn = (reason: string) => {
      console.warn(`relay: a tab has the shared connection, because ${url} did not start as a SharedWorker${reason}`);
      failed();
    };
    try {
      const worker = new SharedWorker(url, { name, type: "module" });
      worker.onerror = () => warn("; serve it as JavaScript, or set the option `worker`");
      return worker.port;
    } catch (error) {
      warn(`: ${error}`);
    }
  } else {
    failed();
  }
  return undefined;
}

/**
 * Run the SharedWorker of a subscription.
 *
 * Args:
 *   key: the text of the key.
 *
 * Returns: a function that accepts the port of a tab.
 */
export function serve(key: string): (port: MessagePort) => void {
  const channel = new BroadcastChannel(key);
  const { isPrivate }: Key = JSON.parse(key);
  const tabs = new Set<string>();
  let term: AbortController | undefined;
  let lastEventId = "";

  const take: Take = (_, { id }) => {
    lastEventId = id ?? lastEventId;
  };
  channel.onmessage = ({ data }: MessageEvent<Message>) => {
    if (data.kind === "report") take(data.leader, data.report);
  };
  const ask: Authorize = async (rejected) => {
    if (!isPrivate) return { renewable: false };
    const tab = [...tabs][0]!;
    tabs.delete(tab);
    tabs.add(tab); // Another tab is next.
    return new Promise((resolve, reject) => {
      const done = new AbortController();
      setTimeout(() => {
        done.abort();
        reject("no tab returned credentials");
      }, ANSWER_MS);
      const read = ({ data }: MessageEvent<Message>) => {
        if (data.kind !== "answer" || data.tab !== tab) return;
        done.abort();
        if (data.credentials) resolve(data.credentials);
        else reject(data.error);
      };
      channel.addEventListener("message", read, { signal: done.signal });
      channel.postMessage({ kind: "ask", tab, rejected } satisfies Message);
    });
  };
  const begin = async () => {
    const current = (term = new AbortController());
    await lead(key, channel, () => lastEventId, ask, take, current.signal);
    if (term === current) {
      term = undefined;
      lastEventId = "";
    }
  };
  return (port) => {
    port.onmessage = ({ data: tab }) => {
      tabs.add(tab);
      navigator.locks.request(tab, () => {
        tabs.delete(tab);
        if (tabs.size === 0) term?.abort();
      });
      if (!term) begin();
      port.postMessage("waiting");
    };
  };
}
