// A source of clients/js in Node, which a test controls. It reads one line of JSON: the address and the options. `tokens`
// are returned one after the other; the last one repeats. With `ticketToken`, each ticket is requested from relay. Each
// event and each change of the state is reported as a line of JSON.
import readline from "node:readline";
import { RelaySource } from "../../clients/js/dist/index.js";

const report = (record) => console.log(JSON.stringify(record));
const input = readline.createInterface({ input: process.stdin });
const line = await new Promise((resolve) => input.once("line", resolve));
const { url, types, tokens, ticketToken, ...options } = JSON.parse(line);

if (tokens) {
  options.token = (rejected) => {
    report({ asked: rejected });
    return tokens.length > 1 ? tokens.shift() : tokens[0];
  };
}
if (ticketToken) {
  options.ticket = async (rejected) => {
    report({ asked: rejected });
    const headers = { Authorization: `Bearer ${ticketToken}` };
    const response = await fetch(`${url}/ticket`, { method: "POST", headers });
    return (await response.json()).ticket;
  };
}
const source = new RelaySource(url, options);
for (const type of ["message", ...types]) {
  source.addEventListener(type, ({ type, data, lastEventId, topic }) => {
    report({ type, data, id: lastEventId, topic, transport: source.transport });
  });
}
source.onopen = () => report({ state: "open", transport: source.transport });
source.onerror = ({ message, status }) => {
  report({ state: source.readyState === RelaySource.CLOSED ? "closed" : "connecting", message, status });
};
