"""`make capacity`: compute what 1, 10 and 100 million streams need, and write it to docs/architecture/capacity.md.

The figures come from `results.json` (`make bench`) and `cluster.json` (`make bench-cluster`). Machines, loads and the
shares that may be used are assumptions, which the page lists. `bench.storm` simulates the reconnections after a zone
has failed.

Owns the model and the generated section of the page. Never measures anything.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec

from bench import HERE
from bench.cluster_report import RESULTS as CLUSTER_RESULTS
from bench.report import RESULTS, number, put
from bench.storm import Storm, StormResult, expect, simulate
from relay.config.model import Config

PAGE = HERE.parent / "docs" / "architecture" / "capacity.md"
MILLION = 1_000_000
STREAMS = (MILLION, 10 * MILLION, 100 * MILLION)
RATES = (0.1, 1.0)
"""Events that a stream receives per second."""

PUBLISHED_PER_S = 1000.0
SLOW = "cpu_us_per_event_at_1000_per_s"
ZONES = 3
SEED = 1
SCALE = 40
"""The simulation has this fraction of the streams and of the resources of each node."""

SIMULATED_NODES = 4

KERNEL_BYTES = 5.0 * 1024
"""Kernel memory of an open stream (`make bench-scale`; see docs/measurements.md)."""

RESUME_FACTOR = 1.21
"""CPU time to open a stream that resumes with ten missed events, relative to a new one (`resume-10000`)."""

MEASURED_STREAMS = MILLION
"""Most streams that one machine held in a measurement."""

PACKET_BYTES = 66
"""Ethernet, IP and TCP headers with timestamps, of one delivery."""

ENTRY_BYTES = 150
"""Bytes of an entry in the broker and of its protocol, in addition to the data."""


@dataclass(frozen=True, slots=True)
class NodeMachine:
    """The machine of a node, and the shares of it that may be used after a zone has failed."""

    cores: int = 8
    memory_bytes: int = 32 << 30
    network_bits_per_s: float = 10e9
    cpu_share: float = 0.7
    memory_share: float = 0.75
    network_share: float = 0.7
    stream_life_s: float = 600.0
    stalled_share: float = 0.01


@dataclass(frozen=True, slots=True)
class Figures:
    """The measured figures. Times are CPU seconds.

    Args:
        delivery_s: to deliver one event to one stream, if no events are joined.
        open_s: to open a stream.
        wire_bytes: of a delivery with 150 bytes of data.
        stream_bytes: user memory of a stream.
        stalled_bytes: kernel memory of a stream that does not read.
        follow_s: of a follower, per event, at 1,000 events/s.
        append_s: of the broker, per event; by broker.
        read_s: of the broker, per event and node that reads it; by broker.
        slow_append_s, slow_read_s: the same at 1,000 events/s, where a call has few events.
    """

    delivery_s: float
    open_s: float
    wire_bytes: float
    stream_bytes: float
    stalled_bytes: float
    follow_s: float
    append_s: dict[str, float]
    read_s: dict[str, float]
    slow_append_s: dict[str, float]
    slow_read_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The needs of one load.

    Args:
        nodes: in all zones.
        limit: the resource that limits the streams of a node.
        streams: of each node while all zones work.
        cores: share of a node's cores in use while all zones work.
        memory_bytes: of each node after a zone has failed.
        network_bits_per_s: of each node after a zone has failed.
        storm: the reconnections after a zone has failed.
    """

    nodes: int
    limit: str
    streams: int
    cores: float
    memory_bytes: float
    network_bits_per_s: float
    storm: Storm


def load_figures() -> Figures:
    """Return the figures in the files of results."""
    cases = {each["case"]: each for each in msgspec.json.decode(RESULTS.read_bytes())}

    def relay(case: str, name: str) -> float:
        return float(median(run[name] for run in cases[case]["runs"]["relay"]))

    runs = msgspec.json.decode(CLUSTER_RESULTS.read_bytes())["runs"]
    append_s, read_s = _broker_costs(runs, "cpu_us_per_event", {})
    slow_append_s, slow_read_s = _broker_costs(runs, SLOW, read_s)
    return Figures(
        delivery_s=relay("cpu-10000x10", "cpu_us_per_delivery") / 1e6,
        open_s=RESUME_FACTOR * relay("accept-10000", "cpu_us_per_stream") / 1e6,
        wire_bytes=relay("cpu-10000x10", "bytes_per_delivery") + PACKET_BYTES,
        stream_bytes=relay("memory-10000", "bytes_per_stream"),
        stalled_bytes=relay("stalled-500", "kib_per_stream") * 1024 / 2,  # both ends were on one machine
        follow_s=_run(runs, "redis", 2)[SLOW]["follower"] / 1e6,
        append_s=append_s,
        read_s=read_s,
        slow_append_s=slow_append_s,
        slow_read_s=slow_read_s,
    )


def _broker_costs(
    runs: list[dict[str, Any]], figure: str, least_s: dict[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Divide the CPU time of each broker, with one and with two nodes, into that of appending and of reading.

    Reading takes at least `least_s`, because the difference of two runs may be noise.
    """
    append_s, read_s = {}, {}
    for broker in sorted({run["broker"] for run in runs if run["broker"]}):
        one, two = (_run(runs, broker, nodes)[figure]["broker"] / 1e6 for nodes in (1, 2))
        read_s[broker] = max(two - one, least_s.get(broker, 0.0))
        append_s[broker] = one - read_s[broker]
    return append_s, read_s


def _run(runs: list[dict[str, Any]], broker: str, nodes: int) -> dict[str, Any]:
    [found] = (run for run in runs if run["broker"] == broker and run["nodes"] == nodes)
    return found


def plan(streams: int, rate: float, figures: Figures, machine: NodeMachine) -> CapacityPlan:
    """Compute the nodes for a number of streams.

    Args:
        streams: in the cluster.
        rate: events that each stream receives per second.
        figures: the measured figures.
        machine: the machine of each node.
    """
    config = Config()
    # A stream without events receives heartbeats instead.
    delivery_cores = max(rate, 1 / config.heartbeat_s) * figures.delivery_s
    stream_cores = delivery_cores + figures.open_s / machine.stream_life_s
    follower_cores = PUBLISHED_PER_S * figures.follow_s
    history_bytes = config.history_bytes * (machine.cores + 1)  # the hub and each worker
    stream_bytes = figures.stream_bytes + KERNEL_BYTES + machine.stalled_share * figures.stalled_bytes
    limits = {
        "CPU": (machine.cores * machine.cpu_share - follower_cores) / stream_cores,
        "memory": (machine.memory_bytes * machine.memory_share - history_bytes) / stream_bytes,
        "network": machine.network_bits_per_s * machine.network_share / 8 / (rate * figures.wire_bytes),
        "most that was measured": MEASURED_STREAMS,
    }
    limit = min(limits, key=limits.__getitem__)
    left = max(ZONES - 1, math.ceil(streams / limits[limit]))
    nodes = ZONES * math.ceil(left / (ZONES - 1))
    left = nodes * (ZONES - 1) // ZONES
    each, after = streams / nodes, streams / left
    storm = Storm(
        nodes=SIMULATED_NODES,
        streams=round(each / SCALE),
        lost=round((after - each) * SIMULATED_NODES / SCALE),
        streams_max=round(max(limits[limit], after) * 1.1 / SCALE),
        cores=(machine.cores - follower_cores) / SCALE,
        stream_cores=delivery_cores,
        open_s=figures.open_s,
        backlog=round(config.backlog * machine.cores / SCALE),
        retry_s=(config.retry_min_s, config.retry_max_s),
    )
    return CapacityPlan(
        nodes=nodes,
        limit=limit,
        streams=round(each),
        cores=(each * stream_cores + follower_cores) / machine.cores,
        memory_bytes=history_bytes + after * stream_bytes,
        network_bits_per_s=after * rate * figures.wire_bytes * 8,
        storm=storm,
    )


def broker_cores(broker: str, nodes: int, figures: Figures) -> float:
    """Return the cores that a broker needs to append the published events and to send them to all nodes."""
    return PUBLISHED_PER_S * (figures.slow_append_s[broker] + nodes * figures.slow_read_s[broker])


def events_per_s_max(broker: str, nodes: int, figures: Figures, machine: NodeMachine) -> float:
    """Return the events per second that one core of a broker can append and send to all nodes."""
    return machine.cpu_share / (figures.append_s[broker] + nodes * figures.read_s[broker])


def render(figures: Figures, machine: NodeMachine) -> str:
    """Return the generated section of the page."""
    plans = [(streams, rate, plan(streams, rate, figures, machine)) for rate in RATES for streams in STREAMS]
    text = _figures(figures) + "\n### Nodes\n\n" + _table(
        "streams | events/s per stream | nodes | limited by | streams per node | CPU, all zones | memory per node "
        "| network per node",
        [
            (
                _millions(streams),
                f"{rate:g}",
                f"{each.nodes}",
                each.limit,
                f"{each.streams:,}",
                f"{100 * each.cores:.0f} %",
                f"{each.memory_bytes / 2**30:.1f} GiB",
                f"{each.network_bits_per_s / 1e9:.2f} Gbit/s",
            )
            for streams, rate, each in plans
        ],
    )
    text += "\nMemory and network are those after a zone has failed.\n\n### Broker\n\n"
    data = 150 + ENTRY_BYTES
    text += _table(
        "streams | events/s per stream | readers | network of the broker | "
        + " | ".join(f"{broker}: cores | {broker}: most events/s" for broker in figures.read_s),
        [
            (
                _millions(streams),
                f"{rate:g}",
                f"{each.nodes}",
                f"{each.nodes * PUBLISHED_PER_S * data * 8 / 1e9:.3g} Gbit/s",
                *(
                    text
                    for broker in figures.read_s
                    for text in (
                        number(broker_cores(broker, each.nodes, figures)),
                        number(events_per_s_max(broker, each.nodes, figures, machine)),
                    )
                ),
            )
            for streams, rate, each in plans
        ],
    )
    text += f"\nNetwork and cores of the broker: at {PUBLISHED_PER_S:,.0f} events/s. Most events/s: with one core.\n"
    text += "\n### A zone fails\n\n" + _table(
        "streams | events/s per stream | reconnections/s per node | openings/s per node | half open again, model "
        "| simulation | all open again, model | simulation | dropped connection requests",
        [_storm_row(streams, rate, each.storm) for streams, rate, each in plans],
    )
    return text


def _storm_row(streams: int, rate: float, storm: Storm) -> tuple[str, ...]:
    model, simulated = expect(storm), simulate(storm, SEED)
    least_s, most_s = storm.retry_s
    arrivals = SCALE * storm.lost / storm.nodes / (most_s - least_s)
    openings = SCALE * storm.openings_per_s(storm.streams + storm.lost / storm.nodes / 2)
    times = (f"{value:.1f} s" for value in (model.half_s, simulated.half_s, model.all_s, simulated.all_s))
    dropped = f"{_dropped(storm, simulated):.2g} per stream" if simulated.dropped else "none"
    return (_millions(streams), f"{rate:g}", f"{arrivals:,.0f}", f"{openings:,.0f}", *times, dropped)


def _dropped(storm: Storm, result: StormResult) -> float:
    return result.dropped / storm.lost


def _figures(figures: Figures) -> str:
    slowly = f"at {PUBLISHED_PER_S:,.0f} events/s"
    rows: list[tuple[str, ...]] = [
        ("CPU to deliver an event to a stream, nothing joined", f"{figures.delivery_s * 1e6:.3g} µs"),
        (f"CPU to open a stream that resumes (a new one × {RESUME_FACTOR})", f"{figures.open_s * 1e6:.3g} µs"),
        ("bytes of a delivery on the network", f"{figures.wire_bytes:.0f}"),
        ("user memory of a stream", f"{figures.stream_bytes:.0f} bytes"),
        ("kernel memory of a stream", f"{KERNEL_BYTES:,.0f} bytes"),
        ("kernel memory of a stream that does not read", f"{figures.stalled_bytes / 1024:.0f} KiB"),
        (f"CPU of a follower per event (Redis), {slowly}", f"{figures.follow_s * 1e6:.3g} µs"),
    ]
    for broker in figures.read_s:
        cost = f"{figures.append_s[broker] * 1e6:.3g} and {figures.read_s[broker] * 1e6:.3g} µs"
        rows.append((f"CPU of {broker} per event, and per event and node that reads it, at full speed", cost))
        cost = f"{figures.slow_append_s[broker] * 1e6:.3g} and {figures.slow_read_s[broker] * 1e6:.3g} µs"
        rows.append((f"the same {slowly}", cost))
    return "### Measured figures\n\n" + _table("figure | value", rows)


def _table(heads: str, rows: list[tuple[str, ...]]) -> str:
    columns = heads.count("|") + 1
    lines = [f"| {heads} |", "| " + " | ".join(["---"] * columns) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _millions(streams: int) -> str:
    return f"{streams // MILLION} million"


def main() -> int:
    """Compute the tables. Write them to the page, or print them if the machine is another one than the page's."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=main.__doc__)
    parser.add_argument("--cores", type=int, default=8, help="cores of a node (8)")
    parser.add_argument("--memory", type=int, default=32, help="memory of a node in GiB (32)")
    parser.add_argument("--network", type=float, default=10.0, help="network of a node in Gbit/s (10)")
    options = parser.parse_args()
    machine = NodeMachine(options.cores, options.memory << 30, options.network * 1e9)
    text = render(load_figures(), machine)
    if machine == NodeMachine():
        put(PAGE, "capacity", text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
