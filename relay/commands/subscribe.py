"""`relay subscribe`: prints a stream on standard output.

Owns the output. Never opens a stream itself: `relay.client.subscribe` connects, reconnects and resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import sys
from collections.abc import Iterator

import click
import msgspec

from relay.event import Event
from relay.telemetry import logs

STDOUT = 1

_encode = msgspec.json.Encoder().encode


@click.command(
    short_help="Print a stream. Reconnect and resume.",
    epilog="Example: relay subscribe http://127.0.0.1:8080 --topic news --topic 'orders.*'",
)
@click.argument("url", default="http://127.0.0.1:8080")
@click.option(
    "--topic", "topics", multiple=True, help="Topic or pattern (`orders.*`, `orders.**`). Repeatable."
)
@click.option(
    "--since",
    help="Start of the stream: earliest, latest, last (the newest event of each topic and key), a time such as 10m, a "
    "date-time, or a known id.",
)
@click.option("--last-event-id", metavar="ID", help="Resume after this event.")
@click.option(
    "--output",
    type=click.Choice(["json", "data"]),
    default="json",
    show_default=True,
    help="Print one JSON object per line, or only the data.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Exit after N events.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Header to send. Repeatable.")
@click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust for https.  [default: the system's]")
def subscribe(
    url: str,
    topics: tuple[str, ...],
    since: str | None,
    last_event_id: str | None,
    output: str,
    count: int | None,
    headers: tuple[str, ...],
    ca: str | None,
) -> int:
    """Print the events of URL, the address of a server or of its /events. Reconnect and resume after a failure.

    Each event has its topic if the server is a relay. A gap is an event of type relay.gap. With `--output data`, the
    command reports gaps on standard error.
    """
    pairs = [header.partition(":") for header in headers]
    if any(not colon or not name.strip() for name, colon, _ in pairs):
        raise click.UsageError("--header must have the form NAME:VALUE")
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    logs.set_up("warning", "text", sys.stderr)
    asyncio.run(_print_events(url, topics, since, last_event_id, output, count, fields, ca))
    return 0


async def _print_events(
    url: str,
    topics: tuple[str, ...],
    since: str | None,
    last_event_id: str | None,
    output: str,
    count: int | None,
    headers: dict[str, str],
    ca: str | None,
) -> None:
    """Print each event as soon as it arrives."""
    from relay import client

    printed = 0
    with _broken_pipe_raised(STDOUT):
        stream = client.subscribe(url, topics, since=since, last_event_id=last_event_id, headers=headers, ca=ca)
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                printed += _show(event, output)
                if printed == count:
                    return


@contextlib.contextmanager
def _broken_pipe_raised(fd: int) -> Iterator[None]:
    """Raise BrokenPipeError in this task as soon as the reader of a descriptor closes, like GNU tail.

    Otherwise `relay subscribe | head -1` would exit only at the next event.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        loop.remove_reader(poller.fileno())
        task.cancel()

    with select.epoll() as poller:
        # epoll rejects files, but a file needs no reader. epoll reports errors even for an empty event mask.
        with contextlib.suppress(PermissionError):
            poller.register(fd, 0)
        loop.add_reader(poller.fileno(), leave)
        try:
            yield
        except asyncio.CancelledError:
            if not gone:
                raise
            raise BrokenPipeError from None
        finally:
            loop.remove_reader(poller.fileno())


def _show(event: Event, output: str) -> int:
    """Print one event. Return 1 if the event is on standard output, else 0."""
    if event.event == "relay.heartbeat":
        return 0
    if output == "json":
        line = _encode(event)
    elif event.event == "relay.gap":
        print(f"relay: gap: {_gap(str(event.data))}", file=sys.stderr)
        return 0
    else:
        line = str(event.data).encode(errors="replace")
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
    return 1


def _gap(data: str) -> str:
    """Describe a gap from the data of its event."""
    try:
        gap = json.loads(data)
        missed = "an unknown number of" if gap["missed"] is None else gap["missed"]
        return f"missed {missed} events ({gap['reason']})"
    except (ValueError, LookupError, TypeError, RecursionError):
        return repr(data)
