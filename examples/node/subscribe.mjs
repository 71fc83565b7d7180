// Print the events of a topic: node subscribe.mjs news. Needs Node 18 or later.
const url = process.env.RELAY_URL ?? "http://127.0.0.1:8080"
const topic = process.argv[2] ?? "news"
let lastId = ""
let retryMs = 1000

// Read one response until it ends. Fields and blank lines are those of WHATWG HTML 9.2.6.
async function read(response) {
  let rest = ""
  let data = []
  let type = ""
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n")
    rest = lines.pop()
    for (const line of lines) {
      if (line === "") {
        if (data.length) console.log(type || "message", lastId, data.join("\n"))
        if (type === "relay.end") return true
        data = []
        type = ""
        continue
      }
      const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line)
      if (field === "data") data.push(value)
      if (field === "event") type = value
      if (field === "id") lastId = value
      if (field === "retry") retryMs = Number(value)
    }
  }
  return false
}

for (;;) {
  try {
    const headers = { Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) }
    const response = await fetch(`${url}/events?topic=${encodeURIComponent(topic)}&since=earliest`, { headers })
    if (response.status === 204) break // The topic has ended, and this client has received all its events.
    if (!response.ok && response.status < 500) throw new Error(`${response.status}: ${await response.text()}`)
    if (response.ok && (await read(response))) break
  } catch (error) {
    // A lost connection is a TypeError of fetch. Everything else is final.
    if (!(error instanceof TypeError)) throw error
  }
  await new Promise((resolve) => setTimeout(resolve, retryMs))
}
