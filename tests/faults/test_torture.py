"""Malformed HTTP on raw sockets to a real server: it answers as the standard requires, and no other client is affected.

A healthy subscriber stays open. After each case, it has missed nothing, and it has received only events that an answer
acknowledged (so no request was smuggled). The server's descriptors are back to their earlier number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from tests import forms
from tests.faults.raw import RawClient
from tests.faults.torture_cases import (
    BODY_BYTES_MAX,
    CASES,
    CLOSE,
    HEAD_BYTES_MAX,
    OPEN,
    SMUGGLED,
    Case,
    chunked,
    publish,
    request,
)
from tests.faults.witness import Witness
from tests.forms import FAULT_FORMS
from tests.front.paths import opened, opens, send_in_pieces, send_whole
from tests.running import ASIDE_BYTES, TIMEOUT_S, Relay, eventually, relay

pytestmark = pytest.mark.slow

STREAM_CASES = [case for case in CASES if b"/events" in cast(Case, case.values[0]).data]
"""The cases that a server can serve on either path (`relay.front.openings`)."""

Send = Callable[[Relay, Sequence[bytes]], list[RawClient]]

DISCARD_BYTES_MAX = 8192
HEAD_TIMEOUT_S = 0.4


@pytest.fixture(scope="module")
def patient() -> Iterator[Relay]:
    """A server with long time limits, so that no answer is caused by a timeout."""
    limits = ("--body-bytes-max", str(BODY_BYTES_MAX), "--discard-bytes-max", str(DISCARD_BYTES_MAX))
    with relay(*limits, "--compress", "gzip") as server:
        yield server


@pytest.fixture(scope="module")
def watched(patient: Relay) -> Iterator[Witness]:
    """The healthy subscriber of the patient server."""
    witness = Witness(patient)
    yield witness
    witness.close()


@pytest.fixture
def witness(watched: Witness) -> Iterator[Witness]:
    """Check the healthy subscriber before and after the test."""
    watched.publish("before")
    yield watched
    watched.check()


@pytest.mark.parametrize("case", CASES)
def test_each_response_has_the_status_of_the_standard(patient: Relay, witness: Witness, case: Case) -> None:
    check(patient, witness, case, send_whole)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_a_request_for_a_stream_in_two_pieces_has_the_same_status(patient: Relay, witness: Witness, case: Case) -> None:
    check(patient, witness, case, send_in_pieces)


def check(patient: Relay, witness: Witness, case: Case, send: Send) -> None:
    """Send the request of a case, and check its answers and the final state of the connection."""
    ids: list[str] = []
    [client] = send(patient, [case.data])
    with client:
        witness.publish("meanwhile") if not case.published else None
        for status in case.statuses:
            answer = client.answer(bodyless=case.data.startswith(b"HEAD "))
            assert answer.status == status, answer
            if status == 200 and answer.body.startswith(b'{"ids":'):
                ids += answer.json["ids"]
        if case.header:
            name, _, value = case.header.partition(": ")
            assert answer.headers.get(name) == value
        if case.end == OPEN:
            client.send(request(b"/readyz"))
            assert client.answer().json == {"status": "ready"}
        elif case.end == CLOSE:
            assert client.rest() == b""
        elif status == 200:
            assert answer.headers["content-type"] == "text/event-stream"
            client.read_until(b"\n\n")
    assert len(ids) == len(case.published)
    for id, data in zip(ids, case.published, strict=True):
        witness.note(data, "torture", id)


def half_close_before(client: RawClient) -> None:
    client.finish()
    assert client.rest() == b""


def half_close_in_the_head(client: RawClient) -> None:
    client.send(request()[:-2])
    client.finish()
    assert client.answer().status == 400
    assert client.rest() == b""


def half_close_in_the_body(client: RawClient) -> None:
    client.send(publish(b"Content-Length: 5", body=b"1234"))
    client.finish()
    assert client.answer().status == 400
    assert client.rest() == b""


def half_close_in_a_chunk(client: RawClient) -> None:
    client.send(chunked(b"5\r\n1234"))
    client.finish()
    assert client.answer().status == 400
    assert client.rest() == b""


def half_close_after(client: RawClient) -> None:
    client.send(request() * 20)
    client.finish()
    assert [client.answer().status for _ in range(20)] == [200] * 20
    assert client.rest() == b""


def reset_immediately(client: RawClient) -> None:
    client.reset()


def reset_in_the_head(client: RawClient) -> None:
    client.send(request()[:-2])
    client.reset()


def reset_in_the_body(client: RawClient) -> None:
    client.send(publish(b"Expect: 100-continue", b"Content-Length: 5"))
    assert client.answer().status == 100
    client.send(b"123")
    client.reset()


def reset_with_answers_unread(client: RawClient) -> None:
    client.send(request(b"/") * 50)
    client.reset()


def reset_after_an_error(client: RawClient) -> None:
    client.send(b"GARBAGE\r\n\r\n" + SMUGGLED)
    client.reset()


def bytes_after_a_rejection(client: RawClient) -> None:
    client.send(publish(b"Content-Length: %d" % (BODY_BYTES_MAX + 1)))
    assert client.answer().status == 413
    client.send(b"x" * BODY_BYTES_MAX)  # is read and discarded: a reset could overtake the answer
    assert client.rest() == b""


def byte_by_byte(client: RawClient) -> None:
    for byte in publish(b"Content-Length: 3", token=b"wrong"):
        client.send(bytes([byte]))
    assert client.answer().status == 401


MANNERS = [
    half_close_before,
    half_close_in_the_head,
    half_close_in_the_body,
    half_close_in_a_chunk,
    half_close_after,
    reset_immediately,
    reset_in_the_head,
    reset_in_the_body,
    reset_with_answers_unread,
    reset_after_an_error,
    bytes_after_a_rejection,
    byte_by_byte,
]


@pytest.mark.parametrize("manner", MANNERS)
def test_a_misbehaving_client_harms_only_itself(
    patient: Relay, witness: Witness, manner: Callable[[RawClient], None]
) -> None:
    with RawClient(patient.port) as client:
        manner(client)


def send_too_much(client: RawClient) -> None:
    client.send(SMUGGLED + b"x" * DISCARD_BYTES_MAX)


def break_stream(client: RawClient, harm: Callable[[RawClient], None]) -> None:
    """Break the stream of a client; the server closes it."""
    harm(client)
    if harm is not RawClient.reset:
        assert client.ended()


HARMS = (RawClient.reset, RawClient.finish, send_too_much)


@pytest.mark.parametrize("form", FAULT_FORMS)
def test_a_client_that_breaks_its_stream_harms_only_itself(patient: Relay, witness: Witness, form: str) -> None:
    for harm in HARMS:
        with RawClient(patient.port) as client:
            client.send(forms.request(form, "topic=**&since=earliest"))
            client.read_until(b"data")
            break_stream(client, harm)


@pytest.mark.parametrize(("send", "path"), [(send_whole, "direct"), (send_in_pieces, "connection")])
def test_a_client_harms_only_itself_on_either_path(patient: Relay, witness: Witness, send: Send, path: str) -> None:
    for harm in HARMS:
        before = opens(patient)
        [client] = send(patient, [request(b"/events?topic=**", b"Last-Event-ID: none")])
        with client:
            client.read_until(b"relay.gap")
            assert opened(before, opens(patient)) == {path: 1}
            break_stream(client, harm)


SLOW = [
    pytest.param(b"", b"", None, id="9112-9.5 nothing at all"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"X: y\r\n", 408, id="9110-15.5.9 head"),
    pytest.param(b"", b"\r\n", None, id="9112-2.2 empty lines"),
    pytest.param(publish(b"Content-Length: 10000"), b"x", 408, id="9110-15.5.9 body"),
    pytest.param(chunked(b""), b"1\r\nx\r\n", 408, id="9110-15.5.9 chunks"),
    pytest.param(request() + b"GET", b"X", 408, id="9110-15.5.9 the second head"),
]


@pytest.fixture(scope="module")
def hasty() -> Iterator[Relay]:
    """A server with short time limits."""
    body_bytes = 16 * 1024  # a quarter of a second at the slowest rate
    short = f"{round(HEAD_TIMEOUT_S * 1000)}ms"
    with relay("--body-bytes-max", str(body_bytes), "--head-timeout", short, "--keepalive-timeout", short) as server:
        yield server


@pytest.mark.parametrize(("first", "drip", "status"), SLOW)
def test_a_client_that_sends_slowly_is_closed_at_the_time_limit(
    hasty: Relay, first: bytes, drip: bytes, status: int | None
) -> None:
    began_s = time.monotonic()
    with RawClient(hasty.port) as client:
        client.send(first)
        if first.startswith(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"):
            assert client.answer().status == 200
        client.socket.settimeout(0.05)
        while time.monotonic() < began_s + TIMEOUT_S:
            try:
                data = client.socket.recv(65536)
                client.unread += data
                break
            except TimeoutError:
                client.send(drip)
        client.socket.settimeout(TIMEOUT_S)
        if status is not None:
            assert client.answer().status == status
        assert client.rest() == b""
    took_s = time.monotonic() - began_s
    assert took_s >= HEAD_TIMEOUT_S * 0.9
    eventually(lambda: hasty.connections() == 0, "nothing is left of it")


def test_a_connection_that_is_idle_between_requests_too_long_is_closed_cleanly(hasty: Relay) -> None:
    with RawClient(hasty.port) as client:
        client.send(request())
        assert client.answer().status == 200
        assert client.rest() == b""


def test_a_client_that_reads_no_responses_is_closed(hasty: Relay) -> None:
    with RawClient(hasty.port) as client:
        client.socket.setblocking(False)
        try:
            while True:
                client.socket.send(request(b"/") * 20)
        except BlockingIOError:
            pass
        client.socket.setblocking(True)
        eventually(lambda: hasty.connections() == 0, "the server has released it")
        assert client.ended()


def test_the_memory_for_slow_and_silent_clients_is_bounded() -> None:
    """A thousand clients send most of the largest head. Each holds no more than that, and all are closed."""
    count = 1000
    with relay("--head-timeout", "5s") as server:
        witness = Witness(server)
        before_bytes = server.memory_bytes()
        clients = [RawClient(server.port) for _ in range(count)]
        part = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (HEAD_BYTES_MAX - 100)
        for client in clients:
            client.send(part)
        witness.publish("meanwhile")
        grown_bytes = server.memory_bytes() - before_bytes
        # The head, the buffer's growth by an eighth, uvloop's transport and the protocol.
        bound_bytes = count * (HEAD_BYTES_MAX * 2 + 8192) + ASIDE_BYTES
        print(f"memory of {count} half heads: {grown_bytes} bytes, bound {bound_bytes}")
        assert grown_bytes < bound_bytes
        for client in clients:
            assert client.answer().status == 408
            client.close()
        witness.check()
        witness.close()
