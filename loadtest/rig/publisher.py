"""The publisher: a C program (`publisher.c`) that feeds a Unix socket, or a server over HTTP, at a fixed rate.

Owns the program's command line and report. `python -m loadtest.rig.publisher --unix PATH …` runs it alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from loadtest.rig.native import HERE, Program, build

CLOSE_S = 35.0


class HttpEntrance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are published by POST requests; `{topic}` and `{data}` stand for those of the event.

    Args:
        port: the server's port on loopback.
        target: request target.
        body: the request body.
        escape: encoding of the data in the body: none, as inside a JSON string, or percent-encoded.
        headers: more header lines of the request.
        depth: maximum number of unanswered requests; their order is kept.
    """

    port: int = 0
    target: str
    body: str = "{data}"
    escape: Literal["raw", "json", "form"] = "raw"
    headers: tuple[str, ...] = ()
    depth: int = 1

    def flags(self) -> list[str]:
        """Return the program's arguments for these requests."""
        flags = ["--http", str(self.port), "--target", self.target, "--body", self.body, "--escape", self.escape]
        flags += [text for header in self.headers for text in ("--header", header)]
        return [*flags, "--depth", str(self.depth)]


class PublisherReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one publishing run.

    Args:
        sent: events written; last: number of the last one.
        write_s: time to write them.
        taken_s: time until the server had read all events and closed its side, or had answered all requests;
            taken: whether it did so and refused none.
        in_writes_s: time spent in writes, most of it waiting for the server when that is the slower one.
        behind_max_ms: largest delay of an event behind its due time.
        answered: answers over HTTP; refused: of these with a status that is not 2xx; first_refusal: the first such.
        answered_bytes: bytes of the server's lines over the socket; over HTTP, of the answers that refuse an event.
        cpu_s: CPU seconds of the publisher.
    """

    sent: int
    last: int
    write_s: float
    taken_s: float
    taken: bool
    in_writes_s: float
    behind_max_ms: float
    answered: int
    refused: int
    first_refusal: int
    answered_bytes: int
    cpu_s: float


class PublisherProgram:
    """A C program that publishes numbered events at a fixed rate.

    Args:
        entrance: path of the server's Unix socket, or the HTTP requests to send.
        rate: events per second; 0 publishes as fast as the server reads.
        count: how many events.
        seconds: the program ends after this time even if it has sent fewer events.
        size: bytes of each event's data.
        first: number of the first event.
        topics: event n goes to topic `t.<n mod topics>`; 0 is one topic for all: the server's default over the socket,
            `default` over HTTP.
        cpus: the cores that the program may use; all if empty.
    """

    def __init__(
        self,
        entrance: Path | HttpEntrance,
        *,
        rate: float,
        count: int,
        seconds: float = 60.0,
        size: int = 150,
        first: int = 1,
        topics: int = 0,
        cpus: Collection[int] = (),
    ) -> None:
        options: dict[str, object] = {
            "rate": rate,
            "count": count,
            "seconds": seconds,
            "size": size,
            "first": first,
            "topics": topics,
        }
        to = entrance.flags() if isinstance(entrance, HttpEntrance) else ["--unix", str(entrance)]
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._seconds = seconds
        self._program = Program([str(build(HERE / "publisher.c")), *to, *flags], cpus=cpus)

    def __enter__(self) -> PublisherProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._program.pid

    def done(self) -> PublisherReport:
        """Wait until the server has taken every event; return the report."""
        line = self._program.report("done", self._seconds + CLOSE_S)
        return msgspec.json.decode(line, type=PublisherReport)


def main() -> None:
    """Replace this process by the C program, with the same arguments."""
    program = str(build(HERE / "publisher.c"))
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
