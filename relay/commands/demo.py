"""`relay demo`: runs a server with a live sample feed, and prints the address of the page that shows it.

Owns the sample events and the server process. The server stores its history in a file, and the demo restarts a server
that a signal has killed. A user can therefore run `kill -9` and see a resume without loss. The feed uses the server's
Unix socket, like any other feeder. Never serves streams itself.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click

from relay.client.publish import Publisher
from relay.commands.prove import STREAMS_MAX, Proof
from relay.commands.prove import prove as run_proof
from relay.commands.server_process import start_server
from relay.config.formats import parse_address
from relay.config.model import Config
from relay.errors import ConfigError, RelayError
from relay.event import Event
from relay.process.listeners import listen as open_listener
from relay.telemetry import logs

LISTEN = "127.0.0.1:8080"
LOOPBACK = {"localhost": "localhost", "127.0.0.1": "127.0.0.1", "::1": "[::1]"}
"""Hosts that only this machine can reach, and their names in a request."""
RATE = 20.0
PROVE_RATE = 100.0
PROVE_PAUSES_S = 12.0
PORTS_TRIED = 10
"""Number of ports to try if the user gives no address."""
TOPICS = ("prices.*", "chat.lobby", "metrics.load")
START_TIMEOUT_S = 10.0
POLL_S = 0.05
"""Time between two attempts to connect to the server while it starts."""
STOP_TIMEOUT_S = 3.0
"""Longest wait for the server to exit. Its `drain-timeout` is 1 s."""
HISTORY_EVENTS = 100_000
"""Events that the server retains: more than the fastest feed publishes while a page reconnects."""

_PRICES = {"ACME": 120.0, "GLOBEX": 48.5, "INITECH": 9.75, "UMBRELLA": 310.0}
_NAMES = ("Ada", "Grace", "Linus", "Margaret", "Ken")
_LINES = (
    "did anybody see that price?",
    "pull the plug and plug it in again: nothing is lost",
    "ten thousand streams, one log",
    "brb",
    "try two tabs side by side",
    "who is slow today?",
)


def sample_events(seed: int | None, clock_s: Iterator[float]) -> Iterator[Event]:
    """Generate an endless sequence of sample events: prices, chat messages and a load.

    Args:
        seed: seed of the random events; None gives different events each time.
        clock_s: time of each event, in seconds since 1970. The data contains it as `t`, in ms.
    """
    draw = random.Random(seed)  # noqa: S311
    prices = dict(_PRICES)
    load = 0.4
    for now_s in clock_s:
        t = round(now_s * 1000)
        kind = draw.random()
        if kind < 0.75:
            symbol = draw.choice(list(prices))
            prices[symbol] = max(1.0, prices[symbol] * (1 + draw.gauss(0, 0.004)))
            data = {"symbol": symbol, "price": round(prices[symbol], 2), "t": t}
            yield Event(topic=f"prices.{symbol}", event="price", key=symbol, data=data)
        elif kind < 0.85:
            line = {"from": draw.choice(_NAMES), "text": draw.choice(_LINES), "t": t}
            yield Event(topic="chat.lobby", data=line)
        else:
            load = min(max(load + draw.gauss(0, 0.05), 0.0), 1.0)
            yield Event(
                topic="metrics.load", event="metric", key="load", data={"load": round(load, 3), "t": t}
            )


@click.command(
    short_help="Run a server with a live sample feed.",
    epilog="Example: relay demo --listen 0.0.0.0:8080 --rate 100",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help=f"Address to serve; port 0 takes any free port.  [default: {LISTEN} or the next free port]",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 10_000),
    help=f"Events per second.  [default: {RATE:g}; with --prove {PROVE_RATE:g}]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    help=f"Stop after this time. With --prove: time without faults.  [default: run until Ctrl-C; with --prove "
    f"{PROVE_PAUSES_S:g}]",
)
@click.option(
    "--data",
    metavar="FILE",
    help="File of the history. The demo does not remove it.  [default: a temporary file]",
)
@click.option(
    "--prove",
    is_flag=True,
    help="Check the promise of relay: kill, upgrade and disturb a server with thousands of clients, and print which "
    "events they missed or received twice.",
)
@click.option(
    "--streams",
    type=click.IntRange(3, STREAMS_MAX),
    default=10_000,
    show_default=True,
    help="Number of clients with --prove.",
)
def demo(
    listen: str | None, rate: float | None, seconds: float | None, data: str | None, prove: bool, streams: int
) -> int:
    """Run a server with a live sample feed, and print the address of a page that shows it.

    With --prove, run a check instead, which takes less than a minute. The exit code is 1 if a client missed an event
    without a report, or received one twice.
    """
    logs.set_up("error", "text", sys.stderr)  # The demo itself reports that the server was killed.
    if prove:
        if data is not None:
            raise click.UsageError("--prove uses a temporary file; omit --data")
        proof = Proof(streams, rate or PROVE_RATE, PROVE_PAUSES_S if seconds is None else seconds)
        return asyncio.run(run_proof(proof, *choose_address(listen or "127.0.0.1:0")))
    return asyncio.run(_run(*choose_address(listen), rate or RATE, seconds, data))


def choose_address(listen: str | None) -> tuple[str, int]:
    """Return the host and port to serve: the address of the user, or the first free port from the default on.

    Raises:
        ConfigError: the address is malformed, in use, or not an address of this machine.
    """
    if listen is not None:
        return _check_address(listen)
    host, first = parse_address(LISTEN)
    for port in range(first, first + PORTS_TRIED - 1):
        try:
            return _check_address(f"{host}:{port}")
        except ConfigError:
            print(f"relay demo: port {port} is in use; trying {port + 1}", flush=True)
    return _check_address(f"{host}:{first + PORTS_TRIED - 1}")


def _check_address(listen: str) -> tuple[str, int]:
    """Check that an address is free, and return its host and port.

    Raises:
        ConfigError: the address is malformed, in use, or not an address of this machine.
    """
    try:
        host, _ = parse_address(listen)
    except ValueError as error:
        raise ConfigError(f"listen: {error}") from None
    try:
        with open_listener(listen, Config()) as listener:
            return host, listener.getsockname()[1]
    except ConfigError as error:
        advice = "choose another address: relay demo --listen 127.0.0.1:0 takes a free port"
        raise ConfigError(f"{error}; {advice}") from None


async def _run(host: str, port: int, rate: float, seconds: float | None, data: str | None) -> int:
    """Run the server and the feed until a signal arrives, the time is over, or one of the two ends."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        server = _Server(host, port, str(Path(folder, "relay.sock")), data or str(Path(folder, "relay.db")))
        serving = asyncio.create_task(server.keep())
        feed = asyncio.create_task(_feed(server, rate, data is not None))
        stop = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait((serving, feed, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                return serving.result()
            if feed.done():
                feed.result()
            return 0
        finally:
            for task in (feed, stop, serving):
                task.cancel()
            await asyncio.gather(feed, stop, serving, return_exceptions=True)


class _Server:
    """Runs the server process of the demo, and restarts it each time a signal kills it.

    Args:
        host: host to listen on; empty for all addresses.
        port: port to listen on.
        path: path of the Unix socket for the feed.
        data: path of the history file.
    """

    def __init__(self, host: str, port: int, path: str, data: str) -> None:
        self.path = path
        self.data = data
        self.pid = 0
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '::') else shown}:{port}"
        self._command: tuple[str, ...] = (
            "--listen", f"{shown}:{port}", "--unix", path, "--stdin", "ndjson", "--exit-on-eof",
            "--data", data, "--durable", "--history-events", str(HISTORY_EVENTS),
            # Pages of every origin may read, because the events are samples. Publishing needs a token.
            "--cors-origin", "*",
            "--drain-timeout", "1s", "--log-level", "warning",
        )  # fmt: skip
        if host in LOOPBACK:
            # A request with a foreign name for this machine is an attack: DNS rebinding.
            self._command += tuple(f"--allowed-host={name}" for name in LOOPBACK.values())

    async def keep(self) -> int:
        """Run the server, and restart it when a signal kills it. Return its exit code if it exits without a signal."""
        while True:
            process = await self._start()
            if self.pid:
                print(f"relay demo: the server was killed; restarted it as process {process.pid}", flush=True)
            self.pid = process.pid
            try:
                code = await process.wait()
            finally:
                await _stop(process)
            if code >= 0:
                return code

    async def _start(self) -> asyncio.subprocess.Process:
        """Start the process. Its standard input is a pipe from this process, so it exits if this process is killed."""
        return await start_server(self._command, stdin=asyncio.subprocess.PIPE)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM to a process. If it does not exit in time, kill it."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _feed(server: _Server, rate: float, kept: bool) -> None:
    """Publish the sample events at a steady rate. The publisher sends events again if the server is killed.

    Args:
        server: the server, which may restart at any time.
        rate: events per second.
        kept: whether the history file remains after the demo.

    Raises:
        RelayError: the server does not start, or rejects an event.
    """
    await _wait_for(server.path)
    _greet(server, kept)
    sent: deque[asyncio.Future[str]] = deque()
    async with Publisher(server.path, resend_s_max=START_TIMEOUT_S) as publisher:
        due_s = time.monotonic()
        for event in sample_events(None, iter(time.time, None)):
            sent.append(await publisher.send(event))
            while sent and sent[0].done():
                sent.popleft().result()
            due_s += 1 / rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))


async def _wait_for(path: str) -> None:
    """Wait until the server accepts feeders.

    Raises:
        RelayError: the server does not start in time.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    async with Publisher(path):
                        return
                except RelayError:
                    await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise RelayError(f"the server did not start within {START_TIMEOUT_S:.0f} s") from None


def _greet(server: _Server, kept: bool) -> None:
    """Print the address of the page, and commands to try."""
    query = "&".join(f"topic={topic}" for topic in TOPICS)
    print(f"relay demo: open {server.address}/?{query}", flush=True)
    print(f"       or run: curl -N '{server.address}/events?{query}'", flush=True)
    print(f"       to try: kill -9 {server.pid}   # the page resumes, and nothing is lost", flush=True)
    print(f"      history: {server.data}{'' if kept else ', a temporary file; --data FILE keeps it'}", flush=True)
    print("      to stop: Ctrl-C", flush=True)
