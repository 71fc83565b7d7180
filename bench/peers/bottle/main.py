"""A server of bottle on gevent, as in tutorials, with a queue for each client: main.py PORT SOCKET (of JSON lines)."""

# ruff: noqa: E402 (gevent must patch the standard library first)
from gevent import monkey

monkey.patch_all()

import json
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator

from bottle import request, response, route, run
from gevent.queue import Queue
from gevent.server import StreamServer

PORT, SOCKET = int(sys.argv[1]), sys.argv[2]
clients: defaultdict[str, set[Queue]] = defaultdict(set)


def feed(feeder: socket.socket, _: object) -> None:
    """Hand each line's data to every client of its topic."""
    for line in feeder.makefile("rb"):
        event = json.loads(line)
        data = json.dumps(event["data"], separators=(",", ":"))
        for queue in clients[event.get("topic", "default")]:
            queue.put_nowait(data)


@route("/events")
def events() -> Iterator[str]:
    """Answer with a topic's stream."""
    response.content_type = "text/event-stream"
    response.set_header("Cache-Control", "no-cache")
    topic = request.query.topic
    queue: Queue = Queue()
    clients[topic].add(queue)
    try:
        yield ": open\n\n"
        while True:
            yield f"data: {queue.get()}\n\n"
    finally:
        clients[topic].discard(queue)


listener = socket.socket(socket.AF_UNIX)
listener.bind(SOCKET)
listener.listen()
StreamServer(listener, feed).start()
run(server="gevent", host="127.0.0.1", port=PORT, quiet=True, backlog=4096)
