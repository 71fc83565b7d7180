"""Run a cluster of two nodes, kill both in turn, and count the events that a client misses: `make cluster-demo`.

The client reads from one node. When that node is killed, it resumes at the other node with its last id. The publisher
sends a batch again, with the same `dedup` keys, until a node has acknowledged it. The program ends by itself. It exits
with 0 if the client has received each acknowledged event exactly once, otherwise with 1.

It starts a Redis, the nodes and a publisher. Needs redis-server (`make brokers`) and
`pip install 'relay-sse[client,redis]'`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections import Counter
from collections.abc import AsyncIterator

import httpx

TOPIC = "demo"
TOKEN = secrets.token_urlsafe(24)
BATCH = 20
BATCHES_PER_S = 10
POLL_S = 0.05
READY_S = 30.0
SILENCE_S = 5.0
"""Time without data after which the client changes nodes. Heartbeats arrive each second."""


class Node:
    """One relay, which can be killed and started again on the same port."""

    def __init__(self, name: str, broker: str) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{free_port()}"
        self._command = [
            *(sys.executable, "-m", "relay", "serve", "--listen", self.url.removeprefix("http://")),
            *("--cluster", broker, "--heartbeat", "1s", "--log-level", "error"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running node."""
        assert self._process is not None, "the node is not running"
        return self._process.pid

    async def start(self, client: httpx.AsyncClient) -> None:
        """Start the process, and wait until it is ready."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("RELAY_")}
        self._process = subprocess.Popen(self._command, env=environment | {"RELAY_PUBLISH_TOKEN": TOKEN})
        async with asyncio.timeout(READY_S):
            while True:
                if self._process.poll() is not None:
                    raise SystemExit(f"cluster demo: node {self.name} exited with {self._process.returncode}")
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(POLL_S)

    def kill(self) -> None:
        """End the process at once with SIGKILL, without a drain."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Subscriber:
    """Follows the topic, moves to the other node after a lost connection, and counts the events."""

    def __init__(self, nodes: list[Node]) -> None:
        self.received: Counter[int] = Counter()
        self.gaps = 0
        self.moves = 0
        self.node = nodes[0]
        self._nodes = nodes
        self._last_id = ""

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Read until the task is cancelled."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                await self._read(client)
            self.moves += 1
            self.node = self._nodes[self.moves % len(self._nodes)]
            await asyncio.sleep(POLL_S)

    async def _read(self, client: httpx.AsyncClient) -> None:
        headers = {"Accept": "application/x-ndjson"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        url = f"{self.node.url}/events?topic={TOPIC}&since=earliest"
        async with client.stream("GET", url, headers=headers, timeout=SILENCE_S) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                event = json.loads(line) if line else {}
                self._last_id = event.get("id") or self._last_id
                if event.get("event") == "relay.gap":
                    self.gaps += 1
                elif event.get("topic") == TOPIC:
                    self.received[event["data"]] += 1


class Publisher:
    """Publishes numbered events at any node that accepts them."""

    def __init__(self, nodes: list[Node]) -> None:
        self.acknowledged = 0
        self._nodes = nodes
        self._run = secrets.token_hex(4)

    async def publish(self, client: httpx.AsyncClient, seconds: float) -> None:
        """Publish for this time, then wait until all events are acknowledged."""
        due_s = time.monotonic()
        until_s = due_s + seconds
        while due_s < until_s:
            numbers = range(self.acknowledged + 1, self.acknowledged + BATCH + 1)
            events = [{"topic": TOPIC, "data": number, "dedup": f"{self._run}-{number}"} for number in numbers]
            while not await self._accepts(client, events):
                self._nodes.append(self._nodes.pop(0))
                await asyncio.sleep(POLL_S)
            self.acknowledged += BATCH
            due_s += 1 / BATCHES_PER_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _accepts(self, client: httpx.AsyncClient, events: list[dict[str, object]]) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            headers = {"Authorization": f"Bearer {TOKEN}"}
            answer = await client.post(f"{self._nodes[0].url}/publish", json=events, headers=headers, timeout=SILENCE_S)
            return answer.status_code == 200
        return False


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def redis() -> AsyncIterator[str]:
    """Run a Redis, and yield its address."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("cluster demo: redis-server is not installed: make brokers installs it")
    with tempfile.TemporaryDirectory(prefix="relay-cluster-demo-") as folder:
        port = free_port()
        flags = ("--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes")
        process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def say(text: str) -> None:
    """Print a line at once."""
    print(f"cluster demo: {text}", flush=True)


async def kill_in_turn(client: httpx.AsyncClient, nodes: list[Node], subscriber: Subscriber, seconds: float) -> None:
    """Kill the node that serves the client, start it again, and do the same with the other node."""
    for _ in range(2):
        await asyncio.sleep(seconds / 5)
        node = subscriber.node
        say(f"kill -9 {node.pid}: node {node.name}, which serves the client")
        node.kill()
        await asyncio.sleep(seconds / 5)
        say(f"the client reads from node {subscriber.node.name}; node {node.name} starts again")
        await node.start(client)


async def watch(publisher: Publisher, subscriber: Subscriber) -> None:
    """Print the counts each second."""
    while True:
        await asyncio.sleep(1)
        counts = f"acknowledged {publisher.acknowledged}, received {subscriber.received.total()}"
        say(f"{counts} from node {subscriber.node.name}")


async def run(seconds: float, show: bool) -> int:
    """Run the demonstration, and return the exit code."""
    async with redis() as broker, httpx.AsyncClient(trust_env=False) as client:
        nodes = [Node(name, broker) for name in "AB"]
        subscriber, publisher = Subscriber(list(nodes)), Publisher(list(nodes))
        tasks = []
        try:
            say(f"the broker is {broker}")
            for node in nodes:
                await node.start(client)
                page = f"{node.url}/?topic={TOPIC}"
                say(f"node {node.name}: open {page}")
                if show:
                    webbrowser.open(page)
            killing = asyncio.create_task(kill_in_turn(client, nodes, subscriber, seconds))
            tasks = [killing, *map(asyncio.create_task, (subscriber.follow(client), watch(publisher, subscriber)))]
            await publisher.publish(client, seconds)
            await killing
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE_S):
                    while len(subscriber.received) < publisher.acknowledged:
                        await asyncio.sleep(POLL_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for node in nodes:
                node.kill()
    return report(publisher, subscriber)


def report(publisher: Publisher, subscriber: Subscriber) -> int:
    """Print the result, and return the exit code."""
    missed = publisher.acknowledged - len(subscriber.received)
    doubled = subscriber.received.total() - len(subscriber.received)
    say(f"acknowledged {publisher.acknowledged}, received {subscriber.received.total()}, moves {subscriber.moves}")
    say(f"missed {missed}, doubled {doubled}, gaps {subscriber.gaps}")
    return 1 if missed or doubled or subscriber.gaps else 0


async def main() -> int:
    """Read the arguments, and run until the end or a signal."""
    parser = argparse.ArgumentParser(description="Kill the nodes of a cluster in turn, and count the missed events.")
    parser.add_argument("--seconds", type=float, default=16.0, help="time for which events are published (16)")
    parser.add_argument("--open", action="store_true", help="open the page of each node in a browser")
    options = parser.parse_args()
    running = asyncio.ensure_future(run(options.seconds, options.open))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    return await running


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(asyncio.run(main()))
    sys.exit(1)
