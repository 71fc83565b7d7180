"""Run a soak and print its result: `make soak ARGS="--hours 2"`.

Owns the command line and the saved file. Never measures.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import subprocess
import sys
from pathlib import Path

import msgspec
import uvloop

from loadtest.soak.report import SavedSoak, SoakSample, SoakStart, result_of, text_of
from loadtest.soak.run import SoakOptions, SoakRun

SAVED = Path(__file__).parent.parent / "soak.json"
ERRORS_SHOWN = 20


def main() -> int:
    """Run, and return the exit status: 0 if the soak passed."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=2.0, help="length of the run (2)")
    length.add_argument("--minutes", type=float, help="length of the run, instead of --hours")
    parser.add_argument("--rate", type=float, default=20.0, help="events per second of each group of servers (20)")
    parser.add_argument("--share", type=float, default=1.0, help="part of the readers, at least one of each kind (1)")
    parser.add_argument("--samples", type=Path, help="file for the samples, a line of JSON each")
    parser.add_argument(
        "--save", action="store_true", help=f"write loadtest/{SAVED.name}, which `make measurements` reads"
    )
    parser.add_argument("--read", type=Path, help="only report on the samples in a file of --samples")
    options = parser.parse_args()
    logging.basicConfig(format="soak: %(name)s: %(message)s", level=logging.ERROR)
    if options.read:
        first, *lines = options.read.read_bytes().splitlines()
        start = msgspec.json.decode(first, type=SoakStart)
        samples = [msgspec.json.decode(line, type=SoakSample) for line in lines]
    else:
        hours = options.hours if options.minutes is None else options.minutes / 60
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        start = SoakStart(commit_of_checkout(), now, round(hours, 3))
        samples = run(start, SoakOptions(hours, options.rate, options.share), options.samples)
    result = result_of(samples)
    print(f"\n{text_of(result)}\n")
    for fault, count in sorted(result.last.faults.items()):
        print(f"soak: fault: {count} times: {fault}")
    for error in result.last.errors[:ERRORS_SHOWN]:
        print(f"soak: ERROR in a log: {error}")
    print(f"soak: {'passed' if result.passed else 'FAILED'}", flush=True)
    if options.save:
        saved = SavedSoak(start.commit, start.started, start.hours, samples, result)
        SAVED.write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1) + b"\n")
    return 0 if result.passed else 1


def run(start: SoakStart, options: SoakOptions, path: Path | None) -> list[SoakSample]:
    """Run the soak, print and append each sample, and return the samples."""
    samples: list[SoakSample] = []

    def take(sample: SoakSample) -> None:
        samples.append(sample)
        print(line_of(sample), flush=True)
        if path is not None:
            with path.open("ab") as file:
                file.write(msgspec.json.encode(sample) + b"\n")

    if path is not None:
        path.write_bytes(msgspec.json.encode(start) + b"\n")
    uvloop.run(SoakRun(options, take).run())
    return samples


def line_of(sample: SoakSample) -> str:
    """Return one line about a sample."""
    memory = " ".join(
        f"{name} {(each.hub_bytes + each.workers_bytes) / 2**20:.1f} MiB/{each.descriptors} fds/{each.streams} streams"
        for name, each in sample.servers.items()
    )
    cpu = (sample.servers_cpu_s + sample.readers_cpu_s) / sample.time_s
    return (
        f"soak: {sample.time_s / 60:.1f} min: {memory}; published {sample.published}, received {sample.received}, "
        f"gaps {sum(sample.gaps.values())}, faults {sum(sample.faults.values())}, errors {len(sample.errors)}, "
        f"CPU {100 * cpu:.0f} %"
    )


def commit_of_checkout() -> str:
    """Return the commit of this checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
