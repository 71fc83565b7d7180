"""`relay top`: what a server is doing, live in the terminal.

Owns the picture of /stats; never asks for anything else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from relay.config import size_text
from relay.errors import RelayError

if TYPE_CHECKING:
    import httpx
    from rich.console import RenderableType
    from rich.table import Table

TOPICS_MAX = 10
"""Topics shown, those with most subscribers."""
TIMEOUT_S = 5.0

Stats = Mapping[str, Any]


@click.command(
    short_help="Show what a server is doing, live.", epilog="Example: relay top http://127.0.0.1:8080"
)
@click.argument("url", default="http://127.0.0.1:8080")
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds.")
@click.option(
    "--once", is_flag=True, help="Print one picture and leave; its rates are means since the start."
)
@click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust with https; else the system's.")
def top(url: str, interval: float, once: bool, ca: str | None) -> int:
    """Show streams, rates, lag, policy actions and the slowest streams of the server at URL."""
    from relay.publisher import endpoint, need_httpx, tls_context

    need_httpx()
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise RelayError(
            "relay top needs rich, which is not installed: pip install rich"
        ) from None
    import httpx

    address = endpoint(url, "/stats")
    console = Console()
    with httpx.Client(timeout=TIMEOUT_S, verify=tls_context(ca)) as client:
        stats = fetch(client, address)
        if once or not sys.stdout.isatty():
            console.print(render(stats, None))
            return 0
        try:
            with Live(render(stats, None), console=console, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    before = stats
                    try:
                        stats = fetch(client, address)
                    except RelayError as error:
                        live.update(Text(f"{error}; trying again", style="red"), refresh=True)
                        continue
                    live.update(render(stats, before), refresh=True)
        except KeyboardInterrupt:
            return 0


def fetch(client: httpx.Client, address: httpx.URL) -> Stats:
    """Get /stats.

    Raises:
        RelayError: there is no relay.
    """
    import httpx

    try:
        response = client.get(address)
        response.raise_for_status()
        stats = response.json()
    except httpx.HTTPError as error:
        raise RelayError(f"{address}: {error}") from None
    except ValueError:
        raise RelayError(f"{address}: the answer is not that of a relay") from None
    if not isinstance(stats, dict) or "streams" not in stats:
        raise RelayError(f"{address}: the answer is not that of a relay")
    return stats


def render(stats: Stats, before: Stats | None) -> RenderableType:
    """Draw one picture.

    Args:
        stats: of now.
        before: of the last time, which rates are taken against; None, or those of an earlier process, for
            means since the start.
    """
    from rich.console import Group
    from rich.text import Text

    if before is None or before.get("uptime_s", 0) >= stats.get("uptime_s", 0):
        before = {}
    head = Text.assemble(
        ("relay ", "bold"),
        f"{stats.get('version', '?')}  engine {stats.get('engine', '?')}  ",
        f"up {_span(stats.get('uptime_s', 0))}  ",
        ("ready", "green") if stats.get("ready") else ("not ready", "bold red"),
    )
    parts: list[RenderableType] = [head, Text(), _figures(stats, before), Text()]
    if stats.get("workers"):
        parts += [_workers(stats, before), Text()]
    return Group(*parts, _topics(stats), Text(), _slowest(stats))


def _figures(stats: Stats, before: Stats) -> Table:
    """The numbers, in pairs of name and value."""
    log = stats.get("log", {})
    share = log.get("bytes", 0) / (log.get("bytes_max") or 1)
    actions = ", ".join(
        f"{name} {count:,}" for name, count in stats.get("policy_actions", {}).items() if count
    )
    closes = ", ".join(f"{name} {count:,}" for name, count in stats.get("closes", {}).items() if count)
    slowest = stats.get("slowest") or [{}]
    table = _table(None, "", "", "", "")
    rows = [
        ("streams", f"{stats.get('streams', 0):,}", "events/s", _rate(stats, before, "events")),
        ("lagging", f"{stats.get('lagging', 0):,}", "deliveries/s", _rate(stats, before, "deliveries")),
        ("most lag", _lag(slowest[0]), "bytes/s", _rate(stats, before, "bytes")),
        (
            "log",
            f"{log.get('events', 0):,} events",
            "log fill",
            f"{share:.0%} of {_size(log.get('bytes_max', 0))}",
        ),
        ("policies acted", actions or "never", "closed", closes or "none"),
    ]
    upstream = stats.get("upstream")
    if upstream:
        state = upstream.get("ended") or ("linked" if upstream.get("linked") else "not linked")
        rows.append(("upstream", state, "breaks", f"{upstream.get('breaks', 0):,}"))
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _topics(stats: Stats) -> Table:
    """The topics with most subscribers."""
    table = _table("topics", "topic", "subscribers", "retained")
    for topic in stats.get("topics", [])[:TOPICS_MAX]:
        table.add_row(_text(topic["topic"]), f"{topic['subscribers']:,}", f"{topic['retained']:,}")
    return table


def _workers(stats: Stats, before: Stats) -> Table:
    """Each worker; rates are since its own last picture, or its start."""
    known = {worker["worker"]: worker for worker in before.get("workers", [])}
    table = _table("workers", "worker", "streams", "lagging", "deliveries/s", "link lag", "")
    for worker in stats["workers"]:
        earlier = known.get(worker["worker"], {})
        if earlier.get("uptime_s", 0) >= worker.get("uptime_s", 0):
            earlier = {}
        row = (
            worker["worker"],
            f"{worker.get('streams', 0):,}",
            f"{worker.get('lagging', 0):,}",
            _rate(worker, earlier, "deliveries"),
            f"{worker['link_lag_events']:,} events",
            "" if worker["answered"] else "does not answer",
        )
        table.add_row(*map(_text, row))
    return table


def _slowest(stats: Stats) -> Table:
    """The streams that lag most."""
    table = _table("slowest streams", "address", "topics", "policy", "lag")
    for stream in stats.get("slowest", []):
        topics = ", ".join(stream["topics"][:3]) + (", …" if len(stream["topics"]) > 3 else "")
        table.add_row(*map(_text, (stream["address"], topics, stream["policy"], _lag(stream))))
    return table


def _table(title: str | None, *columns: str) -> Table:
    """Make an empty table; the first column is left, the others too, since they mix words and numbers."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False
    )
    for column in columns:
        table.add_column(column)
    return table


def _text(value: object) -> Any:
    """Show text of others as it is: no markup, and no control characters."""
    from rich.text import Text

    return Text("".join(character if character.isprintable() else "?" for character in str(value)))


def _rate(stats: Stats, before: Stats, name: str) -> str:
    """What was counted a second since `before`."""
    elapsed_s = stats.get("uptime_s", 0) - before.get("uptime_s", 0)
    rate = (stats.get(name, 0) - before.get(name, 0)) / elapsed_s if elapsed_s > 0 else 0.0
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _lag(stream: Stats) -> str:
    """One stream's lag in every unit."""
    if not stream.get("lag_events"):
        return "none"
    return f"{stream['lag_events']:,} events, {_size(stream['lag_bytes'])}, {stream['lag_s']:.1f} s"


def _size(size: int) -> str:
    """A number of bytes, short: whole if it is, else with one digit."""
    exact = size_text(size)
    if not exact.isdigit() or size < 1024:
        return exact if not exact.isdigit() else f"{exact} B"
    return f"{size / 1024:,.1f}KiB" if size < 1024**2 else f"{size / 1024**2:,.1f}MiB"


def _span(seconds: float) -> str:
    """A time in its two largest units."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest_s}s"
