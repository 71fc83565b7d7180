/**
 * Decodes what a relay sends: lines of NDJSON, and the answers to polls.
 *
 * Owns these formats. Never keeps state and never sends a request.
 */

/** The members of a line of NDJSON. A line without `data` is not an event. */
export interface Line {
  id?: string;
  event?: string;
  topic?: string;
  retry?: number;
  data?: string;
}

/**
 * Decode one line.
 *
 * JSON data is returned as the server wrote it, because `JSON.parse` would round long numbers. The server writes `data`
 * last, and within a string each quotation mark has a backslash before it.
 */
export function decodeLine(text: string): Line {
  const line = JSON.parse(text);
  if (typeof line.data === "object") line.data = text.slice(text.search(/[{,]"data":/) + 8, -1);
  return line;
}

/** Return the events in the answer to a poll, as lines of NDJSON, and the id to resume from. */
export function decodeAnswer(text: string): { lines: string[]; next: string } {
  const lines = [];
  let depth = 0;
  let start = 0;
  let quoted = false;
  const token = /["\\[\]{}]/g;
  for (let match; (match = token.exec(text)); ) {
    const [mark] = match;
    if (mark === "\\") token.lastIndex += 1; // only strings have backslashes
    else if (mark === '"') quoted = !quoted;
    else if (quoted) continue;
    else if (mark === "{" || mark === "[") {
      // The document has depth 1, and its list of events depth 2.
      if (depth === 2) start = match.index;
      depth += 1;
    } else {
      depth -= 1;
      if (depth === 2) lines.push(text.slice(start, match.index + 1));
    }
  }
  return { lines, next: JSON.parse(text).next };
}

/** Return the address of polls for the address of a stream; undefined if the path is not that of a relay's stream. */
export function pollAddress(stream: string): string | undefined {
  const url = new URL(stream);
  const [, base, topic] = /^(.*)\/events(?:\/(.*))?$/.exec(url.pathname) ?? [];
  if (base === undefined) return undefined;
  url.pathname = `${base}/poll`;
  if (topic) url.searchParams.append("topic", decodeURIComponent(topic));
  return url.href;
}
