"""`relay top`: shows the live state of a server in the terminal.

Owns the terminal while it runs, and the display of /stats. Never requests any other path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import UNSET, UnsetType

from relay.config.model import size_text
from relay.errors import RelayError
from relay.extras import missing_extra, need_httpx
from relay.telemetry.stats_schema import ServerStats, SlowStream, SourceStats, UpstreamStats, WorkerStats, from_json

if TYPE_CHECKING:
    import httpx
    from rich.console import RenderableType
    from rich.table import Table

TOPICS_MAX = 10
"""Most topics shown, by number of subscribers."""
TIMEOUT_S = 5.0
KEYS_BYTES_MAX = 1024
"""Most bytes of keyboard input per read."""
HEAD_LINES = 2
"""Lines above the figures: the server's version and state, and the current problem."""

Row = tuple[object, ...]
Columns = tuple[str, ...]

_WORKERS: Columns = ("worker", "streams", "lagging", "deliveries/s", "link lag", "")
_SOURCES: Columns = ("source", "events", "errors", "lost", "state")
_TOPICS: Columns = ("topic", "subscribers", "retained")
_SLOWEST: Columns = ("slowest streams", "topics", "policy", "lag")


@click.command(
    short_help="Show the live state of a server.", epilog="Example: relay top http://127.0.0.1:8080"
)
@click.argument("url", default="http://127.0.0.1:8080")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between requests.",
)
@click.option("--once", is_flag=True, help="Print the state once and exit. Rates are means since the start.")
@click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust with https.  [default: the system's]")
def top(url: str, interval: float, once: bool, ca: str | None) -> int:
    """Show streams, rates, lag, policy actions and the slowest streams of the server at URL. `q` quits."""
    from relay.client.target import endpoint, tls_context

    need_httpx("client")
    try:
        import rich  # noqa: F401
    except ImportError:
        raise RelayError(f"relay top needs rich, which is not installed; {missing_extra('client')}") from None
    import httpx

    async def run() -> int:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=tls_context(ca)) as client:
            return await _show(client, endpoint(url, "/stats"), None if once or not sys.stdout.isatty() else interval)

    return asyncio.run(run())


async def _show(client: httpx.AsyncClient, address: httpx.URL, interval: float | None) -> int:
    """Redraw the display at each interval until `q` or a signal. Without an interval, print it once."""
    from rich.console import Console
    from rich.live import Live

    if interval is not None:
        # rich prefers these variables to the size of the terminal, and they do not follow its changes.
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
    console = Console()
    stats = await fetch(client, address)
    if interval is None:
        console.print(render(stats, None))
        return 0
    before: ServerStats | None = None
    problem = ""

    def draw() -> None:
        live.update(render(stats, before, console.height, problem), refresh=True)

    async def poll() -> None:
        nonlocal stats, before, problem
        while True:
            await asyncio.sleep(interval)
            try:
                before, stats, problem = stats, await fetch(client, address), ""
            except RelayError as error:
                problem = f"{error}; trying again"
            draw()

    stopped = asyncio.Event()
    with (
        Live(console=console, screen=True, auto_refresh=False) as live,
        _signals({signal.SIGINT: stopped.set, signal.SIGTERM: stopped.set, signal.SIGHUP: stopped.set,
                  signal.SIGWINCH: draw}),
        _keys(stopped.set),
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
def _keys(quit: Callable[[], None]) -> Iterator[None]:
    """Call `quit` when the user types `q` or the terminal closes. Turn off echo and line buffering meanwhile."""
    descriptor = sys.stdin.fileno() if sys.stdin is not None else -1
    if descriptor < 0 or not os.isatty(descriptor):
        yield
        return

    def read() -> None:
        try:
            typed = os.read(descriptor, KEYS_BYTES_MAX)
        except OSError:  # EIO: the terminal was closed
            typed = b""
        if not typed or b"q" in typed.lower():
            loop.remove_reader(descriptor)
            quit()

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

    try:
        response = await client.get(address)
        response.raise_for_status()
        stats = from_json(response.content)
    except httpx.HTTPError as error:
        raise RelayError(f"{address}: {error or type(error).__name__}") from None
    except msgspec.MsgspecError:
        raise RelayError(f"{address}: the response is not from a relay") from None
    if not stats.version:
        raise RelayError(f"{address}: the response is not from a relay")
    return stats


def render(
    stats: ServerStats, before: ServerStats | None, height: int | None = None, problem: str = ""
) -> RenderableType:
    """Build the display.

    Args:
        stats: the current statistics.
        before: the previous statistics, for rates. If None, or if the server has restarted since, rates are means since
            the start.
        height: lines of the terminal, which limit the display; None for no limit.
        problem: the reason why the statistics are out of date; empty if they are current.
    """
    from rich.console import Group
    from rich.text import Text

    if before is None or before.uptime_s >= stats.uptime_s:
        before = ServerStats()
    head = Text.assemble(
        ("relay ", "bold"),
        f"{stats.version}  engine {stats.engine or '?'}  ",
        f"up {_span(stats.uptime_s)}  ",
        ("ready", "green") if stats.ready else ("not ready", "bold red"),
        "" if height is None else "  (q quits)",
        no_wrap=True,
        overflow="ellipsis",
    )
    figures = _figures(stats, before)
    tables = [(_WORKERS, _workers(stats.workers, before))] if stats.workers else []
    tables += [(_SOURCES, _sources(stats.sources))] if stats.sources else []
    tables += [(_TOPICS, _topics(stats)), (_SLOWEST, _slowest(stats))]
    lengths = [len(rows) for _, rows in tables]
    if height is not None:
        # A blank line and a header precede the rows of each table.
        lengths = share(lengths, height - HEAD_LINES - figures.row_count - 2 * len(tables))
    parts: list[RenderableType] = [head, Text(_clean(problem), "red", no_wrap=True, overflow="ellipsis"), figures]
    for (columns, rows), length in zip(tables, lengths, strict=True):
        parts += [Text(), _table(columns, rows[:length])]
    return Group(*parts)


def share(wanted: Sequence[int], room: int) -> list[int]:
    """Divide `room` lines among tables, one line each in turn. No table receives more than it wants."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for place, most in enumerate(wanted):
            if given[place] < most and room > 0:
                given[place] += 1
                room -= 1
    return given


def _figures(stats: ServerStats, before: ServerStats) -> Table:
    """Build the table of figures: pairs of name and value."""
    log, elapsed_s = stats.log, stats.uptime_s - before.uptime_s
    fill = log.bytes / (log.bytes_max or 1)
    rows = [
        ("streams", f"{stats.streams:,}", "events/s", _rate(stats.events - before.events, elapsed_s)),
        ("lagging", f"{stats.lagging:,}", "deliveries/s", _rate(stats.deliveries - before.deliveries, elapsed_s)),
        (
            "most lag",
            _lag(stats.slowest[0]) if stats.slowest else "none",
            "bytes/s",
            _rate(stats.bytes - before.bytes, elapsed_s),
        ),
        ("log", f"{log.events:,} events", "log fill", f"{fill:.0%} of {_size(log.bytes_max)}"),
        ("policies acted", _counts(stats.policy_actions) or "never", "closed", _counts(stats.closes) or "none"),
    ]
    if stats.upstream:
        rows.append(("upstream", _state(stats.upstream), "breaks", f"{stats.upstream.breaks:,}"))
    if stats.cluster:
        state = "connected" if stats.cluster.connected else stats.cluster.error or "not connected"
        rows.append(("cluster", state, "cluster lag", f"{stats.cluster.lag_events:,} events"))
    return _table(("", "", "", ""), rows)


def _counts(counts: Mapping[str, int]) -> str:
    """Format the counts that are not zero."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _state(upstream: UpstreamStats) -> str:
    """Describe the connection to the upstream."""
    return str(upstream.ended or ("linked" if upstream.linked else upstream.error or "not linked"))


def _topics(stats: ServerStats) -> list[Row]:
    """Return a row for each topic, in order of subscribers, most first."""
    return [(topic.topic, f"{topic.subscribers:,}", f"{topic.retained:,}") for topic in stats.topics[:TOPICS_MAX]]


def _sources(sources: Sequence[SourceStats]) -> list[Row]:
    """Return a row for each source that reads a feed."""
    return [
        (
            each.source,
            f"{each.events:,}",
            f"{each.errors:,}",
            f"{each.lost:,}",
            each.ended or ("connected" if each.connected else each.error or "not connected"),
        )
        for each in sources
    ]


def _workers(workers: Sequence[WorkerStats], before: ServerStats) -> list[Row]:
    """Return a row for each worker. Rates are means since its previous statistics, or since its start."""
    known = {worker.worker: worker for worker in before.workers or ()}
    rows: list[Row] = []
    for worker in workers:
        earlier = known.get(worker.worker, WorkerStats())
        if _known(earlier.uptime_s) >= _known(worker.uptime_s):
            earlier = WorkerStats()
        elapsed_s = _known(worker.uptime_s) - _known(earlier.uptime_s)
        rows.append(
            (
                worker.worker,
                f"{_known(worker.streams):,}",
                f"{_known(worker.lagging):,}",
                _rate(_known(worker.deliveries) - _known(earlier.deliveries), elapsed_s),
                f"{worker.link_lag_events:,} events",
                "" if worker.answered else "does not answer",
            )
        )
    return rows


def _known(number: float | UnsetType) -> float:
    """Return a number; 0 if it is absent."""
    return 0 if number is UNSET else number


def _slowest(stats: ServerStats) -> list[Row]:
    """Return a row for each of the streams that lag most."""
    return [
        (
            stream.address,
            ", ".join(stream.topics[:3]) + (", …" if len(stream.topics) > 3 else ""),
            stream.policy,
            _lag(stream),
        )
        for stream in stats.slowest
    ]


def _table(columns: Columns, rows: Sequence[Row]) -> Table:
    """Build a table. Values that exceed the width of the terminal are truncated."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=any(columns), pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(_clean(value)) for value in row))
    return table


def _clean(value: object) -> str:
    """Replace each unprintable character of a value with `?`."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _rate(count: float, elapsed_s: float) -> str:
    """Return the mean rate per second of a count."""
    rate = count / elapsed_s if elapsed_s > 0 else 0.0
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _lag(stream: SlowStream) -> str:
    """Return a stream's lag in events, bytes and seconds."""
    if not stream.lag_events:
        return "none"
    return f"{stream.lag_events:,} events, {_size(stream.lag_bytes)}, {stream.lag_s:.1f} s"


def _size(size: int) -> str:
    """Format a number of bytes: a whole number of its unit if exact, otherwise with one decimal."""
    exact = size_text(size)
    if not exact.isdigit() or size < 1024:
        return exact if not exact.isdigit() else f"{exact} B"
    return f"{size / 1024:,.1f}KiB" if size < 1024**2 else f"{size / 1024**2:,.1f}MiB"


def _span(seconds: float) -> str:
    """Format a time in its two largest units."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest_s}s"
