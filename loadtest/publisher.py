"""The publisher: a C program (`publisher.c`) that feeds a Unix socket at a fixed rate.

Owns the program's command line and report. `python -m loadtest.publisher --unix PATH …` runs it alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

import msgspec

from loadtest.native import HERE, Program, build

CLOSE_S = 35.0


class PublisherReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was published.

    Args:
        sent: events written; last: number of the last one.
        write_s: time to write them.
        taken_s: time until the server had read them all and closed its side; taken: whether it did.
        in_writes_s: time spent in writes, most of it waiting for the server when that is the slower one.
        behind_max_ms: how late the latest event was.
        answered_bytes: what the server answered, which is nothing unless it refused a line.
        cpu_s: the publisher's own.
    """

    sent: int
    last: int
    write_s: float
    taken_s: float
    taken: bool
    in_writes_s: float
    behind_max_ms: float
    answered_bytes: int
    cpu_s: float


class Publisher:
    """A feeder.

    Args:
        path: the server's Unix socket.
        rate: events a second; 0 is as fast as the server takes them.
        count: how many events.
        seconds: it ends after this time even if fewer are sent.
        size: bytes of each event's data.
        first: number of the first event.
        cpus: the cores it may use; all when empty.
    """

    def __init__(
        self,
        path: Path,
        *,
        rate: float,
        count: int,
        seconds: float = 60.0,
        size: int = 150,
        first: int = 1,
        cpus: Collection[int] = (),
    ) -> None:
        options: dict[str, object] = {
            "unix": path,
            "rate": rate,
            "count": count,
            "seconds": seconds,
            "size": size,
            "first": first,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._seconds = seconds
        self._program = Program([str(build(HERE / "publisher.c")), *flags], cpus=cpus)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._program.pid

    def done(self) -> PublisherReport:
        """Wait until everything is published and taken."""
        line = self._program.report("done", self._seconds + CLOSE_S)
        return msgspec.json.decode(line, type=PublisherReport)


def main() -> None:
    """Become the C program, with this command's arguments."""
    program = str(build(HERE / "publisher.c"))
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
