/**
 * Follows a subscription over all its connections: it reconnects, resumes, and falls back to long polling.
 *
 * Owns the position, the waits and the set of final errors. Never dispatches events to listeners (`source`) and never
 * shares a connection between tabs (`shared`).
 */

import { decodeAnswer, decodeLine, pollAddress } from "./wire.js";

export type Transport = "stream" | "poll";

export const CONNECTING = 0;
export const OPEN = 1;
export const CLOSED = 2;

/** One step of a subscription. It can be cloned, because tabs send it to each other. */
export interface Report {
  /** A change of the state: `OPEN`, or the loss of a connection (`CONNECTING`) or of the subscription (`CLOSED`). */
  state?: number;
  transport?: Transport;
  /** The reason of a loss, and the HTTP status, or 0. */
  message?: string;
  status?: number;
  /** The position after this report. */
  id?: string;
  /** The event, if `data` is present. */
  type?: string;
  topic?: string;
  data?: string;
}

/** The constant part of a subscription. It can be cloned. */
export interface Plan {
  /** Address of the stream, with its topics. */
  url: string;
  since: string;
  withCredentials: boolean;
  openTimeoutMs: number;
  readTimeoutMs: number;
  streamAgainMs: number;
  backoffLeastMs: number;
  backoffMostMs: number;
}

export interface Credentials {
  token?: string;
  ticket?: string;
  /** Whether another call may return other credentials. */
  renewable: boolean;
}

/** Returns the credentials of the next request. `rejected` is true if the server rejected the last ones. */
export type Authorize = (rejected: boolean) => Promise<Credentials>;

/** Limits of the reconnection time that a server can request, by `retry` or by `Retry-After`. */
const RETRY_MS_MIN = 100;
const RETRY_MS_MAX = 300_000;
/** A connection that stays open for this long, or that changes the last event id, resets the back-off. */
const SERVED_MS = 10_000;
/** Time that the request of a first poll may take without the loss of an event. */
const START_MARGIN_MS = 2_000;
/** Shortest time of a poll without an event. After a shorter one, the client waits before it polls again. */
const EMPTY_MS_MIN = 1_000;
/** Longest line. The default limit of an event is 1 MiB. */
const LINE_CHARACTERS_MAX = 32 * 1024 * 1024;
/** Longest reason in an error response that is reported. */
const MESSAGE_CHARACTERS_MAX = 400;

/** Statuses after which another attempt may succeed, besides 5xx. */
const TEMPORARY = [408, 425, 429];

/** The loss of a connection. */
class Failure extends Error {
  /** HTTP status of the response, or 0. */
  status = 0;
  /** Whether another attempt is useless. */
  final = false;
  /** Time after which the server permits another attempt. */
  afterMs = 0;
  /** Whether nothing arrived for too long. */
  silent = false;
}

const fail = (message: string, members: Partial<Failure> = {}) => Object.assign(new Failure(message), members);

const now = () => performance.now();

const isDenied = (status: number) => status === 401 || status === 403;

/**
 * One subscription.
 *
 * Args:
 *   plan: the constant part.
 *   lastEventId: resume after this event, or an empty text.
 *   authorize: returns the credentials of each request.
 *   report: receives each step. It does not throw.
 */
export class Connection {
  #plan: Plan;
  #authorize: Authorize;
  #report: (report: Report) => void;
  #polls: string | undefined;
  #transport: Transport = "stream";
  #lastEventId: string;
  #retryMs = 0;
  #openedMs = 0;
  /** Whether this attempt has received anything. */
  #heard = false;
  /** Whether the server has rejected the credentials since the last connection. */
  #rejected = false;
  #closed = false;
  #attempt = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #wake = () => {};

  constructor(plan: Plan, lastEventId: string, authorize: Authorize, report: (report: Report) => void) {
    this.#plan = plan;
    this.#lastEventId = lastEventId;
    this.#authorize = authorize;
    this.#report = report;
    this.#polls = pollAddress(plan.url);
  }

  /** End the subscription. No report follows. */
  close(): void {
    this.#closed = true;
    this.#attempt.abort();
    this.#wake();
  }

  /** Follow the subscription until `close`, or until a final failure, which is reported. */
  async run(): Promise<void> {
    const { backoffLeastMs, backoffMostMs } = this.#plan;
    const subscribedMs = now();
    let failures = 0;
    while (!this.#closed) {
      const startId = this.#lastEventId;
      const polling = this.#transport === "poll";
      this.#openedMs = now();
      this.#heard = false;
      this.#attempt = new AbortController();
      const failure = await (polling ? this.#poll(subscribedMs) : this.#stream()).catch((error) =>
        error instanceof Failure ? error : fail(String(error)),
      );
      clearTimeout(this.#timer);
      this.#attempt.abort();
      if (this.#closed) return;
      if (!failure) {
        this.#transport = "stream";
        continue;
      }
      const { message, status, final, afterMs, silent } = failure;
      if (final && polling && !this.#heard && status !== 204 && !isDenied(status)) {
        this.#polls = undefined; // The server does not support polls.
      } else if (final) {
        this.#report({ state: CLOSED, message, status });
        return;
      }
      if (isDenied(status)) continue; // once, with new credentials
      this.#transport = !polling && silent && !this.#heard && this.#polls ? "poll" : "stream";
      if (this.#transport === "poll") continue;
      if (this.#lastEventId !== startId || now() - this.#openedMs >= SERVED_MS) failures = 0;
      const backoffMs = Math.random() * Math.min(backoffMostMs, backoffLeastMs * 2 ** failures);
      failures += 1;
      this.#report({ state: CONNECTING, message, status });
      await this.#sleep(Math.max(afterMs, this.#retryMs) + backoffMs);
    }
  }

  /** Read one stream until it fails. */
  async #stream(): Promise<Failure> {
    const { url, since, openTimeoutMs, readTimeoutMs } = this.#plan;
    const response = await this.#request(url, since, "application/x-ndjson", openTimeoutMs);
    this.#open();
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return fail("the server closed the stream");
      this.#heard = true;
      this.#limit(readTimeoutMs);
      const lines = (rest + value).split("\n");
      rest = lines.pop()!;
      if (rest.length > LINE_CHARACTERS_MAX) return fail("an event is too large", { final: true });
      this.#take(lines);
    }
  }

  /** Poll until a poll fails, or return nothing when it is time to try a stream again. */
  async #poll(subscribedMs: number): Promise<Failure | undefined> {
    const { since, openTimeoutMs, readTimeoutMs, streamAgainMs } = this.#plan;
    const startedMs = now();
    // Without an id, the first poll covers the time in which the stream delivered nothing.
    const silentMs = Math.ceil(now() - subscribedMs + START_MARGIN_MS);
    const start = since && since !== "latest" ? since : `${silentMs}ms`;
    const url = new URL(this.#polls!);
    url.searchParams.set("wait", "0"); // The first answer comes at once, and shows that polls get through.
    while (now() - startedMs < streamAgainMs) {
      const beganMs = now();
      const response = await this.#request(url.href, start, "application/json", openTimeoutMs + readTimeoutMs);
      const { lines, next } = decodeAnswer(await response.text());
      if (!this.#heard) this.#open();
      this.#heard = true;
      this.#take(lines);
      this.#take([JSON.stringify({ id: next })]);
      const isShort = lines.length === 0 && now() - beganMs < EMPTY_MS_MIN;
      if (isShort && url.searchParams.get("wait") !== "0") await this.#sleep(EMPTY_MS_MIN);
      url.searchParams.set("wait", `${Math.ceil(readTimeoutMs / 2)}ms`);
    }
    return undefined;
  }

  /** Send a request from the position, and check the response. */
  async #request(address: string, since: string, accept: string, timeoutMs: number): Promise<Response> {
    const { token, ticket, renewable } = await this.#authorize(this.#rejected);
    const url = new URL(address);
    if (ticket) url.searchParams.set("ticket", ticket);
    // In the query, the id needs no preflight and may have any characters.
    if (this.#lastEventId) url.searchParams.set("lastEventId", this.#lastEventId);
    else if (since) url.searchParams.set("since", since);
    this.#limit(timeoutMs);
    const response = await fetch(url, {
      headers: { Accept: accept, ...(token && { Authorization: `Bearer ${token}` }) },
      cache: "no-store",
      credentials: this.#plan.withCredentials ? "include" : "same-origin",
      signal: this.#attempt.signal,
    });
    const { status } = response;
    if (status === 200) {
      if (!response.headers.get("Content-Type")?.startsWith(accept)) {
        throw fail(`the server did not respond with ${accept}`, { status, final: true });
      }
      this.#rejected = false;
      return response;
    }
    if (status === 204) throw fail("all topics have ended", { status, final: true });
    const renew = isDenied(status) && renewable && !this.#rejected;
    this.#rejected = isDenied(status);
    throw fail(`${status}: ${(await response.text()).slice(0, MESSAGE_CHARACTERS_MAX)}`, {
      status,
      final: status < 500 && !TEMPORARY.includes(status) && !renew,
      afterMs: Math.min(1000 * (Number(response.headers.get("Retry-After")) || 0), RETRY_MS_MAX),
    });
  }

  #open(): void {
    this.#openedMs = now();
    this.#report({ state: OPEN, transport: this.#transport });
  }

  #take(lines: string[]): void {
    for (const text of lines) {
      if (this.#closed) return;
      if (!text) continue; // a heartbeat
      const { id, event, topic, retry, data } = decodeLine(text);
      if (retry !== undefined) this.#retryMs = Math.min(Math.max(retry, RETRY_MS_MIN), RETRY_MS_MAX);
      if (id !== undefined) this.#lastEventId = id;
      if (data !== undefined) this.#report({ id, type: event ?? "message", topic, data });
      else if (id !== undefined) this.#report({ id });
    }
  }

  /** End the attempt if nothing arrives within this time. */
  #limit(ms: number): void {
    clearTimeout(this.#timer);
    const silence = fail(`nothing arrived for ${ms} ms`, { silent: true });
    this.#timer = setTimeout(() => this.#attempt.abort(silence), ms);
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
