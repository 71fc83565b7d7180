"""`relay publish`: publishes events from arguments or standard input to a running relay.

Theory of operation. Each read of standard input yields one batch of events. The next read waits until the batch is
published, so that only one batch is in memory. Each event has a `dedup` key. After a lost connection, the command
resends the unacknowledged events with the same keys, in order. The server publishes each of them once, if they arrive
within its `dedup-window` (10 minutes by default).

Owns the input, the resending and the output. Never connects to the server itself: `relay.client.publish` delivers the
events.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import random
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NoReturn

import click
import msgspec

from relay.backoff import Backoff
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event

STDIN = 0
READ_BYTES = 64 * 1024
"""Largest read of standard input. One read yields one batch."""
LINE_BYTES_MAX = 8 * 1024 * 1024

EVENTS_MAX = 10_000
"""Most events of a request: the default of the server's `batch-events-max`. A 413 reduces the number."""

TOO_LARGE = 413

GIVE_UP_S = 300.0
"""Longest time to resend an event: half of the default `dedup-window`, so that no event is published twice."""
BACKOFF_LEAST_S = 0.5
BACKOFF_MOST_S = 10.0

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
    sender = _Sender(target, token, ca, _Report("line" if read_input else "argument", quiet))
    if read_input:
        asyncio.run(_publish_input(sender, form, defaults))
    else:
        events = [msgspec.structs.replace(defaults, data=text) for text in data]
        asyncio.run(_publish_arguments(sender, list(enumerate(events, 1))))
    return 1 if sender.report.failed else 0


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

    def refuse(self, number: int, error: EventError | str) -> None:
        """Report that the server rejected one event."""
        self.failed = True
        print(f"relay: {self._noun} {number}: {error}", file=sys.stderr)

    def give_up(self, waiting: Sequence[Numbered], error: RelayError) -> NoReturn:
        """Raise the error that ends the command. It gives the numbers of the unacknowledged events."""
        first, last = waiting[0][0], waiting[-1][0]
        numbers = f"{self._noun} {first}" if first == last else f"{self._noun}s {first} to {last}"
        raise RelayError(f"{error}; not acknowledged: {numbers}") from error


class _Sender:
    """Publishes batches, and resends events after a lost connection.

    Args:
        target: `unix:/path`, or the address of the server.
        token: bearer token for HTTP.
        ca: PEM file of the authorities to trust for https.
        report: prints the result of each event.
    """

    def __init__(self, target: str, token: str | None, ca: str | None, report: _Report) -> None:
        from relay.client.publish import Publisher, unix_path

        self.report = report
        self._target = target
        self._token = token
        self._ca = ca
        self._is_unix = unix_path(target) is not None
        self._publisher: Publisher | None = None
        self._backoff = Backoff(BACKOFF_LEAST_S, BACKOFF_MOST_S, random.random)
        self._run = secrets.token_hex(8)  # makes the keys of this run unique
        self._request_events = EVENTS_MAX
        self._reached = False  # whether a server has answered; before that, an error is final, such as a wrong address

    async def close(self) -> None:
        """Close the connection without waiting for acknowledgements."""
        if self._publisher is not None:
            publisher, self._publisher = self._publisher, None
            await publisher.__aexit__(LostError, None, None)

    async def publish(self, batch: Sequence[Numbered]) -> None:
        """Publish events in order. Return when each event is acknowledged or rejected.

        Raises:
            RelayError: the server rejects the request, cannot be reached, or was unreachable for `GIVE_UP_S`.
        """
        waiting = [(number, self._with_dedup(number, event)) for number, event in batch]
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + GIVE_UP_S
        while waiting:
            count = len(waiting)
            try:
                await (self._try_unix(waiting) if self._is_unix else self._try_http(waiting))
            except RelayError as error:
                wait_s = self._backoff.next_s()
                if not self._may_try_again(error) or loop.time() + wait_s > give_up_s:
                    self.report.give_up(waiting, error)
                print(f"relay: {error}; resending in {wait_s:.1f} s", file=sys.stderr)
                await asyncio.sleep(wait_s)
            if len(waiting) < count:
                self._backoff.reset()
                give_up_s = loop.time() + GIVE_UP_S

    def _with_dedup(self, number: int, event: Event) -> Event:
        if event.dedup is not None:
            return event
        return msgspec.structs.replace(event, dedup=f"{self._run}-{number}")

    def _may_try_again(self, error: RelayError) -> bool:
        if isinstance(error, RequestError):
            self._reached = True
            return error.status in (408, 429) or error.status >= 500
        return isinstance(error, LostError) and self._reached

    async def _try_unix(self, waiting: list[Numbered]) -> None:
        """Send events over the Unix socket. Remove those that are acknowledged or rejected."""
        from relay.client.publish import Publisher

        try:
            if self._publisher is None:
                self._publisher = await Publisher(self._target).__aenter__()
                self._reached = True
            sent: list[asyncio.Future[str] | EventError] = []
            lost: LostError | None = None
            for _, event in waiting:
                try:
                    sent.append(await self._publisher.send(event))
                except EventError as error:
                    sent.append(error)
                except LostError as error:
                    lost = error
                    break
            for answer in sent:
                try:
                    if isinstance(answer, EventError):
                        raise answer
                    self.report.show(await answer)
                except EventError as error:
                    self.report.refuse(waiting[0][0], error)
                del waiting[0]
            if lost is not None:
                raise lost
        except LostError:
            await self.close()
            raise

    async def _try_http(self, waiting: list[Numbered]) -> None:
        """Send events in requests as large as the server accepts. Remove those that are acknowledged or rejected."""
        from relay.client.publish import publish

        while waiting:
            some = waiting[: self._request_events]
            try:
                ids = await publish(self._target, [event for _, event in some], self._token, ca=self._ca)
            except EventError as error:
                self._reached = True
                if len(some) > 1:  # The server published no event of the request. Send each in its own request.
                    for single in some:
                        await self._try_http([single])
                        del waiting[0]
                    continue
                self.report.refuse(some[0][0], error)
            except RequestError as error:
                if error.status != TOO_LARGE:
                    raise
                self._reached = True
                if len(some) > 1:
                    self._request_events = len(some) // 2
                    continue
                self.report.refuse(some[0][0], str(error))
            else:
                self._reached = True
                for id in ids:
                    self.report.show(id)
            del waiting[: len(some)]


async def _publish_arguments(sender: _Sender, batch: Sequence[Numbered]) -> None:
    try:
        await sender.publish(batch)
    finally:
        await sender.close()


async def _publish_input(sender: _Sender, form: str, defaults: Event) -> None:
    """Publish the lines of standard input as they arrive."""
    try:
        async for batch in _read_events(sender.report, form, defaults):
            await sender.publish(batch)
    finally:
        await sender.close()


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
