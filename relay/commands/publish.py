"""`relay publish`: events from arguments, or from NDJSON on standard input, into a running relay.

Owns where the events of the command line come from, and what is printed; `relay.publisher` delivers them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence

import click
import msgspec

from relay.errors import EventError, RelayError
from relay.event import Event, parse_event

STDIN = 0
READ_BYTES = 64 * 1024
"""What is read of standard input at once; over HTTP it is published with one request."""
LINE_BYTES_MAX = 8 * 1024 * 1024

Sent = tuple[int, asyncio.Future[str]]
"""The number of a line, and what will be its id."""


@click.command(
    short_help="Publish events from arguments or standard input.",
    epilog="Example: tail -F app.ndjson | relay publish --to unix:/run/relay.sock --topic app",
)
@click.argument("data", nargs=-1)
@click.option(
    "--to",
    "target",
    default="http://127.0.0.1:8080",
    show_default=True,
    help="Where to: unix:/path, or the server's address.",
)
@click.option(
    "--token", envvar="RELAY_PUBLISH_TOKEN", help="Bearer token for HTTP; else RELAY_PUBLISH_TOKEN."
)
@click.option("--topic", help="Topic of events that name none; else the server's own default.")
@click.option("--event", help="Event type of events that name none.")
@click.option("--id", help="Id of the event; only with one DATA.")
@click.option("--key", help="Key of events that name none.")
@click.option("--retry", type=click.IntRange(min=0), help="Reconnection time in milliseconds.")
@click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust with https; else the system's.")
@click.option("--quiet", "-q", is_flag=True, help="Do not print ids.")
def publish(
    data: tuple[str, ...],
    target: str,
    token: str | None,
    topic: str | None,
    event: str | None,
    id: str | None,
    key: str | None,
    retry: int | None,
    ca: str | None,
    quiet: bool,
) -> int:
    """Publish each DATA as one event and print its id; with no DATA or `-`, NDJSON from standard input.

    A line is a JSON object: {"data": …, "topic": …, "event": …, "id": …, "key": …, "retry": …}.
    """
    read_input = not data or data == ("-",)
    if id is not None and (read_input or len(data) != 1):
        raise click.UsageError("--id needs exactly one DATA, since an id is of one event")
    if not data and os.isatty(STDIN):
        raise click.UsageError("nothing to publish: give DATA, or `-` to type NDJSON")
    defaults = Event(topic=topic, event=event, id=id, key=key, retry=retry)
    output = _Output(target, token, ca, quiet)
    if read_input:
        asyncio.run(_publish_input(output, defaults))
    else:
        asyncio.run(output.publish([msgspec.structs.replace(defaults, data=text) for text in data]))
    return 1 if output.failed else 0


class _Output:
    """Where the events go, and what becomes of them."""

    def __init__(self, target: str, token: str | None, ca: str | None, quiet: bool) -> None:
        self.target = target
        self.failed = False
        self._token = token
        self._ca = ca
        self._quiet = quiet

    async def publish(self, events: Sequence[Event]) -> None:
        """Publish some at once, and print their ids; an error ends the command."""
        from relay.publisher import publish

        for id in await publish(self.target, events, self._token, ca=self._ca):
            self.show(id)

    def show(self, id: str) -> None:
        """Print one id at once, so that a pipe sees it."""
        if not self._quiet:
            print(id, flush=True)

    def refuse(self, number: int, error: EventError) -> None:
        """Say that a line was not published; the others are."""
        self.failed = True
        print(f"relay: line {number}: {error}", file=sys.stderr)


async def _publish_input(output: _Output, defaults: Event) -> None:
    """Publish the lines of standard input: over a Unix socket one by one, over HTTP as they come together."""
    from relay.publisher import Publisher, unix_path

    if unix_path(output.target) is None:
        async for batch in _read_events(output, defaults):
            await _publish_batch(output, batch)
        return
    sent: asyncio.Queue[Sent | None] = asyncio.Queue()
    try:
        async with Publisher(output.target) as publisher, asyncio.TaskGroup() as group:
            group.create_task(_print_ids(output, sent))
            async for batch in _read_events(output, defaults):
                for number, event in batch:
                    try:
                        sent.put_nowait((number, await publisher.send(event)))
                    except EventError as error:
                        output.refuse(number, error)
            sent.put_nowait(None)
    except BaseExceptionGroup as errors:
        # Whichever failed first, reading or printing, has cancelled the other.
        raise errors.exceptions[0] from None


async def _print_ids(output: _Output, sent: asyncio.Queue[Sent | None]) -> None:
    """Print the ids in the order of the lines."""
    while (item := await sent.get()) is not None:
        try:
            output.show(await item[1])
        except EventError as error:
            output.refuse(item[0], error)


async def _publish_batch(output: _Output, batch: Sequence[tuple[int, Event]]) -> None:
    """Publish a few lines with one request; where one of them is refused, each by itself."""
    try:
        await output.publish([event for _, event in batch])
    except EventError as error:
        if len(batch) == 1:
            output.refuse(batch[0][0], error)
            return
        for item in batch:
            await _publish_batch(output, [item])


async def _read_events(output: _Output, defaults: Event) -> AsyncIterator[list[tuple[int, Event]]]:
    """Read standard input and give what has come, each event with the number of its line."""
    number, rest, ended = 0, b"", False
    while not ended:
        data = await _read_some(STDIN)
        ended = not data
        *lines, rest = (rest + data + (b"\n" if ended and rest else b"")).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise RelayError(f"line {number + len(lines) + 1} is longer than {LINE_BYTES_MAX} bytes")
        batch = []
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                batch.append((number, _fill(parse_event(line), defaults)))
            except EventError as error:
                output.refuse(number, error)
        if batch:
            yield batch


def _fill(event: Event, defaults: Event) -> Event:
    """Give the event what it does not say itself."""
    missing = [name for name in ("topic", "event", "key", "retry") if getattr(event, name) is None]
    return msgspec.structs.replace(event, **{name: getattr(defaults, name) for name in missing})


async def _read_some(fd: int) -> bytes:
    """Read what is there; wait for it on the loop, so that an interrupt is heard. A file is always ready."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:  # epoll does not take files.
        return os.read(fd, READ_BYTES)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, READ_BYTES)
