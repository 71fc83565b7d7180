"""A request for a stream gets the same answer, byte for byte, on both paths that open streams.

Covers `relay.front.openings` and `relay._native.arrivals`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest

from bench.implementations import load
from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.errors import RequestError
from relay.front.openings import Openings
from tests.front.paths import Outcome, opened, opens, outcomes, send_in_pieces, send_whole, take_turns
from tests.front.site import Site, on_uvloop
from tests.running import TOKEN, Relay, Stream, eventually, relay
from tests.twins import NAMES

RETRY = ("--retry-min", "2s", "--retry-max", "2s", "--heartbeat", "0")
"""All clients draw the same reconnection time, and no heartbeat arrives."""
HEAD_BYTES_MAX = 4096
HISTORY_EVENTS = 10
SECRET = "s" * 64
ORIGIN = "https://a.example"

DIRECT, CONNECTION, NONE = {"direct": 1, "connection": 1}, {"connection": 2}, dict[str, int]()
"""The paths that open the streams of a request in one piece and in two pieces."""


def get(target: str = "/events?topic=a", *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
    """Make a request with a Host field."""
    return "\r\n".join((f"{method} {target} HTTP/{version}", "Host: a", *fields, "", "")).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Case:
    """A request, the paths that open its streams, and a part of its answer."""

    data: bytes
    paths: dict[str, int]
    part: bytes
    id: str


def both(
    server: Relay, requests: Sequence[bytes], others: Sequence[bytes] = ()
) -> tuple[list[Outcome], dict[str, int]]:
    """Send requests on both paths and compare the answers.

    Args:
        server: the server.
        requests: the requests, each for a connection of its own.
        others: the requests in two pieces, if they differ.

    Returns:
        the answers, and the number of streams that each path opened.
    """
    before = opens(server)
    whole = outcomes(server, send_whole(server, requests))
    pieces = outcomes(server, send_in_pieces(server, others or requests))
    assert [(one, other) for one, other in zip(whole, pieces, strict=True) if one != other] == []
    return whole, opened(before, opens(server))


def status(server: Relay, data: bytes, paths: dict[str, int]) -> int:
    """Send one request on both paths, check the paths that open its streams, and return the status."""
    [answer], used = both(server, [data])
    assert used == paths
    return answer.status


def publish(server: Relay, *events: dict[str, str]) -> list[str]:
    """Publish events; return their ids."""
    fields = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    status, _, body = server.request("POST", "/publish", json.dumps(events).encode(), fields)
    assert status == 200, body
    ids: list[str] = json.loads(body)["ids"]
    return ids


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    """A server for requests without a token. All clients have its only trusted proxy as their peer."""
    arguments = (
        *(part for host in ("a", "127.0.0.1", "localhost") for part in ("--allowed-host", host)),
        *("--cors-origin", ORIGIN, "--compress", "gzip", "--envelope", "wrapped"),
        *("--head-bytes-max", str(HEAD_BYTES_MAX), "--history-events", str(HISTORY_EVENTS)),
    )
    with relay(*RETRY, *arguments) as running:
        publish(running, *({"topic": "a", "id": f"old-{number}", "data": "old"} for number in range(2)))
        publish(running, *({"topic": "a", "id": f"a-{number}", "data": "x"} for number in range(4)))
        publish(running, *({"topic": "a.b", "id": f"b-{number}", "data": "y\nz"} for number in range(4)))
        publish(
            running, {"topic": "over", "id": "o-1", "data": "1"}, {"topic": "over", "id": "o-2", "event": "relay.end"}
        )
        yield running


PLAIN = get()
SHORT = len(get("/events?topic=a", "X: "))
LAST = "Last-Event-ID: a-1"

CASES = [
    Case(get(), DIRECT, b"200", id="open"),
    Case(get("/events/a.b"), DIRECT, b"200", id="the topic in the path"),
    Case(get("/events"), DIRECT, b"200", id="the default topic"),
    Case(get("/events?topic=a.*"), DIRECT, b"200", id="a pattern"),
    Case(get("/events?topic=a&topic=a.b&topic=c"), DIRECT, b"200", id="several topics"),
    Case(get("/events?topic=a&policy=conflate"), DIRECT, b"200", id="a policy"),
    Case(get("/events?topic=a&padding"), DIRECT, b" " * 2000, id="padding"),
    Case(get("/events?topic=a&envelope=1", LAST), DIRECT, b'"topic"', id="an envelope"),
    Case(get("/events?topic=wrapped"), DIRECT, b"200", id="an envelope by a setting"),
    Case(get("/events?topic=a", LAST, "Accept: application/x-ndjson"), DIRECT, b"x-ndjson", id="NDJSON"),
    Case(get("/events?topic=a", LAST, version="1.0"), DIRECT, b"200", id="HTTP/1.0"),
    Case(get("/events?topic=a", LAST, version="1.5"), DIRECT, b"200", id="a later minor version"),
    Case(get("/events?topic=a", LAST, "Accept-Encoding: gzip"), DIRECT, b"ncoding: gzip", id="gzip"),
    Case(get("http://a/events?topic=a"), DIRECT, b"200", id="the absolute form"),
    Case(get("/events?topic=a", LAST), DIRECT, b"id: a-3", id="a known id"),
    Case(get("/events?topic=a.*", "last-event-ID:\t b-1 "), CONNECTION, b"id: b-3", id="a known id of a pattern"),
    Case(get("/events?topic=**", "Last-Event-ID: o-1"), CONNECTION, b"relay.end", id="a known id of all topics"),
    Case(get("/events?topic=a", "Last-Event-ID: none"), DIRECT, b"relay.gap", id="an unknown id"),
    Case(get("/events?topic=a", "Last-Event-ID: old-0"), DIRECT, b"relay.gap", id="an evicted id"),
    Case(get("/events?topic=a", "Last-Event-ID:"), DIRECT, b"200", id="an empty id"),
    Case(get("/events?topic=a", "Last-Event-ID: \xe9"), CONNECTION, b"relay.gap", id="an id of 8-bit bytes"),
    Case(get("/events?topic=a", "Last-Event-ID: " + "x" * 1500), DIRECT, b"relay.gap", id="an id too long"),
    Case(get("/events?topic=over", "Last-Event-ID: o-2"), NONE, b"204", id="the last id of an ended topic"),
    Case(get("/events?topic=over", "Last-Event-ID: o-1"), DIRECT, b"relay.end", id="an ended topic"),
    Case(get("/events?topic=over"), NONE, b"204", id="an ended topic without an id"),
    Case(get("/events?topic=over", "Last-Event-ID: none"), DIRECT, b"relay.gap", id="an ended topic and a gap"),
    Case(get("/events?topic=a&lastEventId=a-2"), DIRECT, b"id: a-3", id="the id in the query"),
    Case(get("/events?topic=a&lastEventId=a-0", "Last-Event-ID: a-2"), DIRECT, b"id: a-3", id="two ids"),
    Case(get("/events?topic=a&lastEventId=a-0", "Last-Event-ID: "), DIRECT, b"id: a-1", id="two ids, one empty"),
    Case(get("/events?topic=a&lastEventId=a-0&lastEventId=a-1"), DIRECT, b"relay.gap", id="a repeated query id"),
    Case(get("/events?topic=a&since=earliest"), DIRECT, b"id: a-3", id="since"),
    Case(get("/events?topic=a&since=earliest", LAST), DIRECT, b"id: a-3", id="since and an id"),
    Case(get("/events?topic=a&since=earliest", "Last-Event-ID: "), DIRECT, b"id: a-3", id="since, no id"),
    Case(get("/events?topic=a&since=last"), DIRECT, b"id: a-3", id="since last"),
    Case(get("/events?topic=a&since=last", LAST), DIRECT, b"id: a-2", id="since last and an id"),
    Case(get("/events?topic=a&since=a-2"), DIRECT, b"id: a-3", id="since an id"),
    Case(get("/events?topic=a&since=none"), NONE, b"400", id="since an unknown id"),
    Case(get("/events?topic=a&since=none", LAST), DIRECT, b"id: a-3", id="since an unknown id and an id"),
    Case(get("/events?topic=a&since=1h&since=2h", LAST), NONE, b"400", id="since repeated"),
    Case(get("/events?topic=a", f"Origin: {ORIGIN}"), DIRECT, b"Origin: " + ORIGIN.encode(), id="CORS"),
    Case(get("/events?topic=a", "Origin: https://b.example"), DIRECT, b"200", id="a foreign origin"),
    Case(get("/events?topic=a", f"Origin: {ORIGIN}", f"Origin: {ORIGIN}"), NONE, b"400", id="two origins"),
    Case(get("/events?topic=a", "X-Forwarded-For: 1.2.3.4"), DIRECT, b"200", id="X-Forwarded-For"),
    Case(get("/events?topic="), NONE, b"400", id="an invalid topic"),
    Case(get("/events?topics=a"), NONE, b"400", id="a misspelt name"),
    Case(get("/events?topic=a&policy=block"), NONE, b"403", id="a policy not allowed"),
    Case(get().replace(b"Host: a", b"Host: b"), NONE, b"421", id="a host not allowed"),
    Case(get().replace(b"Host: a\r\n", b""), NONE, b"400", id="no Host"),
    Case(get("/events?topic=a", "Host: a"), NONE, b"400", id="two Hosts"),
    Case(get("/events?topic=a&ticket=x"), CONNECTION, b"200", id="a ticket without need"),
    Case(get("/events?topic=a", "Authorization: Bearer x"), DIRECT, b"200", id="a token without need"),
    Case(get("/events?topic=a", "Cookie: a=b", "User-Agent: c", "Referer: d"), DIRECT, b"200", id="a browser"),
    Case(get("/events?topic=a", "Cookie: a=\xe9"), CONNECTION, b"200", id="a cookie of 8-bit bytes"),
    Case(get(method="HEAD"), NONE, b"200", id="HEAD"),
    Case(get(method="POST"), NONE, b"405", id="POST"),
    Case(get(method="OPTIONS"), NONE, b"204", id="OPTIONS"),
    Case(get("/nothing"), NONE, b"404", id="another path"),
    Case(get("/healthz"), NONE, b"200", id="a document"),
    Case(get("/events?topic=a", "Connection: close"), DIRECT, b"200", id="Connection: close"),
    Case(get("/events?topic=a", "Connection: Upgrade", "Upgrade: h2c"), DIRECT, b"200", id="Upgrade"),
    Case(get("/events?topic=a", "Expect: 100-continue"), CONNECTION, b"200", id="Expect"),
    Case(get("/events?topic=a", "Expect: x"), NONE, b"417", id="an unknown expectation"),
    Case(get("/events?topic=a", "Content-Length: 0"), DIRECT, b"200", id="an empty body"),
    Case(get("/events?topic=a", "Content-Length: 3") + b"abc", NONE, b"413", id="a body"),
    Case(get("/events?topic=a", "Content-Length: 3"), NONE, b"413", id="a body that has not arrived"),
    Case(get("/events?topic=a", "Transfer-Encoding: chunked"), NONE, b"", id="chunks that have not arrived"),
    Case(get("/events?topic=a", "Transfer-Encoding: chunked") + b"0\r\n\r\n", CONNECTION, b"200", id="chunks"),
    Case(get() + get("/healthz"), CONNECTION, b"200", id="a second request"),
    Case(get("/healthz") + get(), CONNECTION, b'"ok"', id="the second of two requests"),
    Case(b"\r\n" + get(), CONNECTION, b"200", id="an empty line before it"),
    Case(get("/events?topic=a", LAST, LAST), CONNECTION, b"relay.gap", id="Last-Event-ID twice"),
    Case(get("/events?topic=a", *["Authorization: x"] * 2), NONE, b"400", id="Authorization twice"),
    Case(get("/events?topic=a", *["X-Forwarded-For: ::1"] * 2), CONNECTION, b"200", id="X-Forwarded-For twice"),
    Case(get("/events?topic=a", *["Cookie: a=b"] * 2), CONNECTION, b"200", id="Cookie twice"),
    Case(get("/events?topic=a", "X: y\r\n z"), NONE, b"400", id="obs-fold"),
    Case(get("/events?topic=a", "Cookie: y\r\n z"), NONE, b"400", id="obs-fold of a cookie"),
    Case(get("/events?topic=a", "Cookie: y\r\n z: a"), NONE, b"400", id="obs-fold with a colon"),
    Case(get("/events?topic=a", "X: y", "Cookie : a"), NONE, b"400", id="white space before the colon"),
    Case(get("/events?topic=a", "X: y\nX: z"), NONE, b"400", id="bare LF"),
    Case(get("/events?topic=a", "Cookie: y\nX: z"), NONE, b"400", id="bare LF in a cookie"),
    Case(get().replace(b"\r\n", b"\n"), NONE, b"400", id="only bare LF"),
    Case(get("/events?topic=a", "X: y\rz"), NONE, b"400", id="bare CR"),
    Case(get("/events?topic=a", "X: y\x01"), NONE, b"400", id="a control character"),
    Case(get("/events?topic=a", "Cookie: y\0"), NONE, b"400", id="NUL in a cookie"),
    Case(get("/events?topic=a", "Last-Event-ID: y\x01"), CONNECTION, b"relay.gap", id="a control character in an id"),
    Case(get("/events?topic=a", "X: " + "y" * (2048 - SHORT)), DIRECT, b"200", id="2 KiB"),
    Case(get("/events?topic=a", "X: " + "y" * (2049 - SHORT)), CONNECTION, b"200", id="more than 2 KiB"),
    Case(get("/events?topic=a", "X: " + "y" * HEAD_BYTES_MAX), NONE, b"431", id="a head too large"),
    Case(get("/events?topic=" + "y" * HEAD_BYTES_MAX), NONE, b"414", id="a target too large"),
]


@pytest.mark.parametrize("paths", [DIRECT, CONNECTION, NONE], ids=["direct", "connection", "none"])
def test_both_paths_give_the_same_answers(server: Relay, paths: dict[str, int]) -> None:
    cases = [case for case in CASES if case.paths == paths]
    descriptors = server.open_descriptors()
    answers, used = both(server, [case.data for case in cases])
    assert [case.id for case, answer in zip(cases, answers, strict=True) if case.part not in answer.data] == []
    assert used == {path: count * len(cases) for path, count in paths.items()}
    eventually(lambda: server.open_descriptors() <= descriptors, "no descriptor is left")


def test_a_replay_of_a_pattern_is_direct_if_its_index_is_complete(server: Relay) -> None:
    with Stream(server.port, "topic=a.**&since=earliest"):
        assert status(server, get("/events?topic=a.**", "Last-Event-ID: b-1"), DIRECT) == 200


def test_an_edge_asks_the_hub_for_an_id_that_it_does_not_know() -> None:
    with relay(*RETRY, "--workers", "2") as server:
        publish(server, {"topic": "a", "id": "a-1", "data": "1"}, {"topic": "a", "id": "a-2", "data": "2"})

        def path(id: str, mark: bytes) -> dict[str, int]:
            before = opens(server)
            [client] = send_whole(server, [get("/events?topic=a", f"Last-Event-ID: {id}")])
            with client:
                client.read_until(mark)
                return opened(before, opens(server))

        eventually(lambda: path("a-1", b"id: a-2") == {"direct": 1}, "the edges have the events")
        assert [path("none", b"relay.gap") for _ in range(4)] == [{"connection": 1}] * 4


# Limits


def refused(server: Relay, data: bytes = PLAIN) -> tuple[int, str]:
    """Send a request that a limit rejects on both paths; return the status and the reason."""
    [answer], used = both(server, [data])
    assert used == NONE
    [retried], used = both(server, [data.replace(b"Host: a", b"Host: a\r\nAccept: text/event-stream")])
    assert (retried.status, retried.closed, used) == (200, True, NONE)
    return answer.status, json.loads(answer.data.partition(b"\r\n\r\n")[2])["error"]


LIMITS = [
    ("--streams-max", 503, "all 1 streams are taken"),
    ("--streams-per-address-max", 429, "this address has 1 streams already"),
    ("--streams-per-topic-max", 503, "a topic has 1 streams already"),
]


@pytest.mark.parametrize(("setting", "code", "reason"), LIMITS)
def test_both_paths_apply_the_limits(setting: str, code: int, reason: str) -> None:
    with relay(*RETRY, setting, "1") as server:
        take_turns(server)  # The first transport opens a descriptor that the process keeps.
        descriptors = server.open_descriptors()
        for send in (send_whole, send_in_pieces):
            [client] = send(server, [PLAIN])
            take_turns(server)
            assert refused(server) == (code, reason)
            outcomes(server, [client])
            eventually(lambda: server.open_descriptors() <= descriptors, "no descriptor is left")
        assert dict(opens(server)) == DIRECT
        assert server.metric("relay_limited_total") == 8  # each rejection counts once


@pytest.mark.parametrize("trusted", [True, False])
def test_both_paths_limit_the_address_that_a_trusted_proxy_forwards(*, trusted: bool) -> None:
    proxies = ("--trusted-proxy", "127.0.0.1") if trusted else ()
    one, other = (get("/events?topic=a", f"X-Forwarded-For: 10.0.0.1, 1.2.3.{number}") for number in (4, 5))
    with relay(*RETRY, "--streams-per-address-max", "1", *proxies) as server:
        for send in (send_whole, send_in_pieces):
            [client] = send(server, [one])
            take_turns(server)
            assert refused(server, one)[0] == 429
            assert status(server, other, DIRECT if trusted else NONE) == (200 if trusted else 429)
            outcomes(server, [client])


# Tokens


def bearer(key: str = SECRET, **claims: Any) -> str:
    """Return the value of Authorization for a token that grants the topic `a`."""
    whole = {"exp": time.time() + 600, "sub": "ann", "relay": {"subscribe": ["a"]}} | claims
    return f"Bearer {jwt.encode(whole, key, 'HS256')}"


def granted(value: str, target: str = "/events?topic=a") -> bytes:
    """Make a request with a token."""
    return get(target, f"Authorization: {value}")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The files of the secret and of the revocations."""
    files = {"jwt-secret-file": tmp_path / "secret", "jwt-revoked-file": tmp_path / "revoked"}
    files["jwt-secret-file"].write_text(SECRET)
    files["jwt-revoked-file"].write_text("")
    return files


@pytest.fixture
def guarded(files: dict[str, Path]) -> Iterator[Relay]:
    """A server whose streams need a token."""
    flags = (part for name, path in files.items() for part in (f"--{name}", str(path)))
    with relay(*RETRY, "--subscribe", "jwt", "--jwt-cookie", "session", *flags) as running:
        yield running


def test_both_paths_check_the_token(guarded: Relay) -> None:
    good, cookie = bearer(), f"Cookie: session={bearer().removeprefix('Bearer ')}"
    assert status(guarded, granted(good), DIRECT) == 200
    assert status(guarded, granted(good), DIRECT) == 200
    assert status(guarded, granted(good.replace("Bearer", "bEARER ")), DIRECT) == 200
    assert status(guarded, granted(good, "/events?topic=b"), NONE) == 403
    assert status(guarded, granted(good, "/events?topic=a&topic=b"), NONE) == 403
    assert status(guarded, granted(good[:-2]), NONE) == 401
    assert status(guarded, granted(good.replace("Bearer", "Basic")), NONE) == 401
    assert status(guarded, granted(bearer(exp=1)), NONE) == 401
    assert status(guarded, granted(bearer(nbf=time.time() + 600)), NONE) == 401
    assert status(guarded, get(), NONE) == 401
    assert status(guarded, get("/events?topic=a", cookie), CONNECTION) == 200
    assert status(guarded, get("/events?topic=a", cookie, "Authorization: Bearer x"), NONE) == 401
    assert status(guarded, get("/events?topic=a", "Cookie: session=x", f"Authorization: {good}"), DIRECT) == 200


def test_a_ticket_opens_one_stream_on_each_path(guarded: Relay) -> None:
    tickets = [
        json.loads(guarded.request("POST", "/ticket", headers={"Authorization": bearer()})[2])["ticket"]
        for _ in range(2)
    ]
    one, other = (get(f"/events?topic=a&ticket={ticket}") for ticket in tickets)
    [answer], used = both(guarded, [one], [other])
    assert (answer.status, used) == (200, CONNECTION)
    assert status(guarded, one, NONE) == 401


def test_a_known_token_that_has_expired_is_rejected(guarded: Relay) -> None:
    end_s = time.time() + 3
    data = granted(bearer(exp=end_s))
    assert status(guarded, data, DIRECT) == 200
    eventually(lambda: time.time() > end_s, "the token has expired")
    assert status(guarded, data, NONE) == 401


@pytest.mark.parametrize(("name", "text"), [("jwt-revoked-file", "ann\n"), ("jwt-secret-file", "t" * 64)])
def test_a_known_token_is_rejected_after_a_reload(guarded: Relay, files: dict[str, Path], name: str, text: str) -> None:
    data = granted(bearer())
    assert status(guarded, data, DIRECT) == 200
    files[name].write_text(text)
    guarded.process.send_signal(signal.SIGHUP)
    header = {"Authorization": bearer()}
    eventually(lambda: guarded.request("HEAD", "/events?topic=a", headers=header)[0] == 401, "the reload is complete")
    assert status(guarded, data, NONE) == 401


# The steps of an opening


def draining(site: Site) -> None:
    site.hub.refuse = RequestError(503, "the server is draining")


def ended(site: Site) -> None:
    site.hub.refuse = RequestError(204, "its topics have ended")


def not_watchable(site: Site) -> None:
    site.hub.refuse = OSError(errno.ENOSPC, "epoll_ctl")


def unknown_to_this_edge(site: Site) -> None:
    site.front.find = lambda terms, ids, done: lambda: None
    site.hub.known = False


def index_incomplete(site: Site) -> None:
    site.hub.slow_to_prepare = True


def without_token(site: Site) -> None:
    site.front.auth = Auth(Config(subscribe="jwt", jwt_secret=SECRET), frozenset(), wall=lambda: 1e9)


STEPS = [draining, ended, not_watchable, unknown_to_this_edge, index_incomplete, without_token]


@pytest.mark.parametrize("step", STEPS)
@on_uvloop
async def test_the_socket_stays_open_and_unused_after_a_step_that_fails(
    site: Site, step: Callable[[Site], None]
) -> None:
    step(site)
    data = get("/events?topic=a", LAST)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        assert not Openings(site.front).open(ours.fileno(), "1.2.3.4", data)
        ours.send(b"open")
        assert theirs.recv(100) == b"open"
    assert (site.hub.streams, site.metrics.opened) == ([], {"direct": 0, "connection": 0})


@on_uvloop
async def test_the_hub_owns_the_socket_of_a_stream(site: Site) -> None:
    data = get("/events?topic=a", LAST, "Authorization: Bearer x")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with theirs:
        assert Openings(site.front).open(ours.detach(), "1.2.3.4", data)
        [(_, request, address)] = site.hub.streams
        assert (request.terms, request.last_ids, address) == (("a",), ("a-1",), "1.2.3.4")
        assert theirs.recv(9) == b"HTTP/1.1 "
    assert site.metrics.opened == {"direct": 1, "connection": 0}


# Accepting


@pytest.fixture(params=NAMES)
def arrivals(request: pytest.FixtureRequest) -> Any:
    """Return each implementation of `accept` in turn."""
    return load(request.param, "arrivals")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accept_reads_no_more_than_the_given_number_of_bytes(arrivals: Any, host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setblocking(False)
        assert arrivals.accept(listener.fileno(), 100) is None
        for most, expected in ((100, b"input"), (2, b"in"), (0, b"")):
            with socket.create_connection(listener.getsockname()[:2]) as client:
                client.send(b"input")
                fd, address, received = arrivals.accept(listener.fileno(), most)
                with socket.socket(fileno=fd) as accepted:
                    assert (address, received) == (host, expected)
                    assert not os.get_blocking(fd)
                    assert not os.get_inheritable(fd)
                    if expected != b"input":
                        assert accepted.recv(100) == b"input"[len(expected) :]


def test_a_connection_without_input_or_with_a_reset_has_no_input(arrivals: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for linger_s in (1, 0):
            with socket.create_connection(listener.getsockname()) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger_s))
                if not linger_s:
                    client.close()  # This sends a reset.
                fd, _, received = arrivals.accept(listener.fileno(), 100)
                os.close(fd)
                assert received == b""


def test_accept_raises_the_error_of_the_kernel(arrivals: Any) -> None:
    with socket.socket() as connecting, pytest.raises(OSError, match="Invalid argument"):
        arrivals.accept(connecting.fileno(), 100)
