"""`relay publish`: publishes events from arguments or standard input to a running relay.

Each read of standard input yields one batch of events. The next read waits until the batch is published, so that only
one batch is in memory.

Owns the input and the output. Never connects to the server itself: `relay.client.publish` delivers the events, and
sends unacknowledged events again.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from relay.errors import EventError, RelayError, RequestError
from relay.event import Event
from relay.telemetry import logs

if TYPE_CHECKING:
    from relay.client.publish import Publisher

STDIN = 0
READ_BYTES = 64 * 1024
"""Largest read of standard input. One read yields one batch."""
LINE_BYTES_MAX = 8 * 1024 * 1024

Numbered = tuple[int, Event]
"""The number of a line or argument, and its event."""


@click.command(
    short_help="Publish events from arguments or standard input.",
    epilog="Example: tail -F app.log | relay publish --to unix:/run/relay.sock --topic app",
)
@click.argument("data", nargs=-1)
@click.option(
    "--to",
    "target",
    default="http://127.0.0.1:8080",
    show_default=True,
    help="Target: unix:/path, or the address of the server.",
)
@click.option("--token", envvar="RELAY_PUBLISH_TOKEN", help="Bearer token for HTTP.  [default: RELAY_PUBLISH_TOKEN]")
@click.option("--topic", help="Topic of events that name none.  [default: the server's]")
@click.option("--event", help="Event type of events that name none.")
@click.option("--id", help="Id of the event. Requires exactly one DATA.")
@click.option("--key", help="Key of events that name none.")
@click.option("--dedup", help="Dedup key of the event, instead of a generated one. Requires exactly one DATA.")
@click.option("--retry", type=click.IntRange(min=0), help="Reconnection time in milliseconds.")
@click.option("--ttl", type=click.FloatRange(min=0), metavar="SECONDS", help="Time for which relay retains the events.")
@click.option(
    "--input",
    "form",
    type=click.Choice(["auto", "ndjson", "lines"]),
    default="auto",
    show_default=True,
    help="Format of standard input: one JSON object per line, or each line as data. `auto` is NDJSON if the first line "
    "begins with `{`, otherwise lines.",
)
@click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust for https.  [default: the system's]")
@click.option("--quiet", "-q", is_flag=True, help="Do not print ids.")
def publish(
    data: tuple[str, ...],
    target: str,
    token: str | None,
    topic: str | None,
    event: str | None,
    id: str | None,
    key: str | None,
    dedup: str | None,
    retry: int | None,
    ttl: float | None,
    form: str,
    ca: str | None,
    quiet: bool,
) -> int:
    """Publish each DATA as one event and print its id. Without DATA, or with `-`, publish the lines of standard input.

    A line of NDJSON is {"data": …, "topic": …, "event": …, "id": …, "key": …, "retry": …, "dedup": …, "ttl": …}. The
    command reports a rejected line with its number and publishes the others. After a lost connection, it resends
    unacknowledged events for up to 5 minutes, and none is published twice. The exit code is 0 if all are published.
    """
    read_input = not data or data == ("-",)
    for name, value in (("id", id), ("dedup", dedup)):
        if value is not None and (read_input or len(data) != 1):
            raise click.UsageError(f"--{name} needs exactly one DATA, because each event has its own")
    if not data and os.isatty(STDIN):
        raise click.UsageError("nothing to publish; give DATA, or give `-` to read lines from the terminal")
    defaults = Event(topic=topic, event=event, id=id, key=key, retry=retry, dedup=dedup, ttl=ttl)
    report = _Report("line" if read_input else "argument", quiet)
    if read_input:
        batches = _read_events(report, form, defaults)
    else:
        batches = _one_batch([msgspec.structs.replace(defaults, data=text) for text in data])
    logs.set_up("warning", "text", sys.stderr)
    asyncio.run(_publish(target, token, ca, report, batches))
    return 1 if report.failed else 0


class _Report:
    """Prints ids and errors.

    Args:
        noun: the unit of input: `line` or `argument`.
        quiet: print no ids.
    """

    def __init__(self, noun: str, quiet: bool) -> None:
        self.failed = False
        self._noun = noun
        self._quiet = quiet

    def show(self, id: str) -> None:
        """Print one id and flush, so that a pipe receives it at once."""
        if not self._quiet:
            print(id, flush=True)

    def refuse(self, number: int, error: RelayError | str) -> None:
        """Report that the server rejected one event."""
        self.failed = True
        print(f"relay: {self._noun} {number}: {error}", file=sys.stderr)

    def give_up(self, first: int, last: int, error: RelayError) -> NoReturn:
        """Raise the error that ends the command. It gives the numbers of the unacknowledged events."""
        numbers = f"{self._noun} {first}" if first == last else f"{self._noun}s {first} to {last}"
        raise RelayError(f"{error}; not acknowledged: {numbers}") from error


async def _publish(
    target: str, token: str | None, ca: str | None, report: _Report, batches: AsyncIterator[list[Numbered]]
) -> None:
    """Publish batches of events in order, and report each event."""
    from relay.client.publish import Publisher

    async with Publisher(target, token=token, ca=ca) as publisher:
        async for batch in batches:
            await _publish_batch(publisher, batch, report)


async def _publish_batch(publisher: Publisher, batch: Sequence[Numbered], report: _Report) -> None:
    """Publish events in order, and report each one. Return when each is acknowledged or rejected.

    Raises:
        RelayError: events were not acknowledged.
    """
    from relay.client.delivery import OF_ONE_EVENT
    from relay.client.publish import IN_FLIGHT_MAX

    for place in range(0, len(batch), IN_FLIGHT_MAX):
        part = batch[place : place + IN_FLIGHT_MAX]
        for number, answer in [(number, await _send(publisher, event)) for number, event in part]:
            try:
                if isinstance(answer, EventError):
                    raise answer
                report.show(await answer)
            except EventError as error:
                report.refuse(number, error)
            except RelayError as error:
                if not isinstance(error, RequestError) or error.status not in OF_ONE_EVENT:
                    report.give_up(number, batch[-1][0], error)
                report.refuse(number, error)


async def _send(publisher: Publisher, event: Event) -> asyncio.Future[str] | EventError:
    """Send one event. Return the future of its id, or the error if it cannot be encoded."""
    try:
        return await publisher.send(event)
    except EventError as error:
        return error


async def _one_batch(events: Sequence[Event]) -> AsyncIterator[list[Numbered]]:
    """Yield all events as one batch."""
    yield list(enumerate(events, 1))


async def _read_events(report: _Report, form: str, defaults: Event) -> AsyncIterator[list[Numbered]]:
    """Read standard input. Yield the events of each read, with their line numbers."""
    # Imported here, because they import the engine.
    from relay.event_json import parse_event
    from relay.sources.lines import LineSplitter, parse_text

    splitter = LineSplitter(LINE_BYTES_MAX)
    parse: Callable[[bytes], Event] | None = {"ndjson": parse_event, "lines": parse_text}.get(form)
    number, ended = 0, False
    while not ended:
        data = await _read_some(STDIN)
        ended = not data
        batch: list[Numbered] = []
        for line in splitter.end() if ended else splitter.feed(data):
            number += 1
            if line is None:
                report.refuse(number, f"is longer than {LINE_BYTES_MAX} bytes")
                continue
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            if parse is None:
                parse = parse_event if line.lstrip().startswith(b"{") else parse_text
            try:
                batch.append((number, _fill(parse(line), defaults)))
            except EventError as error:
                report.refuse(number, error)
        if batch:
            yield batch


def _fill(event: Event, defaults: Event) -> Event:
    """Fill the missing fields of an event with the defaults."""
    names = ("data", "event", "id", "retry", "key", "topic", "dedup", "ttl")
    values = {name: getattr(event, name) for name in names}
    for name in ("topic", "event", "key", "retry", "ttl"):
        if values[name] is None:
            values[name] = getattr(defaults, name)
    return Event(**values)


async def _read_some(fd: int) -> bytes:
    """Read available bytes. Wait on the event loop, so that it handles an interrupt. A file is always ready."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:  # epoll rejects files.
        return os.read(fd, READ_BYTES)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, READ_BYTES)
