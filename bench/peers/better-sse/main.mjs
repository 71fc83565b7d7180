// A server of better-sse that is fed by lines of JSON: node main.mjs PORT SOCKET
import { createServer } from "node:http"
import { createServer as createFeed } from "node:net"
import { createInterface } from "node:readline"
import { createChannel, createSession } from "better-sse"

const [port, socket] = process.argv.slice(2)
const channels = new Map()

function channel(topic) {
    if (!channels.has(topic)) {
        channels.set(topic, createChannel())
    }
    return channels.get(topic)
}

createFeed((feeder) => {
    createInterface({ input: feeder }).on("line", (line) => {
        const { topic = "default", data } = JSON.parse(line)
        channel(topic).broadcast(data, "message")
    })
}).listen(socket)

createServer(async (request, response) => {
    const topic = new URL(request.url, "http://localhost").searchParams.get("topic")
    channel(topic).register(await createSession(request, response))
}).listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 })
