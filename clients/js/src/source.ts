/**
 * The source of events that an application creates: an EventTarget with the interface of EventSource.
 *
 * Owns the options and the dispatch of events. Never reconnects (`connection`) and never coordinates tabs (`shared`).
 */

import {
  CLOSED,
  CONNECTING,
  Connection,
  OPEN,
  type Authorize,
  type Plan,
  type Report,
  type Transport,
} from "./connection.js";
import { canShare, join } from "./shared.js";

/** Returns a token or a ticket for the next request. `rejected` is true if the server rejected the last one. */
export type Provider = (rejected: boolean) => string | Promise<string>;

export interface Options {
  /** Topics and patterns, in addition to those in the address. */
  topics?: string[];
  /** The token for the header `Authorization: Bearer`. A function is called before each request. */
  token?: string | Provider;
  /** Returns a ticket for each request. */
  ticket?: Provider;
  /** Resume after this event. */
  lastEventId?: string;
  /** Where a source without `lastEventId` begins, for example `earliest` or `10m`. By default: with the next event. */
  since?: string;
  /** Whether to send cookies to another origin. */
  withCredentials?: boolean;
  /**
   * Whether the tabs of this origin share one connection. Sources share it if their address, options and name are the
   * same; a text is the name. A shared source begins with the next event.
   */
  share?: boolean | string;
  /** Address of `worker.js` of this package, for applications whose bundler does not copy it. */
  worker?: string | URL;
  /** Time without the first byte of a stream, in milliseconds, after which the source polls (10,000). */
  openTimeoutMs?: number;
  /** Silence in milliseconds after which a stream is considered lost (45,000). It must exceed the heartbeat. */
  readTimeoutMs?: number;
  /** Time in milliseconds after which a source that polls tries a stream again (600,000). */
  streamAgainMs?: number;
  /** Longest first random wait in milliseconds (1,000). It doubles with each failure. */
  backoffLeastMs?: number;
  /** Longest random wait in milliseconds (30,000). */
  backoffMostMs?: number;
}

/** An event. Events of relay itself, for example gaps, have no topic. */
export class RelayEvent extends MessageEvent<string> {
  constructor(type: string, init: MessageEventInit<string>, readonly topic: string | undefined) {
    super(type, init);
  }
}

/** The loss of a connection. The source is closed if its `readyState` is `CLOSED`; otherwise it reconnects. */
export class RelayErrorEvent extends Event {
  constructor(
    readonly message: string,
    /** HTTP status of the response, or 0 without a response. 204: all topics have ended. */
    readonly status: number,
  ) {
    super("error");
  }
}

export interface RelaySource {
  addEventListener(type: "open", listener: (event: Event) => void, options?: boolean | AddEventListenerOptions): void;
  addEventListener(
    type: "error",
    listener: (event: RelayErrorEvent) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: (event: RelayEvent) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/**
 * Subscribes to topics of a relay, and reconnects and resumes until `close`, until all topics have ended, or until the
 * server rejects the subscription permanently.
 *
 * It dispatches `open`, `error` and each event by its type; events without a type have the type `message`. Events of
 * type `relay.gap` report missed events, and `relay.end` is the last event of a topic.
 */
export class RelaySource extends EventTarget {
  static readonly CONNECTING = CONNECTING;
  static readonly OPEN = OPEN;
  static readonly CLOSED = CLOSED;

  /** Address of the stream. */
  readonly url: string;
  readyState: number = CONNECTING;
  /** How events arrive: `poll` if a stream delivered nothing. */
  transport: Transport = "stream";
  /** Id of the last event, from which another source can resume. */
  lastEventId: string;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: RelayEvent) => void) | null = null;
  onerror: ((event: RelayErrorEvent) => void) | null = null;
  #leave: () => void;

  /**
   * Args:
   *   url: address of the server, or of a stream. The default path is `/events`.
   *   options: see `Options`.
   *
   * Throws: TypeError if the address is malformed, or if `share` is combined with `since` or `lastEventId`.
   */
  constructor(url: string | URL, options: Options = {}) {
    super();
    const { topics = [], since = "", lastEventId = "", share, token, ticket } = options;
    if (share && (since || lastEventId)) {
      throw new TypeError("a shared source begins with the next event: omit `since` and `lastEventId`, or `share`");
    }
    const address = new URL(url, globalThis.location?.href);
    if (address.pathname === "/") address.pathname = "/events";
    for (const topic of topics) address.searchParams.append("topic", topic);
    this.url = address.href;
    this.lastEventId = lastEventId;
    for (const type of ["open", "message", "error"] as const) {
      super.addEventListener(type, (event) => this[`on${type}`]?.(event as never));
    }
    const plan: Plan = {
      url: this.url,
      since,
      withCredentials: options.withCredentials ?? false,
      openTimeoutMs: options.openTimeoutMs ?? 10_000,
      readTimeoutMs: options.readTimeoutMs ?? 45_000,
      streamAgainMs: options.streamAgainMs ?? 600_000,
      backoffLeastMs: options.backoffLeastMs ?? 1_000,
      backoffMostMs: options.backoffMostMs ?? 30_000,
    };
    const authorize: Authorize = async (rejected) => ({
      token: typeof token === "function" ? await token(rejected) : token,
      ticket: await ticket?.(rejected),
      renewable: typeof token === "function" || !!ticket,
    });
    const receive = (report: Report) => this.#receive(report);
    if (share && canShare()) {
      const key = { name: share === true ? "" : share, plan, isPrivate: !!(token || ticket) };
      const worker = options.worker ?? new URL("./worker.js", import.meta.url);
      this.#leave = join(key, worker, authorize, receive);
    } else {
      const connection = new Connection(plan, lastEventId, authorize, receive);
      this.#leave = () => connection.close();
      connection.run();
    }
  }

  /** End the subscription. */
  close(): void {
    this.readyState = CLOSED;
    this.#leave();
  }

  #receive({ state, transport, message = "", status = 0, id, type, topic, data }: Report): void {
    if (this.readyState === CLOSED) return;
    this.lastEventId = id ?? this.lastEventId;
    if (data !== undefined) {
      const init = { data, lastEventId: this.lastEventId, origin: new URL(this.url).origin };
      this.dispatchEvent(new RelayEvent(type!, init, topic));
    } else if (state === OPEN) {
      this.transport = transport!;
      if (this.readyState === OPEN) return; // Another tab has joined, or the transport has changed.
      this.readyState = OPEN;
      this.dispatchEvent(new Event("open"));
    } else if (state !== undefined) {
      this.readyState = state;
      if (state === CLOSED) this.#leave();
      this.dispatchEvent(new RelayErrorEvent(message, status));
    }
  }
}
