import { useEffect, useState } from "react";
import { RelaySource, type Options, type RelayEvent } from "relay-sse";

/**
 * Follow topics while the component is mounted. All tabs of the application share one connection.
 *
 * Args:
 *   url: address of the server.
 *   topics: topics and patterns.
 *   options: options of the source, and `eventsMax`, the number of newest events to keep. Changes have no effect.
 */
export function useRelay(url: string, topics: string[], options: Options & { eventsMax?: number } = {}) {
  const [state, setState] = useState<"connecting" | "open" | "closed">("connecting");
  const [events, setEvents] = useState<RelayEvent[]>([]);
  const [missed, setMissed] = useState(0);
  const names = topics.join(",");

  useEffect(() => {
    const { eventsMax = 100, ...rest } = options;
    const source = new RelaySource(url, { topics: names.split(","), share: true, ...rest });
    source.onopen = () => setState("open");
    source.onerror = () => setState(source.readyState === RelaySource.CLOSED ? "closed" : "connecting");
    source.onmessage = (event) => setEvents((all) => [...all, event].slice(-eventsMax));
    source.addEventListener("relay.gap", (event) => {
      // The number is null if it is not known.
      setMissed((count) => count + (JSON.parse(event.data).missed ?? 1));
    });
    return () => source.close();
  }, [url, names]);

  return { state, events, missed };
}
