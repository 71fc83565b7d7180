// Opens streams over one HTTP/2 session and prints each data line with the number of its stream. Ends with the session.
import http2 from "node:http2";

const [url, count] = process.argv.slice(2);
const { origin, pathname, search } = new URL(url);
const session = http2.connect(origin, { rejectUnauthorized: false });
session.on("error", (error) => console.log("error", error.message));
for (let number = 0; number < Number(count); number++) {
  const stream = session.request({ ":path": pathname + search, accept: "text/event-stream" });
  let rest = "";
  stream.setEncoding("utf8");
  stream.on("response", (headers) => console.log("open", "HTTP/2.0", headers[":status"]));
  stream.on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) console.log("data", number, line.slice(6));
  });
  stream.on("end", () => console.log("end", number, stream.rstCode ? `reset ${stream.rstCode}` : "<nil>"));
  stream.on("error", (error) => console.log("error", number, error.code));
}
