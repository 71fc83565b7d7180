"""`python -m bench.models`: measure conversations with language models, each one a topic with a few viewers.

The publisher sends the tokens of all conversations. In the middle of the run, every viewer reloads at once: it opens a
new stream without an id and receives its conversation from the first token. The swarm checks that no viewer misses a
token, before and after.

Owns this run. `--save` writes the figures to `models.json`. Never writes a document.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time

import msgspec

from bench import HERE
from bench.report import machine, number, save, stamp
from loadtest.rig.harness import Cores, MeasuredServer, MeasureError, pinned, raise_descriptor_limit
from loadtest.rig.swarm import Swarm, SwarmReport
from loadtest.rig.targets import RELAY

RESULTS = HERE / "models.json"
WARM_UP_S = 2.0
WINDOW = 0.4
"""Share of the run that is measured before the viewers reload."""
FINISH_S = 60.0
KEEP_ALL = ("--history-bytes", "8GiB", "--history-events", "0")


class ModelRun(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a run.

    Args:
        conversations: number of topics.
        tokens: tokens per second of each conversation.
        viewers: streams of each conversation.
        seconds: duration of the answers.
        size: bytes of the data of an event.
    """

    conversations: int = 1000
    tokens: float = 50.0
    viewers: int = 3
    seconds: float = 20.0
    size: int = 80


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run.

    Args:
        deliveries_per_s: tokens delivered per second before the reload.
        cores: cores that the server used meanwhile.
        cpu_us_per_delivery: CPU of the server for one delivery, which includes its share of publishing.
        p50_ms, p99_ms, max_ms: from publish to read, before the reload.
        behind_max_ms: largest delay of the publisher.
        reload_s: from the reload of all viewers until each had received its first token again.
        caught_up_s: from the reload until each had received all tokens published before it.
        replayed: deliveries between these two times.
        viewer_bytes: memory of the server for one waiting viewer.
        memory_bytes, log_bytes: memory of the server at the end, and the retained events in it.
        faults: tokens missing, repeated, out of order, torn or of another conversation.
        lost_viewers: viewers that had not received the last token at the end.
    """

    deliveries_per_s: float
    cores: float
    cpu_us_per_delivery: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    behind_max_ms: float
    reload_s: float
    caught_up_s: float
    replayed: int
    viewer_bytes: float
    memory_bytes: int
    log_bytes: int
    faults: int
    lost_viewers: int


def measure(run: ModelRun, cores: Cores) -> ModelFigures:
    """Run once.

    Raises:
        MeasureError: not every viewer could connect.
    """
    viewers, rate = run.conversations * run.viewers, run.conversations * run.tokens
    count = int(rate * run.seconds)
    with MeasuredServer(RELAY, cpus=cores.server, extra=KEEP_ALL) as server:
        empty_bytes = server.pss_bytes()
        with Swarm(
            server.port,
            viewers,
            path="/events?topic=t.{}&since=earliest",
            topics=run.conversations,
            seconds=run.seconds + FINISH_S + 60,
            cpus=cores.load,
        ) as swarm:
            if swarm.ready().open < viewers:
                raise MeasureError(f"only {swarm.mark().open} of {viewers} viewers could connect")
            viewer_bytes = (server.pss_bytes() - empty_bytes) / viewers
            with server.publisher(
                rate=rate,
                count=count,
                seconds=run.seconds + FINISH_S,
                size=run.size,
                topics=run.conversations,
                cpus=cores.load,
            ) as publisher:
                time.sleep(min(WARM_UP_S, run.seconds / 10))
                swarm.reset()
                before, cpu_s = swarm.mark(), server.cpu_s()
                time.sleep(run.seconds * WINDOW)
                after, cpu_s = swarm.mark(), server.cpu_s() - cpu_s
                reloaded, caught_up = _reload(swarm, after.last_max)
                sent = publisher.done()
            last = swarm.finish(count, FINISH_S)
            window_s = (after.time_ns - before.time_ns) / 1e9
            deliveries = after.deliveries - before.deliveries
            return ModelFigures(
                deliveries_per_s=deliveries / window_s,
                cores=cpu_s / window_s,
                cpu_us_per_delivery=cpu_s / max(deliveries, 1) * 1e6,
                p50_ms=after.p50_ms,
                p99_ms=after.p99_ms,
                max_ms=after.max_ms,
                behind_max_ms=sent.behind_max_ms,
                reload_s=reloaded.recover_s,
                caught_up_s=(caught_up.time_ns - after.time_ns) / 1e9,
                replayed=caught_up.deliveries - after.deliveries,
                viewer_bytes=viewer_bytes,
                memory_bytes=server.pss_bytes(),
                log_bytes=int(server.stats()["log"]["bytes"]),
                faults=last.faults,
                lost_viewers=viewers - last.reached,
            )


def _reload(swarm: Swarm, seen: int) -> tuple[SwarmReport, SwarmReport]:
    """Reload every viewer; return the reports after the first token of each, and after each has seen a number again."""
    reloaded = swarm.reload(FINISH_S)
    return reloaded, swarm.wait_for(seen, FINISH_S)


def render(run: ModelRun, figures: ModelFigures) -> str:
    """Return the figures as a table in Markdown."""
    rows = {
        "deliveries per second": number(figures.deliveries_per_s),
        "cores of the server": number(figures.cores),
        "CPU per delivery": f"{number(figures.cpu_us_per_delivery)} µs",
        "from publish to read": (
            f"p50 {number(figures.p50_ms)} ms, p99 {number(figures.p99_ms)} ms, max {number(figures.max_ms)} ms"
        ),
        "largest delay of the publisher": f"{number(figures.behind_max_ms)} ms",
        "all viewers reload: first token again": f"{number(figures.reload_s)} s",
        "all viewers reload: all tokens again": f"{number(figures.caught_up_s)} s, {figures.replayed:,} deliveries",
        "memory per waiting viewer": f"{number(figures.viewer_bytes)} bytes",
        "memory at the end": (
            f"{number(figures.memory_bytes / 1e6)} MB, with {number(figures.log_bytes / 1e6)} MB of retained events"
        ),
        "tokens lost, repeated, out of order or torn": str(figures.faults),
        "viewers without the last token": str(figures.lost_viewers),
    }
    head = (
        f"{run.conversations:,} conversations × {number(run.tokens)} tokens per second × {run.viewers} viewers, "
        f"{number(run.seconds)} s, {run.size} bytes of data per token"
    )
    return f"{head}\n\n| | |\n| --- | --- |\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 1 if a viewer missed a token."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=main.__doc__)
    default = ModelRun()
    parser.add_argument("--conversations", type=int, default=default.conversations, help="topics (1000)")
    parser.add_argument("--tokens", type=float, default=default.tokens, help="tokens per second of each (50)")
    parser.add_argument("--viewers", type=int, default=default.viewers, help="viewers of each (3)")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="duration of the answers (20)")
    parser.add_argument("--size", type=int, default=default.size, help="bytes of the data of a token (80)")
    parser.add_argument("--save", action="store_true", help="save the figures in bench/models.json")
    options = vars(parser.parse_args(arguments))
    is_saved = options.pop("save")
    run = ModelRun(**options)
    raise_descriptor_limit()
    figures = measure(run, pinned())
    print(render(run, figures), end="")
    print("\n" + "\n".join(f"- {name}: {value}" for name, value in machine().items()))
    if is_saved:
        result = {"case": "models", "run": run, "figures": figures}
        save(RESULTS, stamp(result, shlex.join(["python", "-m", "bench.models", *sys.argv[1:]])))
    if figures.faults or figures.lost_viewers:
        print("bench.models: viewers missed tokens", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
