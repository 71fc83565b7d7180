"""`relay demo`: a server of its own with a live sample feed, and where to watch it.

Owns the sample events, and the life of the server it starts. The feed goes in where every feeder's would,
through the server's Unix socket.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from relay.config import SETTINGS, parse_address
from relay.errors import ConfigError, RelayError
from relay.event import Event
from relay.publisher import Publisher
from relay.settings import variable

TOPICS = ("prices.*", "chat.lobby", "metrics.load")
START_TIMEOUT_S = 10.0
POLL_S = 0.05
"""How often it is looked whether the server is there."""
STOP_TIMEOUT_S = 3.0
"""What the server gets to drain, for which it takes at most a second."""

_SETTINGS = frozenset(map(variable, SETTINGS)) | {"RELAY_CONFIG"}
"""What would make another server of the demo's."""

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
    """Make up events for ever: prices that wander, a chat, a load.

    Args:
        seed: the same seed makes the same events; None for ever others.
        clock_s: gives the time of each event, in seconds since 1970; the data has it as `t`, in ms.
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
    "--listen", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", help="Address to serve."
)
@click.option(
    "--rate", type=click.FloatRange(0.1, 10_000), default=20.0, show_default=True, help="Events a second."
)
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop by itself after so long; else at Ctrl-C.")
def demo(listen: str, rate: float, seconds: float | None) -> int:
    """Run a server with a live sample feed, and say where to watch it."""
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise ConfigError(f"listen: {error}") from None
    if port == 0:
        raise ConfigError("listen: the demo needs a port to print")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '::') else shown}:{port}"
    return asyncio.run(_run(listen, address, rate, seconds))


async def _run(listen: str, address: str, rate: float, seconds: float | None) -> int:
    """Run the server and feed it until a signal, the end of the time, or the end of either."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        path = str(Path(folder, "relay.sock"))
        server = await _start_server(listen, path)
        tasks = {
            "server": asyncio.create_task(server.wait()),
            "feed": asyncio.create_task(_feed(path, address, rate)),
            "stop": asyncio.create_task(stopped.wait()),
        }
        try:
            await asyncio.wait(tasks.values(), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if tasks["server"].done():
                return server.returncode or 0
            if tasks["feed"].done():
                tasks["feed"].result()
            return 0
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            await _stop_server(server)


async def _start_server(listen: str, path: str) -> asyncio.subprocess.Process:
    """Start `relay serve`; its standard input is ours, so that it also ends if we end without a word."""
    command = (
        "serve", "--listen", listen, "--unix", path, "--stdin", "ndjson", "--exit-on-eof",
        "--drain-timeout", "1s", "--log-level", "warning",
    )  # fmt: skip
    environment = {name: text for name, text in os.environ.items() if name not in _SETTINGS}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "relay",
        *command,
        stdin=asyncio.subprocess.PIPE,
        process_group=0,  # Ctrl-C is for us, and we tell it.
        env=environment,
    )


async def _stop_server(server: asyncio.subprocess.Process) -> None:
    """Let the server drain; make an end if it does not."""
    if server.returncode is not None:
        return
    server.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await server.wait()
    except TimeoutError:
        server.kill()
        await server.wait()


async def _feed(path: str, address: str, rate: float) -> None:
    """Publish the sample events at a steady rate, once the server is there."""
    await _wait_for(path)
    events = sample_events(None, iter(time.time, None))
    async with Publisher(path) as publisher:
        _greet(address)
        due_s = time.monotonic()
        for event in events:
            await publisher.publish(event)
            due_s += 1 / rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))


async def _wait_for(path: str) -> None:
    """Wait until the server takes feeders.

    Raises:
        RelayError: it does not come up.
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


def _greet(address: str) -> None:
    """Say where to look."""
    query = "&".join(f"topic={topic}" for topic in TOPICS)
    print(f"relay demo: open {address}/?{query}", flush=True)
    print(f"       or run: curl -N '{address}/events?{query}'", flush=True)
    print("      to stop: Ctrl-C", flush=True)
