"""`relay top`: shows the live state of one or several nodes in the terminal.

Owns the terminal while it runs, and the requests for /stats. Never requests any other path.
`relay.commands.top_display` builds the display.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import click
import msgspec

from relay.commands.top_display import ORDERS, NodeState, render
from relay.errors import RelayError
from relay.extras import missing_extra, need_httpx
from relay.telemetry.stats_schema import ServerStats, from_json

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 5.0
KEYS_BYTES_MAX = 1024
"""Most bytes of keyboard input per read."""


@click.command(
    short_help="Show the live state of one or several servers.",
    epilog="Example: relay top http://127.0.0.1:8080 --sort rate",
)
@click.argument("urls", nargs=-1, metavar="[URL]…")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between requests.",
)
@click.option("--once", is_flag=True, help="Print the state once and exit. Rates are means since the start.")
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(ORDERS.values())),
    default="streams",
    show_default=True,
    help="Order of the rows.",
)
@click.option(
    "--token", envvar="RELAY_ADMIN_TOKEN", help="Admin token of the servers.  [default: RELAY_ADMIN_TOKEN]"
)
@click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust with https.  [default: the system's]")
def top(urls: tuple[str, ...], interval: float, once: bool, order: str, token: str | None, ca: str | None) -> int:
    """Show streams, rates, lag, policy actions, topics and the slowest streams of the server at URL.

    With several URLs, a table shows each node, and the other tables combine all nodes. The default URL is
    http://127.0.0.1:8080. Keys: `s` sorts by streams, `r` by rate, `l` by lag, `n` by name; the same key again reverses
    the order. `q` quits.
    """
    from relay.client.authorization import bearer
    from relay.client.target import endpoint, tls_context

    need_httpx("client")
    try:
        import rich  # noqa: F401
    except ImportError:
        raise RelayError(f"relay top needs rich, which is not installed; {missing_extra('client')}") from None
    import httpx

    async def run() -> int:
        addresses = [endpoint(url, "/stats") for url in urls or ("http://127.0.0.1:8080",)]
        headers = {"Authorization": bearer(token)} if token else {}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=tls_context(ca), headers=headers) as client:
            view = _View(client, addresses, order)
            return await view.print() if once or not sys.stdout.isatty() else await view.follow(interval)

    return asyncio.run(run())


class _View:
    """The nodes and the sort order.

    Args:
        client: requests /stats.
        addresses: of /stats, one for each node.
        order: a value of `ORDERS`.
    """

    def __init__(self, client: httpx.AsyncClient, addresses: list[httpx.URL], order: str) -> None:
        self._client = client
        self._addresses = addresses
        self._order = order
        self._reverse = False
        self._nodes = [NodeState(each.netloc.decode("ascii")) for each in addresses]

    async def print(self) -> int:
        """Print the state once."""
        from rich.console import Console

        await self._ask()
        self._check()
        Console().print(render(self._nodes, None, self._order))
        return 0

    async def follow(self, interval: float) -> int:
        """Redraw the display at each interval until `q` or a signal."""
        from rich.console import Console
        from rich.live import Live

        # rich prefers these variables to the size of the terminal, and they do not follow its changes.
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        console = Console()
        await self._ask()
        self._check()

        def draw() -> None:
            live.update(render(self._nodes, console.height, self._order, reverse=self._reverse), refresh=True)

        def press(key: str) -> None:
            self._sort(ORDERS[key])
            draw()

        async def poll() -> None:
            while True:
                await asyncio.sleep(interval)
                await self._ask()
                draw()

        stopped = asyncio.Event()
        with (
            Live(console=console, screen=True, auto_refresh=False) as live,
            _signals({signal.SIGINT: stopped.set, signal.SIGTERM: stopped.set, signal.SIGHUP: stopped.set,
                      signal.SIGWINCH: draw}),
            _keys(stopped.set, press),
        ):  # fmt: skip
            draw()
            tasks = [asyncio.create_task(poll()), asyncio.create_task(stopped.wait())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        return 0

    def _sort(self, order: str) -> None:
        """Sort by another order; reverse the current one."""
        self._reverse = order == self._order and not self._reverse
        self._order = order

    async def _ask(self) -> None:
        """Request the statistics of all nodes at the same time."""
        await asyncio.gather(*(self._ask_one(*each) for each in zip(self._nodes, self._addresses, strict=True)))

    async def _ask_one(self, node: NodeState, address: httpx.URL) -> None:
        try:
            stats = await fetch(self._client, address)
        except RelayError as error:
            node.problem = str(error)
        else:
            node.before, node.stats, node.problem = node.stats, stats, ""

    def _check(self) -> None:
        """Raise RelayError if no node has answered."""
        if all(each.stats is None for each in self._nodes):
            raise RelayError("; ".join(each.problem for each in self._nodes))


@contextlib.contextmanager
def _signals(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Handle signals in the event loop, so that the terminal is restored after a signal."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _keys(quit: Callable[[], None], press: Callable[[str], None]) -> Iterator[None]:
    """Call `quit` when the user types `q` or the terminal closes, and `press` for the key of each sort order.

    Echo and line buffering are off meanwhile.
    """
    descriptor = sys.stdin.fileno() if sys.stdin is not None else -1
    if descriptor < 0 or not os.isatty(descriptor):
        yield
        return

    def read() -> None:
        try:
            typed = os.read(descriptor, KEYS_BYTES_MAX)
        except OSError:  # EIO: the terminal was closed
            typed = b""
        keys = typed.decode("ascii", "replace").lower()
        if not typed or "q" in keys:
            loop.remove_reader(descriptor)
            quit()
            return
        for key in keys:
            if key in ORDERS:
                press(key)

    loop = asyncio.get_running_loop()
    modes = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        with contextlib.suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(descriptor, termios.TCSADRAIN, modes)


async def fetch(client: httpx.AsyncClient, address: httpx.URL) -> ServerStats:
    """Request /stats.

    Raises:
        RelayError: the server does not respond, or is not a relay.
    """
    import httpx

    from relay.client.opening import certificate_fault

    try:
        response = await client.get(address)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise RelayError(f"{address}: it needs the admin token; set --token or RELAY_ADMIN_TOKEN")
        response.raise_for_status()
        stats = from_json(response.content)
    except httpx.HTTPError as error:
        reason = "; ".join(certificate_fault(error) or ()) or str(error) or type(error).__name__
        raise RelayError(f"{address}: {reason}") from None
    except msgspec.MsgspecError:
        raise RelayError(f"{address}: the response is not from a relay") from None
    if not stats.version:
        raise RelayError(f"{address}: the response is not from a relay")
    return stats
