// Parses event streams with eventsource-parser: a JSON array of pieces a line in, a JSON array of events a line out.
import { createInterface } from 'node:readline'
import { createParser } from 'eventsource-parser'

for await (const line of createInterface({ input: process.stdin })) {
  const events = []
  const parser = createParser({
    onEvent: ({ data, event, id }) => events.push({ data, event: event ?? null, id: id ?? null }),
  })
  for (const piece of JSON.parse(line)) parser.feed(piece)
  process.stdout.write(JSON.stringify(events) + '\n')
}
