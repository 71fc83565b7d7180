"""The check of the path from a client to relay: does a proxy hold events back, or cut idle streams?

Theory of operation. The check opens a stream at the address that clients use, and notes the time of each event. With a
token it publishes events, one after another, and compares the times. Without one it has only
the first bytes of the stream. A proxy that buffers delays them until its buffer is full, and sometimes even the head of
the response.

Owns the test events, which expire at once. Never retries: a failure is the result.
"""

from __future__ import annotations

import asyncio
import email.utils
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.client.authorization import bearer
from relay.client.opening import certificate_fault, shown
from relay.client.publish import publish
from relay.client.target import endpoint, tls_context
from relay.doctor.finding import Finding, fault, ok, skipped, warning
from relay.errors import RelayError, RequestError
from relay.event import Event

if TYPE_CHECKING:
    import httpx

EVENTS = 5
EVENT_PAUSE_S = 0.2
"""Time between two test events, so that a proxy that collects events for a while shows itself."""
WAIT_S = 3.0
"""Time to wait for the head, for the first bytes, and for the last event."""
LATE_S = 1.0
"""A delay from here on is a fault: events wait for something on their way."""
SLOW_S = 0.25
CLOCK_S = 2.0
"""Difference of the clocks from which on JWTs and `since` may surprise."""
TTL_S = 1
GZIP_BITS = 31

_REMEDY = (
    "turn off buffering and compression of /events in the proxy (nginx: proxy_buffering off, gzip off; do not ignore "
    "X-Accel-Buffering); see docs/proxies.md"
)


@dataclass(slots=True)
class Observed:
    """The stream as the client sees it: times on the monotonic clock."""

    head_s: float | None = None
    first_s: float | None = None
    last_s: float = 0.0
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    text: bytearray = field(default_factory=bytearray)
    arrived_s: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def note(self, data: bytes, marks: list[str], now_s: float) -> None:
        """Note the arrival of bytes, and of the marks that they complete."""
        self.first_s, self.last_s = self.first_s or now_s, now_s
        self.text += data
        for mark in marks:
            if mark not in self.arrived_s and mark.encode() in self.text:
                self.arrived_s[mark] = now_s


async def check_path(
    url: str, token: str | None, topic: str, publish_to: str | None, ca: str | None, idle_s: float
) -> list[Finding]:
    """Check the path through an address.

    Args:
        url: the address of the server as clients use it.
        token: bearer token for reading and publishing; None to check without events.
        topic: the topic of the stream and of the test events.
        publish_to: target for the test events: a Unix socket or an address. None means `url`.
        ca: PEM file of the authorities to trust for https.
        idle_s: time to keep the stream open without events; 0 for no such check.

    Raises:
        RelayError: httpx is missing, or the address is malformed.
    """
    base = endpoint(url, "/")
    import httpx

    headers = {"Authorization": bearer(token)} if token else {}
    async with httpx.AsyncClient(verify=tls_context(ca), headers=headers, timeout=2 * WAIT_S) as client:
        try:
            health = await client.get(base.join("healthz"))
        except httpx.HTTPError as error:
            if untrusted := certificate_fault(error):
                reason, remedy = untrusted
                return [fault("server", f"{shown(base)}: {reason}", remedy)]
            text = f"{shown(base)}: {error or type(error).__name__}"
            return [fault("server", text, "check the address, and that relay runs")]
        findings = [_judge_health(base, health), *_judge_clock(health)]
        marks = [f"doctor-{secrets.token_hex(8)}" for _ in range(EVENTS)]
        observed = Observed()
        began_s = time.monotonic()
        reading = asyncio.create_task(_read(client, base.join("events"), topic, marks, observed))
        try:
            await _until(lambda: observed.first_s is not None or bool(observed.error), reading)
            if observed.error or (observed.head_s is not None and observed.status != 200):
                return [*findings, _refused(observed)]
            sent_s: dict[str, float] = {}
            problem: Finding | None = None
            if token or publish_to:
                target = publish_to or str(base.join("publish"))
                problem = await _publish(client, target, token, topic, marks, sent_s)
            if problem is None and sent_s:
                await _until(lambda: len(observed.arrived_s) == len(sent_s), reading)
            idle = await _watch_idle(observed, reading, idle_s)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    findings += _judge_head(observed, began_s)
    if problem:
        findings.append(problem)
    elif sent_s:
        findings.append(judge_delays(observed, sent_s))
    elif observed.first_s is not None:
        findings.append(skipped("events", "not measured", "give --token (or --publish-to) to publish test events"))
    return [*findings, idle]


async def _read(client: httpx.AsyncClient, url: httpx.URL, topic: str, marks: list[str], observed: Observed) -> None:
    """Read the stream until it is cancelled. Compression is requested, as a browser does."""
    import httpx

    inflate = zlib.decompressobj(GZIP_BITS)
    try:
        fields = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
        async with client.stream("GET", url, params={"topic": topic}, headers=fields, timeout=None) as response:
            observed.head_s, observed.status = time.monotonic(), response.status_code
            observed.fields = {name.lower(): value for name, value in response.headers.items()}
            compressed = observed.fields.get("content-encoding") == "gzip"
            async for data in response.aiter_raw():
                observed.note(inflate.decompress(data) if compressed else data, marks, time.monotonic())
        observed.error = "the server or a proxy ended the stream"
    except (httpx.HTTPError, zlib.error) as error:
        observed.error = str(error) or type(error).__name__


async def _publish(
    client: httpx.AsyncClient, target: str, token: str | None, topic: str, marks: list[str], sent_s: dict[str, float]
) -> Finding | None:
    """Publish the test events and note the time of each acknowledgement. Return a finding if one is rejected."""
    for mark in marks:
        try:
            async with asyncio.timeout(2 * WAIT_S):
                await publish(target, Event(data=mark, topic=topic, ttl=TTL_S), token, client=client)
        except TimeoutError:
            reason, status = f"no answer within {2 * WAIT_S:g} s", 0
        except RelayError as error:
            reason, status = str(error), error.status if isinstance(error, RequestError) else 400
        else:
            sent_s[mark] = time.monotonic()
            await asyncio.sleep(EVENT_PAUSE_S)
            continue
        remedy = "give a token that may publish on the topic (--token, --topic)"
        if status in (0, 404, 405):
            remedy = "a proxy may block /publish: give another address of relay (--publish-to)"
        return warning("events", f"cannot publish: {reason}", remedy)
    return None


async def _until(condition: Callable[[], bool], reading: asyncio.Task[None]) -> None:
    """Wait until a condition holds, the stream has ended, or `WAIT_S` has passed."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition() and not reading.done() and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)


async def _watch_idle(observed: Observed, reading: asyncio.Task[None], idle_s: float) -> Finding:
    """Keep the stream open without events. Only heartbeats arrive."""
    if not idle_s:
        return skipped("idle", "not measured", "give --idle 20s to find a proxy that cuts idle streams")
    began_s = time.monotonic()
    await asyncio.wait([reading], timeout=idle_s)
    return judge_idle(observed, began_s, time.monotonic(), is_cut=reading.done())


def judge_idle(observed: Observed, began_s: float, now_s: float, *, is_cut: bool) -> Finding:
    """Judge a stream without events.

    Args:
        observed: the stream.
        began_s: the time from which no event was published.
        now_s: the time at which the stream was cut, or the check ended.
        is_cut: whether the stream was cut.
    """
    silent_s = now_s - max(observed.last_s, began_s)
    if is_cut:
        remedy = (
            "raise the read timeout of the proxy above the heartbeat (nginx: proxy_read_timeout; HAProxy: timeout "
            "server and timeout client), or lower heartbeat"
        )
        return fault("idle", f"the stream was cut after {silent_s:.1f} s of silence: {observed.error}", remedy)
    if observed.last_s <= began_s:
        remedy = f"give --idle a longer time than heartbeat; if it is longer: {_REMEDY}"
        return warning("idle", f"no heartbeat arrived within {now_s - began_s:.1f} s", remedy)
    return ok("idle", f"heartbeats keep the stream open for {now_s - began_s:.1f} s")


def _judge_health(base: httpx.URL, health: httpx.Response) -> Finding:
    proxy = health.headers.get("Via") or health.headers.get("Server") or ""
    text = f"{shown(base)}healthz answers {health.status_code}" + (f", through {proxy[:60]}" if proxy else "")
    if health.status_code != 200:
        return fault("server", text, "let the proxy forward /healthz, /events and /publish to relay")
    return ok("server", text)


def _judge_clock(health: httpx.Response) -> list[Finding]:
    """Compare the clock of the server with that of this machine."""
    try:
        there = email.utils.parsedate_to_datetime(health.headers.get("Date", "")).timestamp()
    except (TypeError, ValueError):
        return []
    difference_s = there + 0.5 - time.time()  # Date has whole seconds
    if abs(difference_s) > CLOCK_S:
        text = f"the server's clock differs by {difference_s:+.0f} s from this machine's"
        return [warning("clocks", text, "synchronise both clocks (chrony, systemd-timesyncd or ntpd)")]
    return [ok("clocks", "the clocks of the server and of this machine agree")]


def _refused(observed: Observed) -> Finding:
    if observed.status == 401 or observed.status == 403:
        return fault("stream", f"the server answers {observed.status}", "give a token that may read (--token, --topic)")
    text = observed.error or f"the server answers {observed.status}"
    return fault("stream", text, "read the log of relay and of the proxy")


def _judge_head(observed: Observed, began_s: float) -> list[Finding]:
    """Judge the head of the response and its first bytes."""
    findings = []
    if observed.head_s is None and not observed.arrived_s:
        text = f"no response within {WAIT_S:g} s, although /healthz answers: a proxy buffers"
        return [fault("stream", text, _REMEDY)]
    media = observed.fields.get("content-type", "")
    if not media.startswith("text/event-stream"):
        findings.append(fault("stream", f"its content type is {media[:80] or 'missing'}", "forward /events unchanged"))
    if observed.first_s is None or observed.first_s - began_s > LATE_S:
        text = "its first bytes do not arrive: a proxy buffers, or prime is off"
        findings.append(fault("stream", text, _REMEDY))
    elif not findings:
        coding = observed.fields.get("content-encoding", "none")
        after_ms = 1000 * (observed.first_s - began_s)
        findings.append(ok("stream", f"its first bytes arrive after {after_ms:.0f} ms, compression: {coding}"))
    return findings


def judge_delays(observed: Observed, sent_s: dict[str, float]) -> Finding:
    """Judge the times between the acknowledgement of each event and its arrival.

    Args:
        observed: the stream.
        sent_s: the time of each acknowledgement.
    """
    delays_s = [max(0.0, observed.arrived_s[mark] - sent_s[mark]) for mark in sent_s if mark in observed.arrived_s]
    missing = len(sent_s) - len(delays_s)
    if missing:
        text = f"{missing} of {len(sent_s)} do not arrive within {WAIT_S:g} s: a proxy buffers"
        return fault("events", text, _REMEDY)
    text = f"they arrive {1000 * max(delays_s):.0f} ms after they are acknowledged, at most"
    if max(delays_s) >= LATE_S:
        return fault("events", f"{text}: a proxy buffers", _REMEDY)
    if max(delays_s) > SLOW_S:
        return warning("events", text, "measure the network and the load of relay")
    return ok("events", text)
