import { EventSource } from "eventsource"; // in a browser, EventSource is built in

export function follow(url, types, take, options = {}) {
  const source = new EventSource(url, options);
  for (const type of types) source.addEventListener(type, take);
  return source;
}
