"""The display of `relay top`: tables of the statistics of one or several nodes.

Owns the tables, the rates and the sort orders. Never requests anything and never reads the keyboard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from relay.config.formats import size_text
from relay.telemetry.stats_schema import ServerStats, SlowStream, UpstreamStats, WorkerStats

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

ROWS_MAX = 10
"""Most topics and slow streams that are shown if no terminal limits the display."""
HEAD_LINES = 2
"""Lines above the figures: the state of the nodes, and the current problem."""

ORDERS = {"s": "streams", "r": "rate", "l": "lag", "n": "name"}
"""The sort orders by their keys. A table without a value for an order is sorted by streams."""

Columns = tuple[str, ...]

_NODES: Columns = ("node", "streams", "lagging", "events/s", "deliveries/s", "bytes/s", "log fill", "cluster lag", "")
_WORKERS: Columns = ("worker", "streams", "lagging", "deliveries/s", "link lag", "")
_SOURCES: Columns = ("source", "events", "errors", "lost", "state")
_TOPICS: Columns = ("topic", "subscribers", "events/s", "retained")
_SLOWEST: Columns = ("slowest streams", "topics", "policy", "lag")


@dataclass(slots=True)
class NodeState:
    """One node: its last two statistics, and the reason why they are out of date.

    Args:
        name: the host and the port.
        stats: the current statistics; None if the node has never answered.
        before: the previous statistics, for rates. If None, or if the server has restarted since, rates are means since
            the start.
        problem: the reason why the node does not answer; empty if it does.
    """

    name: str
    stats: ServerStats | None = None
    before: ServerStats | None = None
    problem: str = ""

    @property
    def known(self) -> tuple[ServerStats, ServerStats]:
        """The current and the previous statistics; empty ones for those that are missing."""
        stats, before = self.stats or ServerStats(), self.before
        if before is None or before.uptime_s >= stats.uptime_s:
            before = ServerStats()
        return stats, before


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table, and its values in the sort orders."""

    cells: tuple[object, ...]
    values: Mapping[str, float | str] = field(default_factory=dict)


def render(
    nodes: Sequence[NodeState], height: int | None = None, order: str = "streams", *, reverse: bool = False
) -> RenderableType:
    """Build the display.

    Args:
        nodes: the nodes; with several, a table shows each of them.
        height: lines of the terminal, which limit the display; None for no limit.
        order: the sort order of the tables, a value of `ORDERS`.
        reverse: sort in the opposite direction.
    """
    from rich.console import Group
    from rich.text import Text

    figures = _figures(*nodes[0].known) if len(nodes) == 1 else None
    tables = [] if figures is not None else [(_NODES, [_node(each) for each in nodes])]
    workers = [row for node in nodes for row in _workers(node, named=len(nodes) > 1)]
    tables += [(_WORKERS, workers)] if workers else []
    sources = [row for node in nodes for row in _sources(node)]
    tables += [(_SOURCES, sources)] if sources else []
    tables += [(_TOPICS, _topics(nodes)), (_SLOWEST, _slowest(nodes))]
    tables = [(columns, _sorted(rows, order, reverse)) for columns, rows in tables]
    lengths = [len(rows) for _, rows in tables]
    if height is None:
        lengths = [min(ROWS_MAX, length) if table[0] in (_TOPICS, _SLOWEST) else length
                   for table, length in zip(tables, lengths, strict=True)]  # fmt: skip
    else:
        # A blank line and a header precede the rows of each table.
        used = HEAD_LINES + (figures.row_count if figures is not None else 0)
        lengths = share(lengths, height - used - 2 * len(tables))
    problem = "; ".join(f"{each.problem}; trying again" for each in nodes if each.problem)
    hint = f"  sorted by {order}{', reversed' if reverse else ''}  (s r l n, q quits)"
    parts: list[RenderableType] = [
        _head(nodes, "" if height is None else hint),
        Text(_clean(problem), "red", no_wrap=True, overflow="ellipsis"),
    ]
    if figures is not None:
        parts.append(figures)
    for (columns, rows), length in zip(tables, lengths, strict=True):
        parts += [*([Text()] if figures is not None or columns is not _NODES else []), _table(columns, rows[:length])]
    return Group(*parts)


def _head(nodes: Sequence[NodeState], hint: str) -> RenderableType:
    """Build the first line: the version and the state of one node, or the number of nodes."""
    from rich.text import Text

    ready = sum(node.known[0].ready and not node.problem for node in nodes)
    if len(nodes) == 1:
        stats = nodes[0].known[0]
        what = f"{stats.version}  engine {stats.engine or '?'}  up {_span(stats.uptime_s)}  "
        state = "ready" if stats.ready else "not ready"
    else:
        what, state = f"{len(nodes)} nodes  ", f"{ready} ready"
    style = "green" if ready == len(nodes) else "bold red"
    return Text.assemble(("relay ", "bold"), what, (state, style), hint, no_wrap=True, overflow="ellipsis")


def _sorted(rows: list[TableRow], order: str, reverse: bool) -> list[TableRow]:
    """Sort rows: names from A to Z, numbers from the largest."""
    if not rows:
        return rows
    order = order if order in rows[0].values else "streams"
    if order == "name":
        return sorted(rows, key=lambda row: str(row.values[order]), reverse=reverse)
    return sorted(rows, key=lambda row: float(row.values[order]), reverse=not reverse)


def share(wanted: Sequence[int], room: int) -> list[int]:
    """Divide `room` lines evenly among tables. No table receives more lines than it wants."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for place, most in enumerate(wanted):
            if given[place] < most and room > 0:
                given[place] += 1
                room -= 1
    return given


def _figures(stats: ServerStats, before: ServerStats) -> Table:
    """Build the table of figures of one node: pairs of name and value."""
    log, elapsed_s = stats.log, stats.uptime_s - before.uptime_s
    rows = [
        ("streams", f"{stats.streams:,}", "events/s", _rate(stats.events - before.events, elapsed_s)),
        ("lagging", f"{stats.lagging:,}", "deliveries/s", _rate(stats.deliveries - before.deliveries, elapsed_s)),
        (
            "most lag",
            _lag(stats.slowest[0]) if stats.slowest else "none",
            "bytes/s",
            _rate(stats.bytes - before.bytes, elapsed_s),
        ),
        ("log", f"{log.events:,} events", "log fill", f"{_fill(stats)} of {_size(log.bytes_max)}"),
        ("policies acted", _counts(stats.policy_actions) or "never", "closed", _counts(stats.closes) or "none"),
    ]
    if stats.upstream:
        rows.append(("upstream", _state(stats.upstream), "breaks", f"{stats.upstream.breaks:,}"))
    if stats.cluster:
        state = "connected" if stats.cluster.connected else stats.cluster.error or "not connected"
        rows.append(("cluster", state, "cluster lag", f"{stats.cluster.lag_events:,} events"))
    return _table(("", "", "", ""), [TableRow(row) for row in rows])


def _node(node: NodeState) -> TableRow:
    """Return the row of one node."""
    stats, before = node.known
    elapsed_s = stats.uptime_s - before.uptime_s
    lag = stats.cluster.lag_events if stats.cluster else 0
    delivered = stats.deliveries - before.deliveries
    state = "does not answer" if node.problem else "ready" if stats.ready else "not ready"
    cells = (
        node.name,
        f"{stats.streams:,}",
        f"{stats.lagging:,}",
        _rate(stats.events - before.events, elapsed_s),
        _rate(delivered, elapsed_s),
        _rate(stats.bytes - before.bytes, elapsed_s),
        _fill(stats),
        f"{lag:,} events" if stats.cluster else "",
        state,
    )
    rate = _per_second(delivered, elapsed_s)
    return TableRow(cells, {"streams": stats.streams, "rate": rate, "lag": lag or stats.lagging, "name": node.name})


def _fill(stats: ServerStats) -> str:
    return f"{stats.log.bytes / (stats.log.bytes_max or 1):.0%}"


def _counts(counts: Mapping[str, int]) -> str:
    """Format the counts that are not zero."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _state(upstream: UpstreamStats) -> str:
    """Describe the connection to the upstream."""
    return str(upstream.ended or ("linked" if upstream.linked else upstream.error or "not linked"))


def _topics(nodes: Iterable[NodeState]) -> list[TableRow]:
    """Return a row for each topic. Subscribers of several nodes are added; the other figures are the largest."""
    found: dict[str, tuple[int, float, int]] = {}
    for node in nodes:
        stats, before = node.known
        elapsed_s = stats.uptime_s - before.uptime_s
        earlier = {topic.topic: topic.events for topic in before.topics}
        for topic in stats.topics:
            # A topic that relay forgot meanwhile counts from 0 again.
            rate = _per_second(max(0, topic.events - earlier.get(topic.topic, 0)), elapsed_s)
            subscribers, most_rate, retained = found.get(topic.topic, (0, 0.0, 0))
            found[topic.topic] = (
                *(subscribers + topic.subscribers, max(most_rate, rate), max(retained, topic.retained)),
            )
    return [
        TableRow(
            (name, f"{subscribers:,}", _number(rate), f"{retained:,}"),
            {"streams": subscribers, "rate": rate, "name": name},
        )
        for name, (subscribers, rate, retained) in found.items()
    ]


def _workers(node: NodeState, *, named: bool) -> list[TableRow]:
    """Return a row for each worker of a node. Rates are means since its previous statistics, or since its start."""
    stats, before = node.known
    known = {worker.worker: worker for worker in before.workers or ()}
    rows = []
    for worker in stats.workers or ():
        earlier = known.get(worker.worker, WorkerStats())
        if _known(earlier.uptime_s) >= _known(worker.uptime_s):
            earlier = WorkerStats()
        elapsed_s = _known(worker.uptime_s) - _known(earlier.uptime_s)
        rate = _per_second(_known(worker.deliveries) - _known(earlier.deliveries), elapsed_s)
        name = f"{node.name} {worker.worker}" if named else str(worker.worker)
        cells = (
            name,
            f"{_known(worker.streams):,}",
            f"{_known(worker.lagging):,}",
            _number(rate),
            f"{worker.link_lag_events:,} events",
            "" if worker.answered else "does not answer",
        )
        sort = {"streams": _known(worker.streams), "rate": rate, "lag": worker.link_lag_events}
        rows.append(TableRow(cells, {**sort, "name": f"{node.name} {worker.worker:4}"}))
    return rows


def _sources(node: NodeState) -> list[TableRow]:
    """Return a row for each source that reads a feed."""
    return [
        TableRow(
            (
                each.source,
                f"{each.events:,}",
                f"{each.errors:,}",
                f"{each.lost:,}",
                each.ended or ("connected" if each.connected else each.error or "not connected"),
            ),
            {"streams": each.events, "name": each.source},
        )
        for each in node.known[0].sources or ()
    ]


def _known(number: float | UnsetType) -> float:
    """Return a number; 0 if it is absent."""
    return 0 if number is UNSET else number


def _slowest(nodes: Iterable[NodeState]) -> list[TableRow]:
    """Return a row for each of the streams that lag most."""
    return [
        TableRow(
            (
                stream.address,
                ", ".join(stream.topics[:3]) + (", …" if len(stream.topics) > 3 else ""),
                stream.policy,
                _lag(stream),
            ),
            {"streams": stream.lag_events, "lag": stream.lag_events, "name": stream.address},
        )
        for node in nodes
        for stream in node.known[0].slowest
    ]


def _table(columns: Columns, rows: Sequence[TableRow]) -> Table:
    """Build a table. Values that exceed the width of the terminal are truncated."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=any(columns), pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(_clean(value)) for value in row.cells))
    return table


def _clean(value: object) -> str:
    """Replace each unprintable character of a value with `?`."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _per_second(count: float, elapsed_s: float) -> float:
    """Return the mean rate per second of a count."""
    return count / elapsed_s if elapsed_s > 0 else 0.0


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _rate(count: float, elapsed_s: float) -> str:
    return _number(_per_second(count, elapsed_s))


def _lag(stream: SlowStream) -> str:
    """Return a stream's lag in events, bytes and seconds."""
    if not stream.lag_events:
        return "none"
    return f"{stream.lag_events:,} events, {_size(stream.lag_bytes)}, {stream.lag_s:.1f} s"


def _size(size: int) -> str:
    """Format a number of bytes: a whole number of its unit if exact, otherwise with one decimal."""
    exact = size_text(size)
    if not exact.isdigit() or size < 1024:
        return exact if not exact.isdigit() else f"{exact} B"
    return f"{size / 1024:,.1f}KiB" if size < 1024**2 else f"{size / 1024**2:,.1f}MiB"


def _span(seconds: float) -> str:
    """Format a time in its two largest units."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest_s}s"
