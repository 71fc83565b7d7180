import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { useRelay } from "./useRelay";

const query = new URLSearchParams(location.search);
const relay = query.get("relay") ?? "http://127.0.0.1:8080";
const topic = query.get("topic") ?? "news";

function News() {
  const { state, events, missed } = useRelay(relay, [topic]);
  return (
    <>
      <p>
        State: <output id="state">{state}</output>. Missed events: <output id="missed">{missed}</output>.
      </p>
      <ol id="events">
        {events.map((event) => (
          <li key={event.lastEventId}>{event.data}</li>
        ))}
      </ol>
    </>
  );
}

createRoot(document.getElementById("app")!).render(
  <StrictMode>
    <News />
  </StrictMode>,
);
