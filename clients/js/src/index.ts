/** Subscribes to a relay: an EventSource with tokens, resume, long polling and one connection for all tabs. */

export { RelayErrorEvent, RelayEvent, RelaySource, type Options, type Provider } from "./source.js";
export type { Transport } from "./connection.js";
